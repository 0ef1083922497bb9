"""A run's folder as the report reads it: whatever is there, and in words what is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from sparring.card import facts, published, results
from sparring.evaluation.comparison import Evaluation
from sparring.evaluation.document import Document, read_document
from sparring.evaluation.methods import evaluation_files
from sparring.report.numbers import is_number
from sparring.report.seen import KIND, Looked, read_looked
from sparring.report.tasks import by_task
from sparring.report.watched import Watched, watched

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
        versions: of the packages that trained this run.
        other: what else the record holds.
    """

    stages: tuple[tuple[Lines, Lines], ...] = ()
    ended: bool = False
    versions: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The parts of a run that could be read.

    Attributes:
        path: the run's folder.
        name: what the report calls it.
        rows: metrics by step, oldest first; where a step was written twice the later value counts. With them what is
            worked out from the turns: health/* that the run did not record, and tasks/*.
        evaluation: base against trained, None before the evaluation.
        documents: every evaluation by name, that one among them; but those of seeing.
        looked: evaluations of seeing, of this run's model and of others.
        config: the resolved settings as written, None where there are none.
        settings: the same as nested values, {} where they could not be read.
        lineage: the stages up to this run.
        untested: the run ended without a held-out test, because its domain has none.
        health: what the health rules found.
        notes: one sentence for each part that is missing or damaged.
    """

    path: Path
    name: str
    rows: tuple[Row, ...] = ()
    evaluation: Evaluation | None = None
    documents: Mapping[str, Document] = field(default_factory=dict)
    looked: tuple[Looked, ...] = ()
    config: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    lineage: Lineage = field(default_factory=Lineage)
    untested: bool = False
    health: Watched = field(default_factory=Watched)
    notes: tuple[str, ...] = ()

    def series(self, key: str) -> Series:
        """(steps [P], values [P]) of the steps that have a finite number under `key`; both may be empty."""
        points = [(row["step"], row[key]) for row in self.rows if is_number(row.get(key))]
        return np.array([step for step, _ in points], dtype=np.int64), np.array(
            [value for _, value in points], dtype=np.float64
        )

    def keys(self, prefix: str) -> list[str]:
        """The metrics under `prefix` (such as "kl/") that have a number, in the order written."""
        return list(
            dict.fromkeys(key for row in self.rows for key in row if key.startswith(prefix) and is_number(row[key]))
        )

    @property
    def last_step(self) -> int | None:
        """The last step with metrics; None before the first."""
        return self.rows[-1]["step"] if self.rows else None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read several runs, each once; their names differ.

    Raises:
        ValueError: no path, or one of them is no run's folder.
    """
    found = list(dict.fromkeys(path.resolve() for path in paths))
    if not found:
        raise ValueError("a report needs at least one run's folder")
    return [read_run(path, name) for path, name in zip(found, _names(found), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """Folder names; parent/name where two are called the same, the whole path where that does not tell them apart."""
    for tell in (lambda path: path.name, lambda path: f"{path.parent.name}/{path.name}"):
        names = [tell(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def read_run(path: Path, name: str | None = None) -> Run:
    """Read what is there of a finished, running or damaged run.

    Raises:
        ValueError: the folder does not exist or holds no part of a run.
    """
    parts = ("config.yaml", "metrics.jsonl", "evaluation.json", "lineage.json", "turns")
    if not any((path / part).exists() for part in parts):
        raise ValueError(f"{path} is no run folder: it holds none of {', '.join(parts)}")
    notes: list[str] = []
    rows = _part(path / "metrics.jsonl", lambda file: _read_metrics(file, notes), notes) or ()
    if not rows and (path / "metrics.jsonl").exists():
        notes.append("metrics.jsonl holds no step yet.")
    if not any((path / "turns").glob("*.parquet")):
        notes.append("No turns have been recorded (yet): checkpoint.turns_every says how often they are.")
    lineage = _part(path / "lineage.json", _read_lineage, notes) or Lineage()
    untested = lineage.ended and not (path / "evaluation.json").exists()
    evaluation = None if untested else _part(path / "evaluation.json", _read_evaluation, notes)
    config = _part(path / "config.yaml", lambda file: file.read_text(encoding="utf-8"), notes)
    settings = _settings(config, notes)
    health = watched(path, rows, settings.get("health"), notes)
    documents, looked = _documents(path, evaluation is not None, notes)
    tasks = by_task(path)
    return Run(
        path=path,
        name=name or path.resolve().name,
        rows=tuple({**row, **health.added.get(row["step"], {}), **tasks.get(row["step"], {})} for row in rows),
        evaluation=evaluation,
        documents=documents,
        looked=looked,
        config=config,
        settings=settings,
        lineage=lineage,
        untested=untested,
        health=health,
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
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _read_evaluation(file: Path) -> Evaluation:
    return Evaluation.from_json(_json(file))


def _documents(path: Path, own: bool, notes: list[str]) -> tuple[dict[str, Document], tuple[Looked, ...]]:
    """The run's evaluations by name, and those of seeing. own: whether evaluation.json could be read; if not, that was
    said already."""
    found: dict[str, Document] = {}
    looked: list[Looked] = []
    for file in evaluation_files(path):
        if file.parent == path and not own:
            continue
        try:
            document = read_document(file)
            if document.kind == KIND:
                looked.append(read_looked(file, path))
            else:
                found[document.name] = document
        except ValueError as error:
            notes.append(f"{file.name} could not be read: {error}")
    return found, tuple(looked)


def _settings(config: str | None, notes: list[str]) -> Mapping[str, Any]:
    try:
        settings = yaml.safe_load(config or "")
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2026-99-99 is a ValueError
        notes.append(f"config.yaml could not be read as settings: {' '.join(str(error).split())}")
        return {}
    if settings is not None and not isinstance(settings, Mapping):
        notes.append("config.yaml could not be read as settings: it holds no names with values")
        return {}
    return settings or {}


def _read_lineage(file: Path) -> Lineage:
    data = _json(file)
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, found {type(data).__name__}")  # noqa: TRY004 - a damaged file
    stages = published(data.pop("stages", []))
    try:
        told = tuple((tuple(facts(stage)), tuple(results(stage))) for stage in stages)
        last = stages[-1] if stages else {}
        return Lineage(told, "results" in last, dict(last.get("versions") or {}), data)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"a stage is damaged ({error!r})") from error


def _read_metrics(file: Path, notes: list[str]) -> tuple[Row, ...]:
    merged: dict[int, dict[str, Any]] = {}
    unread = 0
    for row in _lines(file):
        step = row.get("step") if isinstance(row, dict) else None
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53:
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
                yield json.loads(line, parse_int=_integer)
            except (ValueError, RecursionError):  # the last line of a run that was killed while writing
                yield None


def _integer(digits: str) -> int | float:
    """No number of hundreds of digits, which no float holds, comes further."""
    return int(digits) if len(digits) < 100 else inf
