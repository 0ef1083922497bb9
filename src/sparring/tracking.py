"""Experiment trackers behind one small protocol; metrics.jsonl is written whether there is one or not."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

PROJECT = "sparring"
AUTO, NONE = "auto", "none"
STANDS_FOR_AUTO = "SPARRING_TRACKERS"
"""An environment variable: what `auto` stands for, as in the setting (none, wandb, ...)."""

Say = Callable[[str], None]


class TrackerError(ValueError):
    """A tracker is unknown, not installed or would not start."""


class TrackerWarning(UserWarning):
    """A tracker failed during a run and was switched off."""


class Tracker(Protocol):
    """Where a run's numbers are shown."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show one step's numbers."""
        ...

    def finish(self) -> None:
        """Write out what is pending. Call it once, at the end."""
        ...


@dataclass(frozen=True)
class TrackerStart:
    """What a tracker starts from; the fields are `open_tracker`'s arguments."""

    run_name: str
    folder: Path
    config: Mapping[str, Any]
    step: int = 0
    resume_id: str | None = None
    say: Say = lambda _: None


class NoTracker:
    """Shows nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def finish(self) -> None:
        pass


class TensorBoardTracker:
    """Event files in `<folder>/tensorboard`, for `tensorboard --logdir`."""

    def __init__(self, start: TrackerStart) -> None:
        board = _load("torch.utils.tensorboard", "tensorboard")
        folder = start.folder / "tensorboard"
        # What an interrupted session logged after its last checkpoint comes again.
        self._writer = board.SummaryWriter(str(folder), purge_step=start.step)
        lines = [f"    {key}: {value}" for key, value in start.config.items()]
        self._writer.add_text("config", "\n".join([start.run_name, "", *lines]), start.step)
        start.say(f"metrics also go to TensorBoard: tensorboard --logdir {folder}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class TrackioTracker:
    """A local trackio dashboard (`trackio show`); its own environment variables (TRACKIO_DIR, TRACKIO_SPACE_ID) apply.

    A run's name there ends with a few letters of its own: trackio takes up a run by its name, and two folders may have
    the same one. Steps that come again are logged again, since trackio takes none back.
    """

    def __init__(self, start: TrackerStart) -> None:
        self._trackio = _load("trackio", "trackio")
        name = start.run_name
        if start.resume_id is not None:
            name += "-" + hashlib.sha256(start.resume_id.encode()).hexdigest()[:6]
        with _quiet():
            self._run = self._trackio.init(
                project=PROJECT, name=name, config=dict(start.config), resume="allow" if start.step else "never"
            )
        place = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL") or self._trackio.TRACKIO_DIR
        start.say(
            f"metrics also go to trackio as {name}, in {place}: trackio show --project {PROJECT} (trackers=none: not)"
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        with _quiet():
            self._trackio.finish()  # of this run: else trackio ends it once more when the process ends, and says so


class WandbTracker:
    """Weights & Biases; its own environment variables (WANDB_MODE, WANDB_ENTITY) apply.

    A resumed run goes on under its id; wandb leaves out steps that come again.
    """

    def __init__(self, start: TrackerStart) -> None:
        resumable = {} if start.resume_id is None else {"id": _wandb_id(start.resume_id), "resume": "allow"}
        self._run = _load("wandb", "wandb").init(
            project=PROJECT, name=start.run_name, dir=str(start.folder), config=dict(start.config), **resumable
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what a library prints: the run's display says the same in its own words."""
    with redirect_stdout(io.StringIO()):
        yield


def _wandb_id(text: str) -> str:
    """Without the characters that wandb refuses in an id; the last 64, where a start time stands."""
    return re.sub(r"[^\w.-]", "-", text, flags=re.ASCII)[-64:]


class GuardedTracker:
    """Keeps a tracker's failures away from the run: the first one is warned of and switches it off."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker = tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._guard(f"while logging step {step}", lambda: self._tracker.log(step, metrics))

    def finish(self) -> None:
        self._guard("while finishing", self._tracker.finish)

    def _guard(self, when: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - training must not end with a tracker
            self._tracker = NoTracker()
            warnings.warn(
                f"tracker {self._name!r} failed {when} ({type(error).__name__}: {error}) and is switched "
                "off; the run goes on and metrics.jsonl has every number",
                TrackerWarning,
                stacklevel=3,
            )


TRACKERS: Mapping[str, Callable[[TrackerStart], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
}


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The trackers that a setting names, without "none", and with what "auto" stands for here: trackio, where it is
    installed, or what the environment variable SPARRING_TRACKERS names.

    Raises:
        TrackerError: SPARRING_TRACKERS names an unknown one.
    """
    auto = _auto() if AUTO in names else []
    every = [inner for name in names for inner in (auto if name == AUTO else [name])]
    return tuple(name for name in dict.fromkeys(every) if name != NONE)


def _auto() -> list[str]:
    given = os.environ.get(STANDS_FOR_AUTO)
    if given is None:
        return ["trackio"] if _is_there("trackio") else []
    named = [name.strip() for name in given.split(",") if name.strip()]
    for name in named:
        require_known(name, auto=False, where=f"{STANDS_FOR_AUTO}: ")
    return named


def open_tracker(
    name: str | None,
    run_name: str,
    folder: Path,
    config: Mapping[str, Any],
    *,
    step: int = 0,
    resume_id: str | None = None,
    say: Say = lambda _: None,
) -> Tracker:
    """Start the tracker called `name`, guarded against its own failures; None, "none", "auto" undecided: a silent one.

    step: the first that will be logged; what an earlier session of the run logged from there on is replaced where
    the tracker can. resume_id: the same in every session of a run and in no other run. say: told where to look.

    Raises TrackerError where the name is unknown, the package is missing or the tracker does not start.
    """
    if name in (None, NONE, AUTO):
        return NoTracker()
    require_known(name)
    try:
        return GuardedTracker(name, TRACKERS[name](TrackerStart(run_name, folder, config, step, resume_id, say)))
    except TrackerError:
        raise
    except Exception as error:
        raise TrackerError(
            f"tracker {name!r} did not start: {type(error).__name__}: {error}. "
            "Put that right or set the tracker to none"
        ) from error


def require_known(name: str, *, auto: bool = True, where: str = "") -> None:
    """Raise TrackerError, with the nearest name, where there is no such tracker ("none" is one, and "auto")."""
    if name not in (known := [*TRACKERS, *([AUTO] if auto else []), NONE]):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TrackerError(f"{where}unknown tracker {name!r}: {hint}choose from {', '.join(known[:-1])} or none")


def _is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _load(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TrackerError(
            f"tracker {extra!r} needs `pip install 'sparring[{extra}]'` ({error}); or set the tracker to none"
        ) from error
