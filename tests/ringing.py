"""Rules that find what a test wants them to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from sparring.health.guard import Guard
from sparring.health.rules import Level, Status
from sparring.types import Payoffs, Turn


def ring(monkeypatch: pytest.MonkeyPatch, levels: Mapping[int, Level]) -> None:
    """The rules find what is given by step, until the run has gone back once."""
    measure = Guard.step

    def step(
        guard: Guard, number: int, turns: Sequence[Turn], payoffs: Payoffs, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        figures = measure(guard, number, turns, payoffs, metrics)
        guard.status = Status(levels.get(number, Level.OK) if guard.rollbacks == 0 else Level.OK)
        return figures

    monkeypatch.setattr(Guard, "step", step)
