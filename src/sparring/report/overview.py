"""Several methods at a glance: a headline and a table with a row for each method, and for each of its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from sparring.evaluation.document import Figure
from sparring.evaluation.methods import OVERALL, Methods
from sparring.report.methods import Method
from sparring.report.numbers import NBSP, number, percent, span
from sparring.report.run import Run
from sparring.report.shortcuts import Evaluated
from sparring.stages import ends

Columns = tuple[tuple[str, str, Callable[[float], str]], ...]
"""Heading, metric and format of each; a column has a metric's value at the start and at the end."""
FIGURES: Columns = (
    ("V, mean reward", "game/V", number),
    ("valid queries", "game/valid_share", percent),
    ("KL, Solver", "kl/solver", number),
)
OF_SEEING: Columns = (
    ("payoff, perceiver", "payoff/perceiver", number),
    ("right from the description", "vision/reader/all", percent),
    ("KL, perceiver", "kl/perceiver", number),
)


@dataclass(frozen=True)
class Line:
    """A row: a method's (part: False), or one run's of a method of several.

    win_rate, interval: "" where there is none. cells: (at the start, at the end) of each column.
    health: in words; level: the worst that was found, 0 to 2.
    """

    name: str
    part: bool
    method: Method
    seed: str
    steps: str
    win_rate: str
    interval: str
    cells: tuple[tuple[str, str], ...]
    health: str
    level: int


def headline(methods: Sequence[Method], rates: Methods | None, looked: Sequence[Evaluated] = ()) -> str:
    """How many, and from where to where their shortcuts go, or where nobody looked their win rates; no claim which is
    best, which the intervals must say."""
    runs = sum(len(method.runs) for method in methods)
    if len(methods) == 1:
        many = f"{methods[0].name}, {runs} seeds"
    else:
        many = f"{len(methods)} methods side by side" if runs > len(methods) else f"{runs} runs side by side"
    shortcuts = sorted((p.figures["lsr"].value, p.name) for one in looked[:1] for p in one.points if p.method)
    if len(shortcuts) > 1:
        (low, few), (high, most) = shortcuts[0], shortcuts[-1]
        return f"{many}: language shortcuts from {percent(low)} ({few}) to {percent(high)} ({most}) of the answers"
    if rates is None:
        return f"{many}; no evaluation that they have in common"
    found = sorted((figures[OVERALL].value, name) for name, figures in rates.rows)
    (low, worst), (high, best) = found[0], found[-1]
    against = "against their base" if rates.against else "each against its own base"
    if len(found) == 1:
        _, figures = rates.rows[0]
        interval = figures[OVERALL].ci95
        told = f" ({span(*interval)} over seeds)" if interval else ""
        return f"{many}: win{NBSP}rate {percent(high)}{told} against the base"
    return f"{many}: win{NBSP}rates from {percent(low)} ({worst}) to {percent(high)} ({best}), {against}"


def columns_of(methods: Sequence[Method]) -> Columns:
    """The table's: of seeing, where every method looks at pictures."""
    return OF_SEEING if all(method.has("payoff/perceiver") for method in methods) else FIGURES


def table(methods: Sequence[Method], rates: Methods | None) -> list[Line]:
    """Every method, each followed by its runs where it has several."""
    columns = columns_of(methods)
    return [line for method in methods for line in _lines(method, rates, columns)]


def _lines(method: Method, rates: Methods | None, columns: Columns) -> Iterator[Line]:
    figures = {} if rates is None else dict(rates.rows).get(method.name, {})
    yield _line(method.name, method, method.runs, figures.get(OVERALL), columns)
    if len(method.runs) > 1:
        for run in method.runs:
            document = None if rates is None else run.documents.get(rates.name)
            yield _line(run.name, method, (run,), None if document is None else document.overall, columns)


def _line(name: str, method: Method, runs: Sequence[Run], figure: Figure | None, columns: Columns) -> Line:
    level = max((level for run in runs for _, level in run.health.levels), default=0)
    return Line(
        name,
        len(runs) < len(method.runs),
        method,
        ", ".join(str(run.settings["seed"]) for run in runs if "seed" in run.settings),
        _range([run.last_step for run in runs if run.last_step is not None]),
        "" if figure is None else percent(figure.value),
        "" if figure is None or figure.ci95 is None else span(*figure.ci95),
        tuple(_ends(runs, key, show) for _, key, show in columns),
        _health(runs),
        int(level),
    )


def _range(steps: Sequence[int]) -> str:
    if not steps:
        return "0"
    low, high = min(steps), max(steps)
    return str(low) if low == high else f"{low}{NBSP}–{NBSP}{high}"


def _ends(runs: Sequence[Run], key: str, show: Callable[[float], str]) -> tuple[str, str]:
    pairs = [pair for run in runs if (pair := ends(run.rows, key))]
    if not pairs:
        return "", ""
    return show(fmean(first for first, _ in pairs)), show(fmean(last for _, last in pairs))


def _health(runs: Sequence[Run]) -> str:
    if not any(run.health.levels for run in runs):
        return "—"
    alarms = [episode for run in runs for episode in run.health.alarms]
    warnings = [episode for run in runs for episode in run.health.episodes if episode.alarm is None]
    found = ((len(alarms), "alarm"), (len(warnings), "warning"))
    return ", ".join(f"{n} {word}{'s' * (n > 1)}" for n, word in found if n) or "well"
