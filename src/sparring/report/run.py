"""A run's folder as the report reads it: whatever is there, and in words what is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sparring.evaluation.comparison import Evaluation
from sparring.report.samples import Moment, sample_moments

T = TypeVar("T")
Row = Mapping[str, Any]
Series = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Run:
    """The parts of a run that could be read.

    Attributes:
        path: the run's folder.
        rows: metrics by step, oldest first; where a step was written twice the later value counts.
        evaluation: base against trained, None before the evaluation.
        config: the resolved settings as written, None where there are none.
        lineage: which model, stage and commit the run came from.
        moments: sample turns, early to late.
        notes: one sentence for each part that is missing or damaged.
    """

    path: Path
    rows: tuple[Row, ...] = ()
    evaluation: Evaluation | None = None
    config: str | None = None
    lineage: Mapping[str, Any] = field(default_factory=dict)
    moments: tuple[Moment, ...] = ()
    notes: tuple[str, ...] = ()

    def series(self, key: str) -> Series:
        """(steps [P], values [P]) of the steps that have a finite number under `key`; both may be empty."""
        points = [(row["step"], row[key]) for row in self.rows if is_number(row.get(key))]
        return np.array([step for step, _ in points], dtype=np.int64), np.array([value for _, value in points])

    def keys(self, prefix: str) -> list[str]:
        """The metrics under `prefix` (such as "kl/") that have a number, in the order written."""
        return list(
            dict.fromkeys(key for row in self.rows for key in row if key.startswith(prefix) and is_number(row[key]))
        )

    def ends(self, key: str) -> tuple[float, float] | None:
        """(first, last) value of a metric; None where it was never measured."""
        _, values = self.series(key)
        return (float(values[0]), float(values[-1])) if len(values) else None

    @property
    def last_step(self) -> int | None:
        """The last step with metrics; None before the first."""
        return self.rows[-1]["step"] if self.rows else None


def read_run(path: Path) -> Run:
    """Read what is there of a finished, running or damaged run.

    Raises:
        ValueError: the folder does not exist or holds no part of a run.
    """
    names = ("config.yaml", "metrics.jsonl", "evaluation.json", "lineage.json", "turns")
    if not any((path / name).exists() for name in names):
        raise ValueError(f"{path} is no run folder: it holds none of {', '.join(names)}")
    notes: list[str] = []
    rows = _part(path / "metrics.jsonl", lambda file: _read_metrics(file, notes), notes) or ()
    if not rows and (path / "metrics.jsonl").exists():
        notes.append("metrics.jsonl holds no step yet.")
    moments, damaged = sample_moments(path / "turns")
    notes += damaged
    return Run(
        path=path,
        rows=rows,
        evaluation=_part(path / "evaluation.json", lambda file: Evaluation.from_json(_json(file)), notes),
        config=_part(path / "config.yaml", lambda file: file.read_text(encoding="utf-8"), notes),
        lineage=_part(path / "lineage.json", _read_object, notes) or {},
        moments=moments,
        notes=tuple(notes),
    )


def _part(file: Path, read: Callable[[Path], T], notes: list[str]) -> T | None:
    if not file.exists():
        notes.append(f"{file.name} is not there (yet).")
        return None
    try:
        return read(file)
    except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        notes.append(f"{file.name} could not be read: {error}")
        return None


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _read_object(file: Path) -> dict[str, Any]:
    data = _json(file)
    if isinstance(data, dict):
        return data
    raise ValueError(f"expected an object, found {type(data).__name__}")


def _read_metrics(file: Path, notes: list[str]) -> tuple[Row, ...]:
    merged: dict[int, dict[str, Any]] = {}
    unread = 0
    for row in _lines(file):
        step = row.get("step") if isinstance(row, dict) else None
        if isinstance(step, int) and not isinstance(step, bool):
            merged.setdefault(step, {}).update(row)
        else:
            unread += 1
    if unread:
        notes.append(f"metrics.jsonl: {unread} line(s) without a readable step were left out.")
    return tuple(merged[step] for step in sorted(merged))


def _lines(file: Path) -> Iterator[Any]:
    # Not splitlines(): JSON allows U+2028 and other line ends inside a string.
    for line in file.read_bytes().decode("utf-8", errors="replace").split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:  # the last line of a run that was killed while writing
                yield None


def is_number(value: Any) -> bool:
    """True of a finite number; a metric may be null, NaN or text."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
