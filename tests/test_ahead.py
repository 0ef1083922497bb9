"""Turns played ahead: whose weights, and who waits for whom."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

from conftest import small_run
from sparring.run import train
from sparring.sampling.ahead import Rollouts
from sparring.sampling.turns import TurnSampler
from sparring.settings import RunConfig


class Versions:
    """A sampler that only knows whose weights it has."""

    def __init__(self) -> None:
        self.version = 0

    def updated(self, version: int) -> dict[str, float]:
        self.version = version
        return {"seconds/weights": 1.0}


def rollouts(play: Any, sampler: Versions, *, overlap: bool) -> Rollouts:
    return Rollouts(play, cast(TurnSampler, sampler), overlap=overlap)


@pytest.mark.parametrize(("overlap", "wrote"), [(False, [0, 1, 2, 3]), (True, [0, 0, 1, 2])])
def test_ahead_of_time_turns_are_one_update_old(overlap: bool, wrote: list[int]) -> None:
    sampler = Versions()
    played = rollouts(lambda _: [sampler.version], sampler, overlap=overlap)
    found, stale = [], []
    for step in (1, 2, 3, 4):
        turns, figures = played.turns(step)
        found += turns
        stale.append(figures.get("rollout/staleness"))
        played.begin(step + 1)
    played.settle()
    played.close()
    assert found == wrote
    assert stale == ([0, 1, 1, 1] if overlap else [None] * 4)


def test_what_was_played_ahead_can_be_dropped_and_the_step_before_played_again() -> None:
    sampler = Versions()
    played = rollouts(lambda step: [(step, sampler.version)], sampler, overlap=True)
    played.turns(1)
    played.begin(2)
    played.turns(2)
    played.begin(3)
    played.drop()
    turns, figures = played.turns(2)
    played.close()
    assert turns == [(2, 1)]
    assert figures["rollout/staleness"] == 0


def test_an_error_ahead_of_time_is_raised_where_its_turns_are_asked_for() -> None:
    def play(step: int) -> list[Any]:
        if step == 2:
            raise KeyError("a game's own")
        return []

    played = rollouts(play, Versions(), overlap=True)
    played.turns(1)
    played.begin(2)
    played.settle()
    with pytest.raises(KeyError, match="a game's own"):
        played.turns(2)
    played.close()


def test_a_run_whose_time_is_up_waits_for_the_step_that_is_being_played(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final evaluation asks the same sampler: it must not be at work in two threads."""
    threads: list[int] = []
    original = TurnSampler.sample
    busy = threading.Lock()

    def sample(self: TurnSampler, *args: Any, **kwargs: Any) -> Any:
        assert busy.acquire(blocking=False), "two threads ask one sampler"
        try:
            threads.append(threading.get_ident())
            ahead = threading.current_thread() is not threading.main_thread()
            time.sleep(1.5 if ahead else 0)  # longer than the update and the saving beside it
            return original(self, *args, **kwargs)
        finally:
            busy.release()

    monkeypatch.setattr(TurnSampler, "sample", sample)
    config = small_run("lsp", "steps=50", "time_limit=0.01", "evaluation.every=0")
    # Settings allow overlap with a server alone; what is tested is the trainer's own waiting.
    rollout = config.rollout.model_copy(update={"overlap": True})
    train(RunConfig.model_construct(**{**dict(config), "rollout": rollout}), tmp_path / "run")
    assert len(set(threads)) == 2
