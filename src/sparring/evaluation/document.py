"""`evaluation.json`: one form for every kind of evaluation. docs/evaluation.md describes it.

    {"schema": 1, "kind": "win-rate", "name": "alpaca_eval", "metric": "win_rate", "model": "runs/lsp", "base": "...",
     "overall": {"n": 805, "win_rate": 0.61, "ci95": [0.58, 0.64], ...}, "subsets": {"koala": {...}, ...},
     "settings": {...}}

Fractions are in [0, 1]. `overall` and each subset hold n, the figure that `metric` names, and its interval `ci95`;
what else they hold depends on the kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePath
from typing import Any

from sparring.evaluation.comparison import SCHEMA

KINDS = ("held-out", "win-rate", "alpaca-eval", "accuracy", "lm-eval", "lmms-eval", "lsr")
FOLDER = "evaluations"
"""Where a run keeps the evaluations beside its domain's own held-out test."""


@dataclass(frozen=True)
class Figure:
    """One number with its interval, both fractions in [0, 1]; n: items."""

    n: int
    value: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Document:
    """What every kind has in common. `metric`: win_rate (against `base`), accuracy, or lsr (lower is better); settings
    are the kind's own."""

    kind: str
    name: str
    metric: str
    model: str
    base: str | None
    overall: Figure
    subsets: Mapping[str, Figure]
    settings: Mapping[str, Any]


def document(
    kind: str,
    name: str,
    metric: str,
    *,
    model: str,
    base: str | None,
    body: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of a file; body has `overall`, `subsets` and what a kind adds. A model that is a folder here is
    written as `placed` names it."""
    assert kind in KINDS
    head = {"schema": SCHEMA, "kind": kind, "name": name, "metric": metric, "model": placed(model), "base": base}
    return {**head, **{key: value for key, value in body.items() if key != "schema"}, "settings": dict(settings)}


def read_document(path: Path) -> Document:
    """A file's common part.

    Raises:
        ValueError: it can't be read, or is no evaluation of this schema; the message names the file and the field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: can't be read as an evaluation ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{path}: is no evaluation of schema {SCHEMA}")
    metric = str(content.get("metric", "win_rate"))
    subsets, settings = content.get("subsets", {}), content.get("settings", {})
    if not isinstance(subsets, dict) or not isinstance(settings, dict):
        raise ValueError(f"{path}: subsets and settings must be objects")  # noqa: TRY004 - a file
    return Document(
        str(content.get("kind", "held-out")),
        str(content.get("name", "held-out")),
        metric,
        str(content.get("model", path.parent.name)),
        None if content.get("base") is None else str(content["base"]),
        _figure(content.get("overall"), metric, f"{path}: overall"),
        {name: _figure(entry, metric, f"{path}: subsets.{name}") for name, entry in subsets.items()},
        settings,
    )


def placed(model: str) -> str:
    """A model as another working directory can know it again: a folder that was named by . or .., and a run that was
    named by a link, by the last two parts of where it lies; anything else as it was given."""
    given = Path(model)
    if not given.is_dir():
        return model
    parts, lies = given.parts, given.resolve().parts
    # A link to a plain model stays: its name says more than the place in a store that it leads to.
    named = bool(parts) and ".." not in parts and not _is_run(given)
    told = parts not in ((), ("model",)) and lies[-len(parts) :] == parts
    return model if named or told else PurePath(*lies[-2:]).as_posix()


def _is_run(folder: Path) -> bool:
    """Whether this is a run's folder, or that of its model."""
    run = folder.parent if folder.name == "model" else folder
    return (run / "config.yaml").is_file()


def is_own(model: str, run: Path) -> bool:
    """Whether an evaluation's model, as `placed` names it, is this run's.

    >>> is_own("runs/lsp", Path("/home/runs/lsp")), is_own("runs/lsp/model", Path("/home/runs/lsp"))
    (True, True)
    >>> is_own("runs/grpo", Path("/home/runs/lsp"))
    False
    """
    parts = PurePath(model).parts
    parts = parts[:-1] if parts[-1:] == ("model",) else parts
    return bool(parts) and run.resolve().parts[-len(parts) :] == parts


def slug(name: str) -> str:
    """A name that a file may have.

    >>> slug("/models/Llama 3.2 (3B)/")
    'models-Llama-3.2-3B'
    """
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:].lstrip("-.") or "model"


def _figure(entry: Any, metric: str, where: str) -> Figure:
    try:
        interval = entry["ci95"]
        figure = Figure(
            int(entry["n"]),
            float(entry[metric]),
            None if interval is None else (float(interval[0]), float(interval[1])),
        )
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: needs n, {metric} and ci95 ({type(error).__name__}: {error})") from error
    if not all(map(isfinite, (figure.value, *(figure.ci95 or ())))):
        raise ValueError(f"{where}: {metric} and ci95 must be numbers")
    return figure
