"""What the health rules have to say on a chart: thresholds as lines, warnings and alarms as marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from matplotlib.axes import Axes

from sparring.health.rules import Absolute, Baseline, Difference, Direction, Level, Ratio, Rule
from sparring.report.charts import Drawn
from sparring.report.drawing import ALARM, MUTED, PAPER, WARNING
from sparring.report.methods import Method
from sparring.report.run import Run
from sparring.report.watched import limits

# Where a threshold lies on the figure's own axis, given the figure's start.
PLACED: Mapping[type[Baseline], Callable[[float, float], float]] = {
    Absolute: lambda limit, start: limit,
    Difference: lambda limit, start: start + limit,
    Ratio: lambda limit, start: start * limit,
}
SHAPES = {Level.WARNING: ("warning", WARNING, "^"), Level.ALARM: ("alarm", ALARM, "D")}
NEAR = 0.3  # of the axis: a threshold further off would flatten the lines
APART = 0.09  # of the axis: what two words need


@dataclass(frozen=True)
class _Limit:
    """A threshold on the figure's own axis."""

    level: Level
    value: float
    direction: Direction

    def passed_by(self, line: Drawn) -> bool:
        ends = (float(line.curve.smooth_P.min()), float(line.curve.smooth_P.max()))
        return any(self.direction.beyond(end, self.value) for end in ends)


def _is_near(value: float, line: Drawn, axis: tuple[float, float], among: int) -> bool:
    """Whether the axis can show a threshold without flattening its lines; one of several lines must be near itself."""
    bottom, top = axis
    reach = NEAR * (top - bottom)
    return bottom - reach <= value <= top + reach and (among == 1 or line.distance(value) <= reach)


@dataclass(frozen=True)
class Limits:
    """Draws thresholds, marks and roll-backs of some methods' health.

    A threshold that is measured from a run's own start is drawn where one run is drawn alone.
    """

    methods: Sequence[Method]

    def __call__(self, axes: Axes, drawn: Sequence[Drawn]) -> None:
        """See Decoration."""
        bottom, top = axes.get_ylim()
        height = top - bottom
        shown = {
            (limit.value, limit.level)
            for line in drawn
            for limit in self._limits(line.key)
            if limit.passed_by(line) or _is_near(limit.value, line, (bottom, top), among=len(drawn))
        }
        labelled: list[float] = []
        for value, level in sorted(shown):
            apart = all(abs(value - other) > APART * height for other in labelled)
            labelled += [value] if apart else []
            self._line(axes, level, value, labelled=apart)
        told: set[Level] = set()
        for line in drawn:
            for level, step in _marks(line):
                word, colour, shape = SHAPES[level]
                axes.plot(
                    [step], [line.at(step)], shape, color=colour, markersize=7, markeredgecolor=PAPER, zorder=5,
                    linestyle="none", label="_" if level in told else word,
                )  # fmt: skip
                told.add(level)
        if self._alone is not None:
            roll_back_lines(axes, self._alone)

    @property
    def _alone(self) -> Run | None:
        runs = [run for method in self.methods for run in method.runs]
        return runs[0] if len(runs) == 1 else None

    def _limits(self, key: str) -> Iterator[_Limit]:
        for rule in _rules(self.methods, key):
            start = 0.0
            if rule.baseline.needs_start:
                if self._alone is None:
                    continue
                steps, values = self._alone.series(key)
                first = values[steps > 0][: self._alone.health.first_steps]
                if len(first) < self._alone.health.first_steps:
                    continue
                start = float(np.mean(first))
            for level, limit in ((Level.WARNING, rule.warning), (Level.ALARM, rule.alarm)):
                if limit is not None:
                    yield _Limit(level, PLACED[type(rule.baseline)](limit, start), rule.direction)

    def _line(self, axes: Axes, level: Level, value: float, labelled: bool) -> None:
        word, colour, _ = SHAPES[level]
        axes.axhline(value, color=colour, linewidth=1.1, linestyle=(0, (1.5, 2)))
        axes.annotate(
            word if labelled else "",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 1.5),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=colour,
        )


def _rules(methods: Sequence[Method], key: str) -> list[Rule]:
    """The rules that judge a metric, where all runs have the same."""
    found = [
        [rule for rule in run.health.rules if fnmatchcase(key, rule.figure)]
        for method in methods
        for run in method.runs
    ]
    return found[0] if all(rules == found[0] for rules in found) else []


def _marks(line: Drawn) -> Iterator[tuple[Level, int]]:
    """Where a line's figure was first warned of, and where the warning became an alarm."""
    for run in line.method.runs:
        for episode in run.health.episodes:
            if episode.first.figure != line.key:
                continue
            if episode.start != episode.alarm:
                yield Level.WARNING, episode.start
            if episode.alarm is not None:
                yield Level.ALARM, episode.alarm


def roll_back_lines(axes: Axes, run: Run) -> None:
    """A line up at each step that the run went back to."""
    for step, times in run.health.rollbacks:
        axes.axvline(step, color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)))
        axes.annotate(
            "rolled back" if times == 1 else f"rolled back ×{times}",
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-2, -2),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=7,
            color=MUTED,
        )


def rules_on(methods: Sequence[Method], keys: Sequence[str]) -> str:
    """The rules that judge some metrics, in words; "" where there are none."""
    rules = {rule.name: rule for key in keys for rule in _rules(methods, key)}
    told = [f"{name}: {limits(rule)}" for name, rule in rules.items()]
    return f"{'Rule' if len(told) == 1 else 'Rules'} {'; '.join(told)}." if told else ""
