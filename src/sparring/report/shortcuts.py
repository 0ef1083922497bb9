"""Accuracy against the Language Shortcut Rate: the evaluations of kind lsr of the runs on a page, side by side.

A run's folder may hold those of other models too, its start's for instance; each document says whose it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean

from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from sparring.card import published
from sparring.evaluation.document import Figure
from sparring.evaluation.methods import Methods
from sparring.report.bars import INTERVALS
from sparring.report.drawing import INK, SIZE, STYLE, Panel, canvas, label, legend
from sparring.report.evaluations import together
from sparring.report.methods import Method
from sparring.report.numbers import is_number
from sparring.report.seen import FIGURES, KIND, Looked

SHORTCUTS = "Accuracy against language shortcuts"
FIDELITY = ("all", "asked", "unasked")
_MARKS = ("D", "s", "^", "v")


@dataclass(frozen=True)
class Point:
    """A model, or a method's seeds as their mean with the lowest and the highest; method: None of another model."""

    name: str
    method: Method | None
    documents: Sequence[Looked]
    figures: Mapping[str, Figure]
    fidelity: Mapping[tuple[str, str], float]

    @classmethod
    def of(cls, name: str, method: Method | None, documents: Sequence[Looked]) -> Point:
        """From one document or several: of what all of them have."""
        figures = {
            way: together([one.figures[way] for one in documents])
            for way in FIGURES
            if all(way in one.figures for one in documents)
        }
        fidelity = {
            key: fmean(one.fidelity[key] for one in documents)
            for key in documents[0].fidelity
            if all(key in one.fidelity for one in documents)
        }
        return cls(name, method, documents, figures, fidelity)


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of several models. note: what was not the same for all."""

    name: str
    points: Sequence[Point]
    note: str | None

    @property
    def called(self) -> str:
        """How it was looked, where the name is the temperature's; else the name."""
        heats = {one.document.settings.get("temperature") for point in self.points for one in point.documents}
        heat = heats.pop() if len(heats) == 1 else None
        if not is_number(heat) or self.name not in (KIND, f"{KIND}-t{heat:g}"):
            return self.name
        return f"temperature {heat:g}" if heat else "greedy"

    @property
    def columns(self) -> list[str]:
        """The figures that any of them has."""
        return [name for name in FIGURES if any(name in point.figures for point in self.points)]

    @property
    def unread(self) -> int:
        """Descriptions without a verdict, of all of them."""
        return sum(one.unread for point in self.points for one in point.documents)

    @property
    def faithful(self) -> list[str]:
        """The parts of descriptions whose faithfulness any of them has."""
        found = dict.fromkeys(part for point in self.points for part, _ in point.fidelity)
        return [*(part for part in FIDELITY if part in found), *(part for part in found if part not in FIDELITY)]


def evaluated(methods: Sequence[Method]) -> list[Evaluated]:
    """The evaluations by name; in each the other models first, then the methods."""
    runs = [run for method in methods for run in method.runs]
    names = dict.fromkeys(looked.document.name for run in runs for looked in run.looked)
    return [_of_name(name, methods) for name in sorted(names)]


def _of_name(name: str, methods: Sequence[Method]) -> Evaluated:
    others: dict[str, dict[str, Looked]] = {}
    points: list[Point] = []
    for method in methods:
        found = [one for run in method.runs for one in run.looked if one.document.name == name]
        own = [one for one in found if one.own]
        if own:
            points.append(Point.of(method.name, method, own))
        for one in found:
            if not one.own:  # a copy of one document in every run's folder is one document
                same = json.dumps([one.document.settings, one.document.overall.value], default=str, sort_keys=True)
                others.setdefault(_called(one.document.model), {})[same] = one
    points = [*(Point.of(model, None, list(copies.values())) for model, copies in others.items()), *points]
    pairs = [(point.name, one.document) for point in points for one in point.documents]
    return Evaluated(name, points, Methods.side_by_side(pairs).note)


def _called(model: str) -> str:
    """A model's name; of a local path the last part."""
    return PurePath(model).name if PurePath(model).is_absolute() else str(published(model))


def drawn(found: Sequence[Evaluated]) -> Iterable[Panel]:
    """Each evaluation's points."""
    return map(_panel, found)


def _panel(one: Evaluated) -> Panel:
    seeds = any(point.method and len(point.documents) > 1 for point in one.points)
    with rc_context(STYLE):
        figure, axes = canvas((SIZE[0], SIZE[1] + 0.5))
        marks = iter(_MARKS * len(one.points))
        for point in one.points:
            if not {"accuracy", "lsr"} <= point.figures.keys():
                continue
            rate, right = point.figures["lsr"], point.figures["accuracy"]
            axes.errorbar(
                [rate.value],
                [right.value],
                xerr=_spread(rate),
                yerr=_spread(right),
                fmt="o" if point.method else next(marks),
                color=point.method.colour if point.method else INK,
                markerfacecolor=None if point.method else "none",
                markersize=6,
                linewidth=1.4,
                label=label(point.name),
            )
        axes.set_xlim(0, max(axes.get_xlim()[1], 0.02))
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.01))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(_percent)
        axes.set_xlabel("right without having seen: LSR", loc="right")
        axes.set_ylabel("right: accuracy", loc="top")
        legend(figure, axes)
    whiskers = f"{INTERVALS}; of several seeds, the lowest and the highest" if seeds else INTERVALS
    told = f" Mind: {one.note}." if one.note else ""
    caption = f"Up and to the left is better. Whiskers: {whiskers}.{told}"
    return Panel(SHORTCUTS, f"accuracy-against-{one.name}", f"Accuracy against LSR, {one.called}", caption, figure)


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.3g}%"


def _spread(figure: Figure) -> list[list[float]]:
    low, high = figure.ci95 or (figure.value, figure.value)
    return [[max(0.0, figure.value - low)], [max(0.0, high - figure.value)]]
