"""A step's turns: played when they are asked for, or ahead, while the update before them runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sparring.sampling.turns import TurnSampler
from sparring.types import Turn

Play = Callable[[int], "list[Turn]"]


class Rollouts:
    """Turns by step. Ahead of time they are at most one update old; the importance weight corrects for that.

    Args:
        play: step → its turns.
        sampler: takes the trainer's weights; nothing else may use it while a step is played ahead (`settle` waits).
        overlap: whether to play ahead.
    """

    def __init__(self, play: Play, sampler: TurnSampler, *, overlap: bool) -> None:
        self._play, self._sampler = play, sampler
        self._pool = ThreadPoolExecutor(1, "rollouts") if overlap else None
        self._ahead: Future[tuple[list[Turn], float]] | None = None
        self._step = 0  # the one played ahead

    def turns(self, step: int) -> tuple[list[Turn], dict[str, float]]:
        """A step's turns; the sampler then holds the weights after the step before.

        Figures: those of the weights' update; with overlap also rollout/staleness (updates between the weights that
        wrote the turns and those that learn from them), and seconds/hidden, which playing ahead saved.
        """
        if self._pool is None:
            figures = self._sampler.updated(step - 1)
            return self._play(step), figures
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            figures = self._sampler.updated(step - 1)
            return self._play(step), {**figures, "rollout/staleness": 0.0, "seconds/hidden": 0.0}
        assert self._step == step
        asked = time.perf_counter()
        turns, seconds = ahead.result()
        waited = time.perf_counter() - asked
        figures = self._sampler.updated(step - 1)
        return turns, {**figures, "rollout/staleness": 1.0, "seconds/hidden": max(0.0, seconds - waited)}

    def begin(self, step: int) -> None:
        """Start on a step's turns with the weights that the sampler has now, where overlap is on."""
        if self._pool is not None:
            self._step, self._ahead = step, self._pool.submit(self._timed, step)

    def settle(self) -> None:
        """Wait until the sampler is free. What went wrong meanwhile is raised where the turns are asked for."""
        if self._ahead is not None:
            self._ahead.exception()

    def drop(self) -> None:
        """Forget what was played ahead: the run goes on from another step."""
        self.settle()
        self._ahead = None

    def close(self) -> None:
        """Let go of what is being played."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, step: int) -> tuple[list[Turn], float]:
        start = time.perf_counter()
        return self._play(step), time.perf_counter() - start
