"""Several servers as one engine: prompts are dealt to them, and all of them get every update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sparring.lm.base import Completion, SamplingParams
from sparring.parallel.ranks import deal, undeal
from sparring.rollout.base import EngineError, RolloutEngine

T = TypeVar("T")


class Engines:
    """A `RolloutEngine` of several that serve one model. A prompt's completions are those that one alone would write.

    Args:
        engines: at least one, opened.

    Raises:
        EngineError: they don't serve alike: another version of vLLM, with and without adapters, CPU and GPU.
    """

    def __init__(self, engines: Sequence[RolloutEngine]) -> None:
        self._engines = list(engines)
        infos = [engine.info for engine in self._engines]
        shortest = min(info.max_tokens for info in infos)
        alike = {replace(info, max_tokens=shortest) for info in infos}
        if len(alike) > 1:
            listed = "\n  ".join(str(info) for info in infos)
            raise EngineError(
                f"these servers differ, and a run's must serve one model, from one path, alike:\n  {listed}"
            )
        self.info = alike.pop()
        self._threads = ThreadPoolExecutor(len(self._engines), "rollout-server")

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, seeds: Sequence[int], *, adapter: bool
    ) -> list[list[Completion]]:
        """See `base.RolloutEngine.generate`."""
        dealt = deal([len(ids) + n * params.max_new_tokens for ids in prompts], len(self._engines))

        def write(engine: RolloutEngine, mine: Sequence[int]) -> list[list[Completion]]:
            asked, drawn = [prompts[index] for index in mine], [seeds[index] for index in mine]
            return engine.generate(asked, n, params, drawn, adapter=adapter)

        written = self._all([lambda e=e, m=m: write(e, m) for e, m in zip(self._engines, dealt, strict=True)])
        return undeal(dealt, written)

    def update(self, folder: Path, version: int) -> None:
        """See `base.RolloutEngine.update`. Where one refuses, others may have the new weights."""
        self._all([lambda e=e: e.update(folder, version) for e in self._engines])

    def check(self) -> None:
        """See `base.RolloutEngine.check`."""
        self._all([e.check for e in self._engines])

    def close(self) -> None:
        """See `base.RolloutEngine.close`."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for engine in self._engines:
            engine.close()

    def _all(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """All results, by engine. Every one is waited for, so that none is still at work when an error is raised."""
        futures = [self._threads.submit(work) for work in works]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"and {other}")
            raise errors[0]
        return [future.result() for future in futures]
