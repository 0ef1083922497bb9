"""Sampling by several ranks: each writes for some of the prompts, then all hold all completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from sparring.lm.base import Completion, SamplingParams
from sparring.memory import SAMPLING, budgeted
from sparring.models import Models
from sparring.parallel.ranks import Ranks, deal, undeal
from sparring.rollout.base import EngineInfo, RolloutEngine
from sparring.sampling.seeds import Draws
from sparring.sampling.turns import Ids, Writer
from sparring.types import ModelName


class ParallelWriter:
    """Prompts are dealt to the ranks; a prompt's completions are written on one. Draws are those of one process.

    Args:
        writer: this rank's own.
        ranks: who shares the prompts.
        gathered: a model → its weights put together for the time of the writing.
    """

    def __init__(
        self, writer: Writer, ranks: Ranks, gathered: Callable[[ModelName], AbstractContextManager[None]]
    ) -> None:
        self._writer, self._ranks, self._gathered = writer, ranks, gathered

    def complete(
        self, model: ModelName, prompts: Sequence[Ids], n: int, params: SamplingParams, draws: Draws
    ) -> list[list[Completion]]:
        """See `sampling.turns.Writer.complete`. An error on one rank is raised on all."""
        dealt = deal([len(ids) + n * params.max_new_tokens for ids in prompts], self._ranks.size)
        mine = dealt[self._ranks.rank]

        def write() -> list[list[Completion]]:
            with budgeted("sampling", SAMPLING):
                return self._writer.complete(model, [prompts[index] for index in mine], n, params, draws.take(mine))

        with self._gathered(model):
            met = self._ranks.together("sampling", write)
        return undeal(dealt, met)

    def updated(self, version: int) -> dict[str, float]:
        """See `sampling.turns.Writer.updated`."""
        return self._writer.updated(version)

    def close(self) -> None:
        """See `sampling.turns.Writer.close`."""
        self._writer.close()


class LedEngine:
    """A vLLM engine that rank 0 alone holds; all ranks get what it writes, and its errors.

    Args:
        opened: opens the engine; called on rank 0.
        ranks: with meetings of their own where another thread asks (`Ranks.apart`).
    """

    def __init__(self, opened: Callable[[], RolloutEngine], ranks: Ranks) -> None:
        self._ranks = ranks
        held: list[RolloutEngine] = []
        ranks.first("opening the engine", lambda: held.append(opened()))
        self._engine = held[0] if held else None
        self.info: EngineInfo = ranks.first("asking the engine", lambda: self._held.info)

    @property
    def _held(self) -> RolloutEngine:
        assert self._engine is not None
        return self._engine

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, seeds: Sequence[int], *, adapter: bool
    ) -> list[list[Completion]]:
        """See `rollout.base.RolloutEngine.generate`."""
        return self._ranks.first("sampling", lambda: self._held.generate(prompts, n, params, seeds, adapter=adapter))

    def update(self, folder: Path, version: int) -> None:
        """See `rollout.base.RolloutEngine.update`."""
        self._ranks.first("updating the engine", lambda: self._held.update(folder, version))

    def check(self) -> None:
        """See `rollout.base.RolloutEngine.check`."""
        self._ranks.first("checking the engine", lambda: self._held.check())  # noqa: PLW0108 - rank 0 alone holds it

    def close(self) -> None:
        """See `rollout.base.RolloutEngine.close`. No meeting: an error may be on its way."""
        if self._engine is not None:
            self._engine.close()


def spread(writer: Writer, models: Models) -> Writer:
    """The writer, or its part in a run of several ranks."""
    if models.ranks.size == 1:
        return writer

    def gathered(model: ModelName) -> AbstractContextManager[None]:
        if not models.sharded:
            return nullcontext()
        from sparring.parallel.engine import ShardedLM

        held = models.policy if model == "policy" else models.reference
        return held.gathered() if isinstance(held, ShardedLM) else nullcontext()

    return ParallelWriter(writer, models.ranks, gathered)
