"""Evaluations of kind lsr as a run's folder holds them: what models saw, and how often they were right without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparring.evaluation.document import Document, Figure, is_own, read_document
from sparring.report.numbers import is_number

KIND = "lsr"
FIGURES = {
    "accuracy": "accuracy",
    "lsr": "LSR",
    "sufficient": "sees enough",
    "described": "describes",
    "reader/all": "reader right",
    "reader/sufficient": "where it was enough",
    "reader/insufficient": "where not",
}
"""Figures of a document, by the way to each, and their headings."""


@dataclass(frozen=True)
class Looked:
    """One evaluation of kind lsr. own: of the run's own model. fidelity: (part, precision or recall) → figure."""

    document: Document
    own: bool
    figures: Mapping[str, Figure]
    fidelity: Mapping[tuple[str, str], float]
    unread: int


def read_looked(file: Path, run: Path) -> Looked:
    """A document of kind lsr in a run's folder.

    Raises:
        ValueError: it is damaged.
    """
    document = read_document(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    overall = content["overall"]
    told = overall.get("unread")
    unread = told if isinstance(told, int) else 0
    figures = {KIND: replace(document.overall, n=document.overall.n - unread)}
    for name in FIGURES:
        figure = _figure(overall, name.split("/"), document.overall.n)
        if name != KIND and figure is not None:
            figures[name] = figure
    return Looked(
        document,
        is_own(document.model, run),
        figures,
        dict(_fidelity(content.get("fidelity"))),
        unread,
    )


def _figure(content: Any, way: Sequence[str], n: int) -> Figure | None:
    for name in way:
        content = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not is_number(content.get("value")):
        return None
    count, given = content.get("n"), content.get("ci95")
    interval = tuple(map(float, given)) if isinstance(given, list) and all(map(is_number, given)) else ()
    return Figure(
        count if isinstance(count, int) else n,
        float(content["value"]),
        (interval[0], interval[1]) if len(interval) == 2 else None,
    )


def _fidelity(content: Any) -> Iterator[tuple[tuple[str, str], float]]:
    for part, figures in content.items() if isinstance(content, Mapping) else ():
        for name in ("precision", "recall"):
            if isinstance(figures, Mapping) and is_number(figures.get(name)):
                yield (str(part), name), float(figures[name])
