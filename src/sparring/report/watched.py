"""What the health rules found in a run: judged again from its metrics, so that it can be shown where and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.files import RunFolderError
from sparring.health.defaults import RULES
from sparring.health.figures import Said
from sparring.health.monitor import Monitor
from sparring.health.replay import said_in
from sparring.health.rules import Absolute, Baseline, Difference, Finding, Health, Level, Ratio, Rule, Status
from sparring.report.numbers import is_number
from sparring.runfolder import RunFolder
from sparring.settings.health import HealthConfig

Row = Mapping[str, Any]


@dataclass
class Episode:
    """One figure under one rule, from its first warning until it was well again.

    Attributes:
        first, worst: what was found at first, and where it was first an alarm (the first where it never was).
        levels: (step, level) of every step of it.
        ongoing: it lasted to the end of what is recorded.
    """

    first: Finding
    worst: Finding
    levels: list[tuple[int, Level]] = field(default_factory=list[tuple[int, Level]])
    ongoing: bool = True

    @property
    def start(self) -> int:
        """The step of the first warning."""
        return self.levels[0][0]

    @property
    def end(self) -> int:
        """The last step."""
        return self.levels[-1][0]

    @property
    def alarm(self) -> int | None:
        """The step of the first alarm."""
        return next((step for step, level in self.levels if level is Level.ALARM), None)

    @property
    def measured(self) -> str:
        """What was measured, in words."""
        return self.worst.rule.baseline.told(self.worst.value, self.worst.start).replace(" -", " −")

    @property
    def limits(self) -> str:
        """The rule's thresholds, in words."""
        return limits(self.worst.rule)


@dataclass(frozen=True)
class Watched:
    """A run's health.

    Attributes:
        rules: those the run was judged by, with its thresholds.
        first_steps: values whose mean is the start that a rule compares with.
        episodes: what was found, by their first step.
        levels: (step, the worst level) of every step.
        rollbacks: (step, times): the run had gone back to this step so often when it went on from it.
        replayed: the run recorded no figures of health.
        added: step → figures of health that the run did not record and that were worked out now.
    """

    rules: tuple[Rule, ...] = ()
    first_steps: int = 0
    episodes: tuple[Episode, ...] = ()
    levels: tuple[tuple[int, Level], ...] = ()
    rollbacks: tuple[tuple[int, int], ...] = ()
    replayed: bool = False
    added: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    @property
    def alarms(self) -> list[Episode]:
        """Those that became an alarm."""
        return [episode for episode in self.episodes if episode.alarm is not None]


UNITS: Mapping[type[Baseline], str] = {Absolute: "", Difference: " from the start", Ratio: " times the start"}


def limits(rule: Rule) -> str:
    """A rule's thresholds in words: "warning above 2, alarm above 4 times the start"."""
    side = rule.direction.name.lower()
    sign = "+" if isinstance(rule.baseline, Difference) else ""
    pairs = (("warning", rule.warning), ("alarm", rule.alarm))
    told = [f"{word} {side} {limit:{sign}g}".replace("-", "−") for word, limit in pairs if limit is not None]
    return ", ".join(told) + UNITS[type(rule.baseline)] if told else "never"


def watched(path: Path, rows: Sequence[Row], settings: Any, notes: list[str]) -> Watched:
    """Judge a run's steps; settings: the `health` section of its configuration, None where it has none."""
    try:
        config = HealthConfig() if settings is None else HealthConfig.model_validate(settings)
    except ValueError as error:
        notes.append(f"config.yaml: health could not be read, so the default rules judge ({_line(error)})")
        config = HealthConfig()
    steps = [row for row in rows if row["step"] > 0]
    recorded = any(name.startswith("health/") for row in steps for name in row)
    rules = tuple(config.judged_by() if steps else RULES)
    found = _judged(steps, rules, config) if recorded else _replayed(path, steps, config, notes)
    levels: list[tuple[int, Level]] = []
    added: dict[int, dict[str, float]] = {}
    episodes: list[Episode] = []
    for step, figures, status in found:
        levels.append((step, status.level))
        added[step] = figures
        _follow(episodes, step, status)
    return Watched(
        rules,
        config.first_steps,
        tuple(episodes),
        tuple(levels),
        _rollbacks(steps),
        bool(steps) and not recorded,
        added,
    )


Judged = Iterator[tuple[int, dict[str, float], Status]]


def _judged(rows: Sequence[Row], rules: Sequence[Rule], config: HealthConfig) -> Judged:
    """From the figures that the run recorded."""
    health = Health(rules, config.warning_period, config.first_steps)
    for row in rows:
        yield row["step"], {}, health.step(_figures(row))


def _replayed(path: Path, rows: Sequence[Row], config: HealthConfig, notes: list[str]) -> Judged:
    """From the metrics, and figures of texts from the turns of the steps whose turns were kept."""
    monitor, folder = Monitor(config), RunFolder(path)
    kept = set(folder.turn_steps())
    unread: list[str] = []
    for row in rows:
        step, told = row["step"], Said()
        if step in kept:
            try:
                told = said_in(folder.read_turns([step]))
            except (RunFolderError, LookupError, TypeError, ValueError, AttributeError) as error:
                unread.append(f"step {step}: {_line(error)}")
        figures, status = monitor.judge(told, _figures(row))
        yield step, figures, status
    if unread:
        notes.append(f"The turns of {len(unread)} step(s) tell nothing of the run's health ({unread[0]}).")


def _figures(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "step" and is_number(value)}


def _follow(episodes: list[Episode], step: int, status: Status) -> None:
    """Carry on the episodes that go on, and begin those of a figure that was well before."""
    open_ = {(episode.first.rule.name, episode.first.figure): episode for episode in episodes if episode.ongoing}
    for finding in status.findings:
        episode = open_.pop((finding.rule.name, finding.figure), None)
        if episode is None:
            episode = Episode(finding, finding)
            episodes.append(episode)
        if finding.level > episode.worst.level:
            episode.worst = finding
        episode.levels.append((step, finding.level))
    for over in open_.values():
        over.ongoing = False


def _rollbacks(rows: Sequence[Row]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    before = 0
    for row in rows:
        times = int(_figures(row).get("health/rollbacks", before))
        if times > before:
            found.append((row["step"] - 1, times))
        before = times
    return tuple(found)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
