"""The policy against the run's start on held-out prompts: the one figure that self-play can't talk up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparring.evaluation.comparison import Comparison, Outcome


class Anchor:
    """The start's scores on held-out prompts, and the best that the policy has surely been against them."""

    def __init__(self) -> None:
        self._start: list[float] = []
        self._best = 0.0

    @property
    def begun(self) -> bool:
        """Whether the start's scores are known."""
        return bool(self._start)

    def begin(self, scores: Sequence[float]) -> None:
        """The start's score on each prompt: the policy's own before the first step.

        Raises:
            ValueError: no scores.
        """
        if not scores:
            raise ValueError("the match against the start has no held-out prompts: health.match_n must be at least 1")
        self._start, self._best = [float(score) for score in scores], 0.0

    def figures(self, scores: Sequence[float]) -> dict[str, float]:
        """health/anchor/*, from the policy's score on each prompt, in the same order.

        win_rate: prompts won and half of those tied, over all; low, high: its 95 % interval (paired bootstrap over
        prompts); fall: the best match's low less this one's high: above 0 the policy is surely under its best.
        """
        assert self.begun
        pairs = zip(self._start, scores, strict=True)
        played = Comparison.of([Outcome(str(n), (), start, float(now)) for n, (start, now) in enumerate(pairs)])
        low, high = played.ci95
        fall = self._best - high
        self._best = max(self._best, low)
        figures = {"win_rate": played.win_rate, "low": low, "high": high, "fall": fall}
        return {f"health/anchor/{name}": value for name, value in figures.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"start": list(self._start), "best": self._best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self._start, self._best = [float(score) for score in state["start"]], float(state["best"])
