"""TensorBoard is run for real and its event file read back; failures are real exceptions.

wandb and trackio need an account or a server: what they are started with is looked at.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

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


@pytest.mark.parametrize("kept", [0, 2])
def test_a_resumed_run_replaces_the_steps_that_come_again(kept: int, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, session in ((0, 0.0), (kept, 10.0)):
        tracker = open_tracker("tensorboard", "run-1", tmp_path, {}, step=first)
        for step in range(first, 4):
            tracker.log(step, {"value": session + step})
        tracker.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    expected = [(step, step + (0.0 if step < kept else 10.0)) for step in range(4)]
    assert [(event.step, event.value) for event in events.Scalars("value")] == expected


class Recorder(ModuleType):
    """A tracker's package that notes what it is started with."""

    def init(self, **given: object) -> None:
        self.given = given


@pytest.fixture
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder(request.param)
    monkeypatch.setitem(sys.modules, request.param, recorder)
    return recorder


@pytest.mark.parametrize("package", ["wandb"], indirect=True)
def test_wandb_goes_on_under_the_runs_id(package: Recorder, tmp_path: Path) -> None:
    open_tracker("wandb", "run", tmp_path, {"seed": 1}, resume_id="a/b:" + "c" * 100 + "?0")
    assert package.given.pop("id") == "c" * 62 + "-0"
    assert package.given.pop("resume") == "allow"
    open_tracker("wandb", "run", tmp_path, {}, resume_id="run 1/2026-01-01T10:00:00+00:00")
    assert package.given["id"] == "run-1-2026-01-01T10-00-00-00-00"
    open_tracker("wandb", "run", tmp_path, {"seed": 1})
    assert package.given == {"project": "sparring", "name": "run", "dir": str(tmp_path), "config": {"seed": 1}}


@pytest.mark.parametrize("package", ["trackio"], indirect=True)
@pytest.mark.parametrize(("step", "resume"), [(0, "never"), (7, "allow")])
def test_trackio_goes_on_under_the_runs_name(package: Recorder, step: int, resume: str, tmp_path: Path) -> None:
    open_tracker("trackio", "run", tmp_path, {}, step=step)
    assert (package.given["name"], package.given["resume"]) == ("run", resume)


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
