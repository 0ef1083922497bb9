"""What a run asks each step: the figures of what was said, and what the rules make of all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparring.health.anchor import Anchor
from sparring.health.figures import Past, Said, said
from sparring.health.rules import Health, Status
from sparring.settings.health import HealthConfig
from sparring.types import Payoffs, Turn


class Monitor:
    """One run's health, under its settings.

    `anchor` is the match against the run's start.
    """

    def __init__(self, config: HealthConfig) -> None:
        self._health = Health(config.judged_by(), config.warning_period, config.first_steps)
        self._past = Past(config.archive, config.first_steps)
        self.anchor = Anchor()

    def step(
        self, turns: Sequence[Turn], payoffs: Payoffs, metrics: Mapping[str, float]
    ) -> tuple[dict[str, float], Status]:
        """health/* of one step, for the metrics, and how the run is; metrics: all the step's other figures."""
        return self.judge(said(turns, payoffs), metrics)

    def judge(self, told: Said, metrics: Mapping[str, float]) -> tuple[dict[str, float], Status]:
        """The same of what was said."""
        figures = self._past.figures(told)
        status = self._health.step({**metrics, **figures})
        return {**figures, "health/level": float(status.level)}, status

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"rules": self._health.state(), "past": self._past.state(), "anchor": self.anchor.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave: the run goes on as if it had never stopped."""
        self._health.restore(state["rules"])
        self._past.restore(state["past"])
        self.anchor.restore(state["anchor"])
