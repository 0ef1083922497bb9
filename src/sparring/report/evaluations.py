"""The evaluations that runs have in common, method by method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from sparring.evaluation.document import Document, Figure
from sparring.evaluation.methods import OVERALL, Methods
from sparring.report.methods import Method

OWN = "held-out"
"""The kind of a run's comparison on its own domain."""


def shared(methods: Sequence[Method], notes: list[str]) -> list[Methods]:
    """The evaluations that at least two methods have; one method's: all it has.

    A method of several seeds has their mean, and the lowest and the highest seed in place of an interval.
    """
    names = dict.fromkeys(name for method in methods for run in method.runs for name in run.documents)
    found: list[Methods] = []
    for name in names:
        have = [(method, [run for run in method.runs if name in run.documents]) for method in methods]
        have = [(method, runs) for method, runs in have if runs]
        if len(have) < min(2, len(methods)):
            continue
        documents = [(run.name, run.documents[name]) for _, runs in have for run in runs]
        try:
            side_by_side = Methods.side_by_side(documents)
        except ValueError as error:
            notes.append(f"Not drawn: {error}.")
            continue
        rows = tuple((method.name, _mean([run.documents[name] for run in runs])) for method, runs in have)
        found.append(replace(side_by_side, rows=rows))
    return found


def _mean(documents: Sequence[Document]) -> dict[str, Figure]:
    every = [{**document.subsets, OVERALL: document.overall} for document in documents]
    if len(every) == 1:
        return every[0]
    common = [name for name in every[0] if all(name in figures for figures in every)]
    return {name: together([figures[name] for figures in every]) for name in common}


def together(figures: Sequence[Figure]) -> Figure:
    """Several seeds' mean, and the lowest and the highest in place of an interval; one's own figure."""
    if len(figures) == 1:
        return figures[0]
    values = [figure.value for figure in figures]
    return Figure(figures[0].n, fmean(values), (min(values), max(values)))


def main_figure(methods: Sequence[Method], found: Sequence[Methods]) -> Methods | None:
    """The win rates to tell first: on the domain's own held-out questions where there are any."""
    rates = [one for one in found if one.metric == "win_rate"]
    own = {name for m in methods for run in m.runs for name, told in run.documents.items() if told.kind == OWN}
    return next((one for one in rates if one.name in own), rates[0] if rates else None)
