"""Rules that turn a step's figures into ok, warning or alarm.

A rule looks at the median of a figure's last `patience` values: one odd step moves nothing. It is an alarm only after a
warning period: nothing is acted on that was not warned of some steps before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from fnmatch import fnmatchcase
from statistics import fmean, median
from typing import Any, ClassVar

LONGEST = 10_000
"""Most steps that a rule may look back on."""


class Level(IntEnum):
    """How a run is."""

    OK = 0
    WARNING = 1
    ALARM = 2


class Direction(Enum):
    """On which side of a threshold a figure is bad; the threshold itself is still good."""

    ABOVE = 1
    BELOW = -1

    def beyond(self, value: float, threshold: float | None) -> bool:
        """Whether a value is on the bad side; never where there is no threshold."""
        return threshold is not None and (value - threshold) * self.value > 0


class Baseline(ABC):
    """What of a figure is compared with the thresholds; start is its mean in the run's first steps."""

    needs_start: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, value: float, start: float) -> float:
        """In the thresholds' unit."""

    @abstractmethod
    def told(self, value: float, start: float) -> str:
        """In words."""


@dataclass(frozen=True)
class Absolute(Baseline):
    """The figure itself."""

    needs_start: ClassVar[bool] = False

    def __call__(self, value: float, start: float) -> float:
        """See Baseline."""
        return value

    def told(self, value: float, start: float) -> str:
        """See Baseline."""
        return f"is {value:.3g}"


@dataclass(frozen=True)
class Difference(Baseline):
    """How much more it is than in the run's first steps."""

    def __call__(self, value: float, start: float) -> float:
        """See Baseline."""
        return value - start

    def told(self, value: float, start: float) -> str:
        """See Baseline."""
        return f"is {value:.3g}, {value - start:+.3g} against {start:.3g} at the start"


@dataclass(frozen=True)
class Ratio(Baseline):
    """How many times what it was in the run's first steps; 1 where that was not above 0."""

    def __call__(self, value: float, start: float) -> float:
        """See Baseline."""
        return value / start if start > 1e-9 else 1.0

    def told(self, value: float, start: float) -> str:
        """See Baseline."""
        return f"is {value:.3g}, {self(value, start):.3g} times the {start:.3g} at the start"


@dataclass(frozen=True)
class Rule:
    """When a figure is worth a warning or an alarm.

    Args:
        name: what settings and messages call it.
        figure: a figure's name; * stands for anything, and each figure that fits is judged by itself.
        direction: the bad side of the thresholds.
        warning, alarm: thresholds, in what `baseline` makes of the figure; None: never.
        patience: values whose median is judged; before there are as many, nothing is.
        baseline: the figure itself, or its drift from the run's first steps.
        advice: what to look at, for the message.
    """

    name: str
    figure: str
    direction: Direction
    warning: float | None
    alarm: float | None
    patience: int = 10
    baseline: Baseline = field(default_factory=Absolute)
    advice: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.patience <= LONGEST:
            raise ValueError(
                f"health.rules.{self.name}: patience must be at least 1 and at most {LONGEST}, not {self.patience}"
            )
        if self.warning is not None and self.direction.beyond(self.warning, self.alarm):
            raise ValueError(
                f"health.rules.{self.name}: values {self.direction.name.lower()} a threshold are bad, so the warning "
                f"({self.warning:g}) must come before the alarm ({self.alarm:g})"
            )

    def judge(self, value: float, start: float) -> Level:
        """The level of a figure, whatever its past."""
        measured = self.baseline(value, start)
        if self.direction.beyond(measured, self.alarm):
            return Level.ALARM
        return Level.WARNING if self.direction.beyond(measured, self.warning) else Level.OK


@dataclass(frozen=True)
class Finding:
    """One figure that a rule finds bad.

    Attributes:
        level: what it amounts to; an alarm's threshold passed within the warning period is still a warning.
        value: the median that was judged; start: the figure's mean in the run's first steps (NaN: none yet).
        steps: how long it has been at least a warning, steps.
    """

    rule: Rule
    figure: str
    level: Level
    value: float
    start: float
    steps: int

    def __str__(self) -> str:
        told = self.rule.baseline.told(self.value, self.start)
        limits = ((word, limit) for word, limit in (("warning", self.rule.warning), ("alarm", self.rule.alarm)))
        where = ", ".join(f"{word} {self.rule.direction.name.lower()} {x:g}" for word, x in limits if x is not None)
        advice = f"; {self.rule.advice}" if self.rule.advice else ""
        return f"health {self.level.name.lower()} {self.rule.name!r}: {self.figure} {told} ({where}){advice}"


@dataclass(frozen=True)
class Status:
    """How a run is after a step: the worst finding's level, every finding, and those that were not told yet.

    A finding is told once as a warning and once as an alarm, and again after it was over.
    """

    level: Level
    findings: tuple[Finding, ...] = ()
    news: tuple[Finding, ...] = ()


@dataclass
class _Course:
    """One figure's course under one rule."""

    first: list[float] = field(default_factory=list[float])
    window: deque[float] = field(default_factory=deque[float])
    steps: int = 0
    told: Level = Level.OK


class Health:
    """Judges a run step by step.

    Args:
        rules: each name once.
        warning_period: steps that a rule must have been at least a warning before it is an alarm.
        first_steps: values whose mean is what a drift is measured from.
    """

    def __init__(self, rules: Sequence[Rule], warning_period: int, first_steps: int) -> None:
        if len({rule.name for rule in rules}) < len(rules):
            raise ValueError("health: two rules of one name")
        self._rules = {rule.name: rule for rule in rules}
        self._warning_period, self._first_steps = warning_period, first_steps
        self._courses: dict[str, dict[str, _Course]] = {rule.name: {} for rule in rules}

    def step(self, figures: Mapping[str, float]) -> Status:
        """Judge one step. A figure that is absent, NaN or infinite leaves its rule where it was."""
        findings: list[Finding] = []
        news: list[Finding] = []
        for rule in self._rules.values():
            courses = self._courses[rule.name]
            for name in figures:
                if name not in courses and fnmatchcase(name, rule.figure):
                    courses[name] = _Course(window=deque(maxlen=rule.patience))
            for name in sorted(courses):
                course = courses[name]
                finding = self._follow(rule, name, course, figures.get(name))
                if finding is None:
                    course.told = Level.OK
                    continue
                findings.append(finding)
                if finding.level > course.told:
                    course.told = finding.level
                    news.append(finding)
        level = max((finding.level for finding in findings), default=Level.OK)
        return Status(level, tuple(findings), tuple(news))

    def _follow(self, rule: Rule, name: str, course: _Course, value: float | None) -> Finding | None:
        if value is not None and math.isfinite(value):
            if len(course.first) < self._first_steps:
                course.first.append(float(value))
            course.window.append(float(value))
        started = len(course.first) >= self._first_steps or not rule.baseline.needs_start
        if len(course.window) < rule.patience or not started:
            return None
        middle, start = median(course.window), fmean(course.first)
        passed = rule.judge(middle, start)
        course.steps = course.steps + 1 if passed else 0
        level = Level.WARNING if passed and course.steps <= self._warning_period else passed
        return Finding(rule, name, level, middle, start, course.steps) if passed else None

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {
            rule: {
                name: {"first": list(c.first), "window": list(c.window), "steps": c.steps, "told": int(c.told)}
                for name, c in courses.items()
            }
            for rule, courses in self._courses.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave; a rule that was not there then starts anew."""
        for rule in self._rules.values():
            self._courses[rule.name] = {
                name: _Course(list(c["first"]), deque(c["window"], rule.patience), c["steps"], Level(c["told"]))
                for name, c in state.get(rule.name, {}).items()
            }


def overridden(rules: Sequence[Rule], changes: Mapping[str, Mapping[str, float | None]]) -> list[Rule]:
    """The rules with some of their thresholds changed by name: {"kl": {"alarm": 0.8}}; None: never.

    Raises:
        ValueError: no rule of that name; anything but warning, alarm and patience; a patience that is no whole number;
            a warning beyond its alarm.
    """
    unknown = set(changes) - {rule.name for rule in rules}
    if unknown:
        known = ", ".join(rule.name for rule in rules)
        raise ValueError(f"health.rules: there is no rule {sorted(unknown)[0]!r}; there are {known}")
    changed: list[Rule] = []
    for rule in rules:
        change: dict[str, Any] = dict(changes.get(rule.name, {}))
        other = set(change) - {"warning", "alarm", "patience"}
        if other:
            raise ValueError(f"health.rules.{rule.name} has warning, alarm and patience, not {sorted(other)[0]!r}")
        if "patience" in change:
            if change["patience"] is None or change["patience"] != int(change["patience"]):
                raise ValueError(f"health.rules.{rule.name}: patience is a number of steps, not {change['patience']}")
            change["patience"] = int(change["patience"])
        changed.append(replace(rule, **change))
    return changed
