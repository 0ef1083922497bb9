"""Experiment trackers behind one small protocol; metrics.jsonl is written whether there is one or not."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

PROJECT = "sparring"


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


class NoTracker:
    """Shows nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def finish(self) -> None:
        pass


class TensorBoardTracker:
    """Event files in `<folder>/tensorboard`, for `tensorboard --logdir`."""

    def __init__(self, run_name: str, folder: Path, config: Mapping[str, Any]) -> None:
        board = _load("torch.utils.tensorboard", "tensorboard")
        self._writer = board.SummaryWriter(str(folder / "tensorboard"))
        lines = [f"    {key}: {value}" for key, value in config.items()]
        self._writer.add_text("config", "\n".join([run_name, "", *lines]))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


class TrackioTracker:
    """A local trackio dashboard (`trackio show`)."""

    def __init__(self, run_name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._run = _load("trackio", "trackio").init(project=PROJECT, name=run_name, config=dict(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


class WandbTracker:
    """Weights & Biases; its own environment variables (WANDB_MODE, WANDB_ENTITY) apply."""

    def __init__(self, run_name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._run = _load("wandb", "wandb").init(project=PROJECT, name=run_name, dir=str(folder), config=dict(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


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


TRACKERS: Mapping[str, Callable[[str, Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
}


def open_tracker(name: str | None, run_name: str, folder: Path, config: Mapping[str, Any]) -> Tracker:
    """Start the tracker called `name` (None or "none": a silent one), guarded against its own failures.

    Raises TrackerError where the name is unknown, the package is missing or the tracker does not start.
    """
    if name is None or name == "none":
        return NoTracker()
    if name not in TRACKERS:
        near = difflib.get_close_matches(name, [*TRACKERS, "none"], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TrackerError(f"unknown tracker {name!r}: {hint}choose from {', '.join(TRACKERS)} or none")
    try:
        return GuardedTracker(name, TRACKERS[name](run_name, folder, config))
    except TrackerError:
        raise
    except Exception as error:
        raise TrackerError(
            f"tracker {name!r} did not start: {type(error).__name__}: {error}. "
            "Put that right or set the tracker to none"
        ) from error


def _load(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TrackerError(
            f"tracker {extra!r} needs `pip install 'sparring[{extra}]'` ({error}); or set the tracker to none"
        ) from error
