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

from sparring.card import facts, published, results
from sparring.evaluation.comparison import Evaluation
from sparring.report.samples import Moment, sample_moments

T = TypeVar("T")
Row = Mapping[str, Any]
Lines = tuple[tuple[str, str], ...]
Series = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Lineage:
    """Through which stages the run's model came.

    Attributes:
        stages: (facts, results) of each, as (name, text); this run's last.
        ended: the last one's results are in.
        other: what else the record holds.
    """

    stages: tuple[tuple[Lines, Lines], ...] = ()
    ended: bool = False
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The parts of a run that could be read.

    Attributes:
        path: the run's folder.
        rows: metrics by step, oldest first; where a step was written twice the later value counts.
        evaluation: base against trained, None before the evaluation.
        config: the resolved settings as written, None where there are none.
        lineage: the stages up to this run.
        untested: the run ended without a held-out test, because its domain has none.
        moments: sample turns, early to late.
        notes: one sentence for each part that is missing or damaged.
    """

    path: Path
    rows: tuple[Row, ...] = ()
    evaluation: Evaluation | None = None
    config: str | None = None
    lineage: Lineage = field(default_factory=Lineage)
    untested: bool = False
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
    lineage = _part(path / "lineage.json", _read_lineage, notes) or Lineage()
    untested = lineage.ended and not (path / "evaluation.json").exists()
    return Run(
        path=path,
        rows=rows,
        evaluation=None if untested else _part(path / "evaluation.json", _read_evaluation, notes),
        config=_part(path / "config.yaml", lambda file: file.read_text(encoding="utf-8"), notes),
        lineage=lineage,
        untested=untested,
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


def _read_evaluation(file: Path) -> Evaluation:
    return Evaluation.from_json(_json(file))


def _read_lineage(file: Path) -> Lineage:
    data = _json(file)
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, found {type(data).__name__}")  # noqa: TRY004 - a damaged file
    stages = published(data.pop("stages", []))
    try:
        told = tuple((tuple(facts(stage)), tuple(results(stage))) for stage in stages)
        return Lineage(told, bool(stages) and "results" in stages[-1], data)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"a stage is damaged ({error!r})") from error


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
