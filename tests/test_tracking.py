"""TensorBoard, and trackio where it is installed, are run for real and read back; failures are real exceptions.

wandb needs an account: what it is started with is looked at, and trackio's start, too, where it is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from sparring.config import resolve
from sparring.settings import RunConfig
from sparring.tracking import GuardedTracker, TrackerError, TrackerWarning, chosen, open_tracker


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

    TRACKIO_DIR = Path("/somewhere/trackio")

    def init(self, **given: object) -> Recorder:
        self.given = given
        self.logged: list[tuple[int, object]] = []
        self.finished = 0
        print("* the package chats")
        return self

    def log(self, metrics: object, step: int) -> None:
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.finished += 1
        print("* the package chats")


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


trackio = pytest.mark.parametrize("package", ["trackio"], indirect=True)


@trackio
@pytest.mark.parametrize(("step", "resume"), [(0, "never"), (7, "allow")])
def test_trackio_goes_on_under_the_runs_name(package: Recorder, step: int, resume: str, tmp_path: Path) -> None:
    open_tracker("trackio", "run", tmp_path, {}, step=step)
    assert (package.given["name"], package.given["resume"]) == ("run", resume)


@trackio
def test_runs_of_one_folder_name_are_apart_in_trackio(package: Recorder, tmp_path: Path) -> None:
    names = set()
    for identity, step in (("run-0-10:00", 0), ("run-0-10:00", 5), ("run-0-11:00", 0)):
        open_tracker("trackio", "run", tmp_path, {}, step=step, resume_id=identity)
        names.add(package.given["name"])
    assert len(names) == 2
    assert all(re.fullmatch("run-[0-9a-f]{6}", str(name)) for name in names)


@trackio
@pytest.mark.parametrize("space", [None, "ann/board"])
def test_trackio_says_once_where_its_data_are(
    package: Recorder,
    space: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TRACKIO_SERVER_URL", raising=False)
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    if space:
        monkeypatch.setenv("TRACKIO_SPACE_ID", space)
    said: list[str] = []
    tracker = open_tracker("trackio", "run", tmp_path, {}, say=said.append)
    tracker.log(3, {"health/level": 1.0, "game/V": 0.5})
    tracker.finish()
    assert package.logged == [(3, {"health/level": 1.0, "game/V": 0.5})]
    assert package.finished == 1
    assert len(said) == 1
    assert f"as run, in {space or package.TRACKIO_DIR}: trackio show --project sparring" in said[0]
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


REAL = """
import json, sys
from pathlib import Path
from sparring.tracking import open_tracker
for first in (0, 3):
    config = {"learner": {"lr": 1e-3}}
    tracker = open_tracker("trackio", "run", Path("."), config, step=first, resume_id="id", say=print)
    for step in range(first, first + 3):
        tracker.log(step, {"health/level": float(step % 3), "game/V": step / 4, "tokens_per_second": 5.0})
    tracker.finish()
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
(run,) = Api().runs("sparring")
rows = SQLiteStorage.get_logs("sparring", run.name)
names = "step", "health/level", "game/V", "tokens_per_second"
print(json.dumps([run.name, [{name: row[name] for name in names} for row in rows]]))
"""


def test_trackio_for_real_holds_the_numbers_of_both_sessions(tmp_path: Path) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "data"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error:trackio", "-c", REAL],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    *said, last = done.stdout.splitlines()
    name, rows = json.loads(last)
    assert len(said) == 2
    assert all(f"as {name}, in {tmp_path / 'data'}:" in line for line in said)
    assert rows == [
        {"step": step, "health/level": float(step % 3), "game/V": step / 4, "tokens_per_second": 5.0}
        for step in range(6)
    ]


# --- which trackers ----------------------------------------------------------------------------------


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says what `auto` stands for."""
    monkeypatch.delenv("SPARRING_TRACKERS", raising=False)


@pytest.mark.usefixtures("undecided", "package")
@trackio
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("auto",), ("trackio",)),
        (("auto", "trackio"), ("trackio",)),
        (("wandb", "auto"), ("wandb", "trackio")),
        (("none",), ()),
        (("none", "tensorboard"), ("tensorboard",)),
        ((), ()),
    ],
)
def test_auto_is_trackio_where_it_is_installed(given: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert chosen(given) == expected
    assert chosen(expected) == expected  # what a resumed run reads stays


@pytest.mark.usefixtures("undecided")
def test_auto_is_nothing_where_trackio_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert chosen(("auto",)) == ()
    assert chosen(("auto", "wandb")) == ("wandb",)


@pytest.mark.usefixtures("package")
@trackio
@pytest.mark.parametrize(
    ("variable", "expected"),
    [("none", ()), ("", ()), ("wandb", ("wandb",)), ("trackio, tensorboard", ("trackio", "tensorboard"))],
)
def test_the_environment_says_what_auto_stands_for(
    variable: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARRING_TRACKERS", variable)
    assert chosen(("auto",)) == expected
    assert chosen(("tensorboard",)) == ("tensorboard",)
    assert chosen(()) == ()


@pytest.mark.parametrize("variable", ["wanbd", "auto"])
def test_an_environment_that_names_no_tracker_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARRING_TRACKERS", variable)
    with pytest.raises(TrackerError, match=f"SPARRING_TRACKERS: unknown tracker '{variable}'"):
        chosen(("auto",))


def test_the_setting_is_auto_unless_said_otherwise() -> None:
    assert RunConfig().trackers == ("auto",)
    assert resolve(RunConfig(), None, ("trackers=none",)).trackers == ("none",)
    assert resolve(RunConfig(), None, ("trackers=[]",)).trackers == ()
    with pytest.raises(ValueError, match="did you mean 'auto'"):
        resolve(RunConfig(), None, ("trackers=autoo",))


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
    with pytest.raises(TrackerError, match="choose from tensorboard, trackio, wandb, auto or none"):
        open_tracker("zzz", "run", tmp_path, {})


@pytest.mark.parametrize("name", [None, "none", "auto"])
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
