"""Charts over steps: one method with a line for each metric, or a panel for each metric with a line for each method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from sparring.report.drawing import (
    AREA_POINTS,
    COLOURS,
    MUTED,
    PAPER,
    REFERENCE,
    SIZE,
    Dash,
    Panel,
    binned,
    canvas,
    label,
    legend,
    running_mean,
    steps_axis,
)
from sparring.report.methods import Curve, Method
from sparring.report.numbers import is_number
from sparring.report.run import Row

AREA_REACH = 0.05
"""The running mean's, of the heights of areas; see Chart.reach."""


@dataclass(frozen=True)
class Drawn:
    """A line as it was drawn."""

    method: Method
    key: str
    curve: Curve
    colour: str

    def distance(self, value: float) -> float:
        """How near the line comes to a value."""
        return float(np.abs(self.curve.smooth_P - value).min())

    def at(self, step: float) -> float:
        """The line's height."""
        return float(np.interp(step, self.curve.steps_P, self.curve.smooth_P))


Decoration = Callable[[Axes, Sequence[Drawn]], None]


@dataclass(frozen=True)
class Chart:
    """What to draw of which metrics.

    Attributes:
        lines: metric → what it is called, and its colour where one method is drawn alone.
        share: the metrics lie between 0 and 1.
        dots: measured seldom: every value is marked, and none is averaged.
        reach: the running mean's, to either side, as a share of the points.
        decorate: draws what belongs to the lines: references, limits, marks.
    """

    section: str
    name: str
    title: str
    caption: str
    lines: Mapping[str, tuple[str, str]]
    share: bool = False
    dots: bool = False
    reach: float = 0.025
    decorate: Decoration = lambda axes, drawn: None

    def panels(self, methods: Sequence[Method]) -> Iterator[Panel]:
        """One panel for one method; for several a panel for each metric that any of them has."""
        if len(methods) == 1:
            (method,) = methods
            lines = [(method, key, what, colour, "solid") for key, (what, colour) in self.lines.items()]
            yield from self._panel(self.name, self.title, lines, keyed=False)
            return
        for key, (what, _) in self.lines.items():
            alone = len(self.lines) == 1
            lines = [(method, key, method.name, method.colour, method.dash) for method in methods]
            name, title = (self.name, self.title) if alone else (f"{self.name}-{what}", f"{self.title}: {label(what)}")
            yield from self._panel(name, title, lines, keyed=True)

    def _panel(
        self, name: str, title: str, lines: Sequence[tuple[Method, str, str, str, Dash]], keyed: bool
    ) -> Iterator[Panel]:
        drawn: list[Drawn] = []
        figure, axes = canvas()
        for method, key, what, colour, dash in lines:
            curve = method.curve(key, self.reach)
            if curve is not None:
                drawn.append(Drawn(method, key, curve, colour))
                self._line(axes, drawn[-1], label(what), dash, crowded=len(lines) > 3)
        if not drawn:
            return
        if self.share:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        self.decorate(axes, drawn)
        steps_axis(axes)
        if len(lines) > 1 or len(axes.get_legend_handles_labels()[1]) > 1:  # one of several still has to be named
            legend(figure, axes)
        yield Panel(self.section, name, title, self.caption, figure, keyed)

    def _line(self, axes: Axes, drawn: Drawn, name: str, dash: Dash, crowded: bool) -> None:
        curve, colour = drawn.curve, drawn.colour
        values_P = curve.values_P if self.dots else curve.smooth_P
        marker = "o" if self.dots or len(values_P) == 1 else None
        if curve.low_P is not None and curve.high_P is not None:
            axes.fill_between(curve.steps_P, curve.low_P, curve.high_P, color=colour, alpha=0.15, linewidth=0)
        elif len(values_P) > 12 and not self.dots and not crowded:
            axes.plot(curve.steps_P, curve.values_P, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(
            curve.steps_P,
            values_P,
            color=colour,
            linewidth=1.8,
            linestyle=dash,
            marker=marker,
            markersize=3.5,
            label=name,
        )


@dataclass(frozen=True)
class Stack:
    """Stacked areas over steps; beyond the palette the smallest parts are one "other".

    Attributes:
        parts: metric → what it is called.
        share: the parts add up to 1 at most.
        beside: a metric of steps that count even where they have none of the parts.
    """

    section: str
    name: str
    title: str
    caption: str
    parts: Mapping[str, str]
    share: bool = False
    beside: str = ""

    def panels(self, methods: Sequence[Method]) -> Iterator[Panel]:
        """A panel for each method that has the parts, with one colour a part in all."""
        shown = self._shown(methods)
        for method in methods:
            name, title = (self.name, self.title) if len(methods) == 1 else (
                f"{self.name}-{method.name}",
                f"{self.title}: {label(method.name)}",
            )  # fmt: skip
            steps, heights = self._heights(method)
            if not len(steps) or not any(height.any() for height in heights.values()):
                continue
            bands = {key: heights[key] for key in shown}
            rest = [heights[key] for key in self.parts if key not in shown]
            figure, axes = canvas((SIZE[0], SIZE[1] + 0.5))
            axes.stackplot(
                steps,
                [*bands.values(), *([np.sum(rest, axis=0)] if rest else [])],
                labels=[*(label(self.parts[key]) for key in bands), *(["other"] if rest else [])],
                colors=COLOURS,
                edgecolor=PAPER,
                linewidth=0.5,
                joinstyle="round",
            )
            axes.set_ylim(bottom=0)
            if self.share:
                axes.set_ylim(0, 1)
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            steps_axis(axes)
            legend(figure, axes)
            yield Panel(self.section, name, title, self.caption, figure)

    def _shown(self, methods: Sequence[Method]) -> list[str]:
        """The parts that get a colour: all, or the largest over all methods."""
        if len(self.parts) <= len(COLOURS):
            return list(self.parts)
        sums = dict.fromkeys(self.parts, 0.0)
        for method in methods:
            for key, height in self._heights(method)[1].items():
                sums[key] += float(height.sum())
        largest = sorted(sums, key=lambda key: -sums[key])[: len(COLOURS) - 1]
        return [key for key in self.parts if key in largest]

    def _heights(self, method: Method) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """Steps [P] and each part's height [P], over the steps that every run has: several seeds' mean.

        A part absent from a step that has others had none: 0.
        """
        wanted = (*self.parts, *((self.beside,) if self.beside else ()))
        runs = [{row["step"]: row for row in run.rows if any(key in row for key in wanted)} for run in method.runs]
        steps = np.array(sorted(set(runs[0]).intersection(*runs[1:])), dtype=np.int64)
        heights = {
            key: running_mean(binned(steps, heights_P, AREA_POINTS), AREA_REACH)
            for key, heights_P in ((key, _mean_heights(runs, steps.tolist(), key)) for key in self.parts)
        }
        return binned(steps, steps.astype(float), AREA_POINTS), heights


def _mean_heights(runs: Sequence[Mapping[int, Row]], steps: Sequence[int], key: str) -> npt.NDArray[np.float64]:
    return np.array([fmean(_height(rows[step], key) for rows in runs) for step in steps], dtype=np.float64)


def _height(row: Mapping[str, object], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and is_number(value) else 0.0


def level_line(value: float) -> Decoration:
    """A dashed line across, such as parity at ½."""

    def draw(axes: Axes, drawn: Sequence[Drawn]) -> None:
        axes.axhline(value, color=MUTED, linewidth=1.2, linestyle=REFERENCE)

    return draw
