"""Rules that find what a test wants them to."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sparring.health.guard import Guard
from sparring.health.rules import Level, Status


def ring(monkeypatch: pytest.MonkeyPatch, levels: Mapping[int, Level]) -> None:
    """The rules find what is given by step, until the run has gone back once."""
    found = Guard.found

    def ringing(guard: Guard, step: int, status: Status) -> None:
        found(guard, step, Status(levels.get(step, Level.OK) if guard.rollbacks == 0 else Level.OK))

    monkeypatch.setattr(Guard, "found", ringing)
