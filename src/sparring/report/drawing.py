"""How a panel of the report is drawn: one small figure each, so that a phone shows it at its own size.

A panel is drawn once. Its PNG keeps the light colours; in its SVG each colour of the palette becomes a CSS
variable of the page (`--ink`, `--c1` …), so that one drawing is right on a light and a dark page.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sparring.report.run import Run, is_number

INK, MUTED, GRID, PAPER = "#1d2430", "#646c79", "#dfe2e7", "#fdfdfe"
COLOURS = ("#2a78d6", "#e5632f", "#18a273", "#6a50c7", "#d99a06", "#d6568f", "#3f8f1f", "#8a93a3")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--card"} | {
    colour: f"--c{number}" for number, colour in enumerate(COLOURS, 1)
}
# An entity keeps its colour through the page.
ENTITY = {"solver": COLOURS[0], "challenger": COLOURS[1], "easy": COLOURS[2], "hard": COLOURS[3]}
STYLE: dict[Any, Any] = {  # Matplotlib types its keys by a union of literals
    "font.size": 9.5,
    "font.family": "sans-serif",
    "text.parse_math": False,  # a task may be named "$x$"
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text: sharp, selectable, in the page's font
}
SIZE = (4.3, 2.6)  # inches of 72 points: about the width of a phone
CURVE_POINTS, AREA_POINTS = 400, 40
LONGEST_LABEL = 22


@dataclass(frozen=True)
class Panel:
    """One figure. `name` is its file's stem; `caption` says in a sentence how to read it."""

    section: str
    name: str
    title: str
    caption: str
    figure: Figure

    def svg(self) -> str:
        """An `<svg>` element to put into the page, coloured by the page's CSS variables."""
        buffer = io.StringIO()
        with mpl.rc_context({**STYLE, "svg.hashsalt": self.name}), _quiet_glyphs():
            self.figure.savefig(buffer, format="svg", transparent=True)
        text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
        text = text[text.index("<svg") :]
        # Ids are unique in the page, not in a drawing; the page sets the size, the viewBox keeps the shape.
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", text)
        text = re.sub(r"^<svg\b[^>]*", lambda tag: re.sub(r' (?:width|height)="[^"]*"', "", tag.group()), text)
        return re.sub("#[0-9a-f]{6}", lambda found: _variable(found.group()), text)

    def png(self) -> bytes:
        """The panel with its title on light paper, for documents."""
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE), _quiet_glyphs():
            self._set_heading(self.title)
            self.figure.savefig(buffer, format="png", dpi=200, facecolor=PAPER)
            self._set_heading("")
        return buffer.getvalue()

    def _set_heading(self, text: str) -> None:
        # The layout puts a legend and a figure's title into the same place, so a legend carries the title.
        font = FontProperties(size=10, weight="bold")
        if self.figure.legends:
            self.figure.legends[0].set_title(text, prop=font)
        else:
            heading = self.figure.suptitle(text, x=0.02, ha="left", color=INK, fontproperties=font)
            heading.set_in_layout(bool(text))


def curves(
    run: Run, heading: tuple[str, str, str, str], lines: dict[str, tuple[str, str]], share: bool = False
) -> Panel | None:
    """Curves over steps: every value faint, a running mean in front; None where nothing was measured."""
    measured = {key: series for key in lines if len((series := run.series(key))[0])}
    if not measured:
        return None
    figure, axes = canvas()
    for key, (steps, values) in measured.items():
        name, colour = lines[key]
        steps_P, values_P = _binned(steps, values, CURVE_POINTS)
        if len(steps_P) > 12:
            axes.plot(steps_P, values_P, color=colour, linewidth=0.8, alpha=0.3)
        marker = "o" if len(steps_P) == 1 else None
        axes.plot(steps_P, _running_mean(values_P), color=colour, linewidth=1.8, marker=marker, label=label(name))
    if share:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    steps_axis(axes)
    if len(lines) > 1:  # one of several entities still has to be named
        legend(figure, axes)
    return Panel(*heading, figure)


def stack(
    run: Run, heading: tuple[str, str, str, str], parts: list[tuple[str, str]], share: bool = False, beside: str = ""
) -> Panel | None:
    """Stacked areas over steps; beyond the palette the smallest parts are one "other".

    beside: a metric of steps that count even where they have none of the parts.
    """
    rows = [row for row in run.rows if any(key in row for key in (beside, *(key for _, key in parts)))]
    if not rows or not parts:
        return None
    steps = np.array([row["step"] for row in rows])
    # A part absent from a step that has others had none: 0.
    heights = {
        name: _binned(
            steps,
            np.array([float(row[key]) if is_number(row.get(key)) else 0.0 for row in rows]),
            AREA_POINTS,
        )[1]
        for name, key in parts
    }
    ranked = sorted(heights, key=lambda name: -heights[name].sum())
    kept = [name for name in heights if name in ranked[: len(COLOURS) - 1]] if len(ranked) > len(COLOURS) else ranked
    bands = {name: heights[name] for name in heights if name in kept}
    if len(kept) < len(ranked):
        bands["other"] = np.sum([heights[name] for name in ranked if name not in kept], axis=0)
    figure, axes = canvas((SIZE[0], SIZE[1] + 0.5))
    axes.stackplot(
        _binned(steps, steps.astype(float), AREA_POINTS)[0],
        list(bands.values()),
        labels=[label(name) for name in bands],
        colors=COLOURS,
        edgecolor=PAPER,
        linewidth=0.5,
        joinstyle="round",
    )
    axes.set_ylim(bottom=0)
    if share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    steps_axis(axes)
    legend(figure, axes)
    return Panel(*heading, figure)


def canvas(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def steps_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("step", loc="right")
    axes.margins(x=0.02)
    first, last = axes.get_xlim()
    if last - first < 1:  # a single step so far
        axes.set_xlim(round(first) - 1, round(first) + 1)


def legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=1)
    columns = max(1, min(len(labels), 54 // (longest + 6)))
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        fontsize=9,
        handlelength=1.3,
        columnspacing=1.2,
        alignment="left",
    )


def label(name: str) -> str:
    # Matplotlib leaves labels that begin with an underscore out of a legend.
    name = name.lstrip("_") or name
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def _binned(
    steps_P: npt.NDArray[np.int64], values_P: npt.NDArray[np.float64], most: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means over at most `most` runs of neighbouring points: a long run stays a small page."""
    if len(steps_P) <= most:
        return steps_P.astype(float), values_P
    edges = np.linspace(0, len(steps_P), most + 1).astype(int)
    sizes = np.diff(edges)
    return np.add.reduceat(steps_P.astype(float), edges[:-1]) / sizes, np.add.reduceat(values_P, edges[:-1]) / sizes


def _running_mean(values_P: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centred mean over about a twentieth of the points, shorter towards the ends."""
    reach = len(values_P) // 40
    sums = np.concatenate([[0.0], np.cumsum(values_P)])
    at = np.arange(len(values_P))
    starts, ends = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values_P))
    return (sums[ends] - sums[starts]) / (ends - starts)


def _variable(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour


def _quiet_glyphs() -> warnings.catch_warnings:
    """A task named in a script that the font lacks is drawn as boxes, not reported once for each letter."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
