"""TensorBoard is run for real and its event file read back; failures are real exceptions."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest

from sparring.tracking import GuardedTracker, TrackerError, TrackerWarning, open_tracker


def test_tensorboard_event_file_holds_the_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = open_tracker("tensorboard", "run-1", tmp_path, {"seed": 7, "alpha": 0.5})
    for step in range(3):
        tracker.log(step, {"value": step / 4, "loss/total": -1.5 * step})
    tracker.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("value")] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert [event.value for event in events.Scalars("loss/total")] == [0.0, -1.5, -3.0]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "run-1" in text
    assert "alpha: 0.5" in text


def test_resumed_run_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for step in range(2):
        tracker = open_tracker("tensorboard", "run-1", tmp_path, {})
        tracker.log(step, {"value": float(step)})
        tracker.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {event.step for event in events.Scalars("value")} == {0, 1}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_missing_package_names_the_extra(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(TrackerError, match=rf"pip install 'sparring\[{name}\]'"):
        open_tracker(name, "run", tmp_path, {})


@pytest.mark.parametrize(("typed", "near"), [("tensorbord", "tensorboard"), ("wanbd", "wandb")])
def test_unknown_name_is_refused_with_the_nearest(typed: str, near: str, tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match=f"unknown tracker '{typed}': did you mean '{near}'"):
        open_tracker(typed, "run", tmp_path, {})


def test_nothing_near_still_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match="choose from tensorboard, trackio, wandb or none"):
        open_tracker("zzz", "run", tmp_path, {})


@pytest.mark.parametrize("name", [None, "none"])
def test_no_tracker_is_silent(name: str | None, tmp_path: Path) -> None:
    tracker = open_tracker(name, "run", tmp_path, {})
    tracker.log(1, {"value": math.nan})
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


def test_tracker_that_cannot_start_says_why(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with pytest.raises(TrackerError, match="'tensorboard' did not start"):
        open_tracker("tensorboard", "run", tmp_path, {})


class Unplugged:
    """A tracker whose server goes away after the first step."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("no route")

    def finish(self) -> None:
        raise ConnectionError("no route")


def test_failure_warns_once_and_switches_off() -> None:
    unplugged = Unplugged()
    tracker = GuardedTracker("remote", unplugged)
    tracker.log(1, {})
    with pytest.warns(TrackerWarning, match="'remote' failed while logging step 2.*no route.*switched off"):
        tracker.log(2, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.log(3, {})
        tracker.finish()
    assert unplugged.calls == 2


def test_failure_at_the_end_is_warned_of() -> None:
    with pytest.warns(TrackerWarning, match="while finishing"):
        GuardedTracker("remote", Unplugged()).finish()
