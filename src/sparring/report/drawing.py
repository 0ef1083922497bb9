"""How a panel of the report is drawn: one small figure each, so that a phone shows it at its own size.

A panel is drawn once. Its PNG and SVG files keep the light colours; in the page's SVG each colour of the palette
becomes a CSS variable (`--ink`, `--c1` …), so that one drawing is right on a light and a dark page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID, PAPER = "#1d2430", "#646c79", "#dfe2e7", "#fdfdfe"
WARNING, ALARM = "#c27c0a", "#cf2f3c"
COLOURS = ("#2a78d6", "#e5632f", "#18a273", "#6a50c7", "#d99a06", "#d6568f", "#3f8f1f", "#8a93a3")
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--card",
    WARNING: "--warning",
    ALARM: "--alarm",
    **{colour: f"--c{number}" for number, colour in enumerate(COLOURS, 1)},
}
Dash = str | tuple[int, tuple[int, ...]]
REFERENCE: Dash = (0, (4, 3))
DASHES: tuple[Dash, ...] = ("solid", (0, (5, 1.5)), (0, (1.2, 1.2)))  # pyright: ignore[reportAssignmentType]
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
}
SIZE = (4.3, 2.6)  # inches of 72 points: about the width of a phone
CURVE_POINTS, AREA_POINTS = 400, 40
LONGEST_LABEL = 28


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        section: the part of the page it belongs to.
        name: its files' stem; different from every other panel's.
        title, caption: the caption says in a sentence how to read it.
        keyed: the page's own key names the lines, so that the legend is for the files alone.
    """

    section: str
    name: str
    title: str
    caption: str
    figure: Figure
    keyed: bool = False

    def svg(self) -> str:
        """An `<svg>` element to put into the page, coloured by the page's CSS variables."""
        legends = self.figure.legends[:]
        if self.keyed:  # taken away, not hidden: a hidden one keeps its room
            self.figure.legends.clear()
        text = self._saved("svg", fonttype="none", transparent=True)  # text stays text, in the page's font
        self.figure.legends[:] = legends
        text = re.sub(r"<metadata>.*?</metadata>", "", text.decode(), flags=re.DOTALL)
        text = text[text.index("<svg") :]
        # Ids are unique in the page, not in a drawing; the page sets the size, the viewBox keeps the shape.
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", text)
        text = re.sub(r"^<svg\b[^>]*", lambda tag: re.sub(r' (?:width|height)="[^"]*"', "", tag.group()), text)
        return re.sub("#[0-9a-f]{6}", lambda found: _variable(found.group()), text)

    def files(self) -> dict[str, bytes]:
        """The panel with its title on light paper, for documents: as png, and as svg that needs no fonts."""
        self._set_heading(self.title)
        found: dict[str, bytes] = {}
        for form in ("png", "svg"):
            found[form] = self._saved(form, fonttype="path", dpi=200, facecolor=PAPER)
            self.figure.set_layout_engine("none")  # as laid out for the first
        self.figure.set_layout_engine("constrained")
        self._set_heading("")
        return found

    def _saved(self, form: str, fonttype: str, **how: Any) -> bytes:
        buffer = io.BytesIO()
        # No date: equal drawings are equal files.
        how |= {"metadata": {"Date": None}} if form == "svg" else {}
        style = {**STYLE, "svg.hashsalt": self.name, "svg.fonttype": fonttype}
        with mpl.rc_context(style), _quiet_glyphs():
            self.figure.savefig(buffer, format=form, **how)
        return buffer.getvalue()

    def _set_heading(self, text: str) -> None:
        # The layout puts a legend and a figure's title into the same place, so a legend carries the title.
        font = FontProperties(size=10, weight="bold")
        if self.figure.legends:
            self.figure.legends[0].set_title(text, prop=font)
        else:
            heading = self.figure.suptitle(text, x=0.02, ha="left", color=INK, fontproperties=font)
            heading.set_in_layout(bool(text))


def named_apart(panels: Sequence[Panel]) -> list[Panel]:
    """The panels, numbered where two have one name: names come from metrics, which may be called anything."""
    met: dict[str, int] = {}
    found: list[Panel] = []
    for panel in panels:
        name = re.sub(r"[^a-z0-9]+", "-", panel.name.lower()).strip("-") or "panel"
        met[name] = met.get(name, 0) + 1
        found.append(replace(panel, name=name if met[name] == 1 else f"{name}--{met[name]}"))
    return found


def canvas(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """An empty figure."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def steps_axis(axes: Axes) -> None:
    """Steps from left to right."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("step", loc="right")
    axes.margins(x=0.02)
    first, last = axes.get_xlim()
    if last - first < 1:  # a single step so far
        axes.set_xlim(round(first) - 1, round(first) + 1)


def legend(figure: Figure, axes: Axes) -> None:
    """What the colours mean, above the drawing."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = max(1, min(len(labels), 54 // (max(map(len, labels)) + 6)))
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
    """A name as a drawing shows it."""
    # Matplotlib leaves labels that begin with an underscore out of a legend.
    name = name.lstrip("_") or name
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def binned(steps_P: npt.NDArray[np.int64], values_P: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
    """Means over at most `most` runs of neighbouring points: a long run stays a small page."""
    if len(steps_P) <= most:
        return values_P
    edges = np.linspace(0, len(steps_P), most + 1).astype(int)
    return np.add.reduceat(values_P, edges[:-1]) / np.diff(edges)


def running_mean(values_P: npt.NDArray[np.float64], reach: float) -> npt.NDArray[np.float64]:
    """Centred mean over this share of the points to either side, fewer towards the ends."""
    points = int(len(values_P) * reach)
    sums = np.concatenate([[0.0], np.cumsum(values_P)])
    at = np.arange(len(values_P))
    starts, ends = np.maximum(at - points, 0), np.minimum(at + points + 1, len(values_P))
    return (sums[ends] - sums[starts]) / (ends - starts)


def _variable(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour


def _quiet_glyphs() -> warnings.catch_warnings:
    """A task named in a script that the font lacks is drawn as boxes, not reported once for each letter."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
