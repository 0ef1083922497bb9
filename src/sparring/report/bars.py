"""Evaluations as figures: methods by subsets, and one run's win rate by family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sparring.card import published
from sparring.evaluation.comparison import Comparison, Evaluation
from sparring.evaluation.methods import Methods
from sparring.report.drawing import COLOURS, ENTITY, INK, MUTED, REFERENCE, SIZE, STYLE, Panel, canvas, label, legend

RESULT = "Result"
INTERVALS = "95\u00a0% intervals"
THICK = 0.15  # inches of a bar


def method_bars(methods: Methods, colours: Sequence[str] = (), keyed: bool = False, whiskers: str = INTERVALS) -> Panel:
    """Bars with intervals: subsets down the side, a bar for each method; as figures 2 and 3 of arXiv 2509.07414.

    colours: one a method, else the palette's. keyed: see Panel. whiskers: what the intervals are.
    """
    subsets, count = methods.subsets, len(methods.rows)
    shades = colours or [COLOURS[at % len(COLOURS)] for at in range(count)]
    with rc_context(STYLE):
        figure, axes = canvas((SIZE[0], 0.85 + (THICK * count + 0.12) * len(subsets) + 0.2 * (count > 1)))
        for index, ((name, figures), colour) in enumerate(zip(methods.rows, shades, strict=True)):
            there = [(at, figures[subset]) for at, subset in enumerate(subsets) if subset in figures]
            thick = THICK / (THICK * count + 0.12)
            places = [at + (index - (count - 1) / 2) * thick for at, _ in there]
            values = np.array([one.value for _, one in there])
            lows, highs = np.array([one.ci95 or (one.value, one.value) for _, one in there]).reshape(-1, 2).T
            spread = (np.maximum(values - lows, 0), np.maximum(highs - values, 0))
            axes.barh(places, values, 0.88 * thick, color=colour, label=label(name))
            axes.errorbar(values, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.6)
        if methods.metric == "win_rate":
            axes.axvline(0.5, color=MUTED, linewidth=1.2, linestyle=REFERENCE)
        axes.set_yticks(range(len(subsets)), [label(subset) for subset in subsets], color=INK)
        axes.set_ylim(len(subsets) - 0.45, -0.55)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, max(axes.get_xlim()[1], 0.05))  # where all is 0, an axis all the same
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if count > 1:
            legend(figure, axes)
    return Panel(RESULT, f"methods-{methods.name}", titled(methods), _caption(methods, whiskers), figure, keyed)


def titled(methods: Methods) -> str:
    """What is shown; a base that is a folder by its last two parts."""
    against = f" against {published(methods.against)}" if methods.against and methods.metric == "win_rate" else ""
    return f"{methods.name}: {methods.metric.replace('_', ' ')}{against}"


def _caption(methods: Methods, whiskers: str) -> str:
    parity = " Dashed: parity." if methods.metric == "win_rate" else ""
    told = f" Mind: {methods.note}." if methods.note else ""
    return f"Whiskers: {whiskers}.{parity}{told}"


def win_rates(evaluation: Evaluation) -> Panel:
    """One run's win rate by family with its interval: the families down the side, easy beside hard."""
    paths = [path for path, _ in evaluation.rows() if path]
    deep = any(len(path) > 1 for path in paths)
    tops = [path[0] for path in paths if len(path) == 1] if deep else [""]
    names = ["all", *dict.fromkeys(path[-1] for path in paths if len(path) == 1 + deep)]
    with rc_context(STYLE):
        figure, axes = canvas((SIZE[0], 1.1 + 0.14 * len(names) * (1 + len(tops))))
        for lane, top in enumerate(tops):
            rows = [_row(evaluation, top, name) for name in names]
            places = [at + (lane - (len(tops) - 1) / 2) * 0.32 for at, row in enumerate(rows) if row]
            shown = [row for row in rows if row]
            rates, lows, highs = np.array([(row.win_rate, *row.ci95) for row in shown]).T
            colour = ENTITY.get(top, COLOURS[(lane + 2) % len(COLOURS)] if top else COLOURS[0])
            spread = [np.maximum(rates - lows, 0), np.maximum(highs - rates, 0)]
            axes.errorbar(
                rates, places, xerr=spread, fmt="o", color=colour, markersize=4, linewidth=1.6, label=label(top)
            )
        axes.axvline(0.5, color=MUTED, linewidth=1.2, linestyle=REFERENCE)
        axes.set_yticks(range(len(names)), [label(name) for name in names], color=INK)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        low, high = axes.get_xlim()
        axes.set_xlim(max(-0.02, min(low, 0.42)), min(1.02, max(high, 0.58)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if deep:
            legend(figure, axes)
    caption = "Against the base, ties counting one half; bars are 95\u00a0% intervals, dashed is parity."
    return Panel(RESULT, "win-rates", "Win rate by family", caption, figure)


def _row(evaluation: Evaluation, top: str, name: str) -> Comparison | None:
    if name == "all":
        return evaluation.subsets[top] if top else evaluation.overall
    return evaluation.subsets.get(f"{top}/{name}" if top else name)
