"""What the page says first: one run's headline and tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparring.evaluation.comparison import Comparison
from sparring.report.evaluations import OWN
from sparring.report.numbers import NBSP, number, percent
from sparring.report.run import Run
from sparring.report.seen import Looked
from sparring.stages import ends

REWARDS = ("reward/raw", "game/V", "payoff/solver/reward")  # a score before its scale says more than the scaled one
Show = Callable[[float], str]
TILES: tuple[tuple[str, tuple[str, ...], Show], ...] = (
    ("V, mean reward", ("game/V", "payoff/solver/reward"), number),
    ("Payoff, perceiver", ("payoff/perceiver",), number),
    ("Right from the description", ("vision/reader/all",), percent),
    ("Valid queries", ("game/valid_share",), percent),
    ("Raw reward", ("reward/raw",), number),
    ("V_Q, mean quality", ("game/V_Q",), number),
    ("Grades read", ("quality/parse_rate",), percent),
    ("KL, Solver", ("kl/solver",), number),
    ("KL, perceiver", ("kl/perceiver",), number),
    ("KL, Challenger", ("kl/challenger",), number),
    ("Answer, tokens", ("length/solver",), number),
    ("Response, tokens", ("length/perceiver",), number),
)
"""Label, metrics (the first that was measured) and format; the first four stand beside an evaluation too."""


@dataclass(frozen=True)
class Tile:
    """A number at the head of the page."""

    label: str
    value: str
    detail: str


def headline(run: Run) -> str:
    """The result in a sentence: the win rate with its interval, and what the interval allows to say."""
    if run.evaluation is not None:
        overall = run.evaluation.overall
        if overall.ties == overall.n:
            return f"No difference seen: all {overall.n} items are ties"
        return _verdict(overall.win_rate, overall.ci95)
    for document in run.documents.values():
        figure = document.overall
        if document.metric == "win_rate" and figure.ci95 is not None:
            return f"{_verdict(figure.value, figure.ci95)} on {document.name}"
    return next(map(_sight, _own(run)), None) or _progress(run)


def _own(run: Run) -> list[Looked]:
    """How the run's own model sees, the greedy one first."""
    return sorted((one for one in run.looked if one.own), key=lambda one: one.document.name)


def _sight(one: Looked) -> str | None:
    rate, right = one.figures["lsr"], one.figures.get("accuracy")
    if right is None or rate.ci95 is None:
        return None
    interval = f"95{NBSP}% interval {100 * rate.ci95[0]:.1f}{NBSP}to{NBSP}{100 * rate.ci95[1]:.1f}"
    return f"{percent(right.value)} of the answers are right, {percent(rate.value)} by a language shortcut ({interval})"


def _verdict(rate: float, interval: tuple[float, float]) -> str:
    low, high = interval
    if low > 0.5:
        said = "The trained model beats its base"
    elif high < 0.5:
        said = "The trained model loses to its base"
    else:
        said = "No clear difference between the trained model and its base"
    told = f"95{NBSP}% interval {100 * low:.1f}{NBSP}to{NBSP}{100 * high:.1f}"
    return f"{said}: win{NBSP}rate {percent(rate)} ({told})"


def _progress(run: Run) -> str:
    """Without an evaluation, what the run's own figures say; a reward that rises is no proof of a better model."""
    if run.last_step is None:
        return "No step and no evaluation has been recorded yet."
    if not run.untested:
        return f"Recorded up to step {run.last_step}; not evaluated against the base yet."
    reward = next((pair for key in REWARDS if (pair := ends(run.rows, key))), None)
    paid = f": mean reward {number(reward[0])}{NBSP}→{NBSP}{number(reward[1])}" if reward else ""
    steps = "step" if run.last_step == 1 else "steps"
    return f"{run.last_step} {steps} of training{paid}; no held-out test in this domain."


def tiles(run: Run) -> list[Tile]:
    """The few numbers to see first."""
    found: list[Tile] = []
    if run.evaluation:
        overall = run.evaluation.overall
        counts = f"{overall.wins} wins, {overall.ties} ties, {overall.losses} losses"
        found.append(Tile("Win rate", percent(overall.win_rate), counts))
        tops = {name: row for name, row in run.evaluation.subsets.items() if "/" not in name}
        found += [_accuracy_tile(name, row) for name, row in (tops or {"overall": overall}).items()][:3]
    for document in [one for one in run.documents.values() if one.kind != OWN][:3]:
        label = f"{document.name}, {document.metric.replace('_', ' ')}"
        found.append(Tile(label, percent(document.overall.value), f"n = {document.overall.n}"))
    found += map(_seen_tile, _own(run)[:3])
    shown = TILES[:4] if found else TILES
    for name, keys, show in shown:
        pair = next((pair for key in keys if (pair := ends(run.rows, key))), None)
        if pair:
            found.append(Tile(name, show(pair[1]), f"{show(pair[0])} at the start"))
    if run.last_step is not None:
        _, seconds = run.series("seconds/step")
        total = float(seconds.sum())
        spent = f"{total / 60:.1f} minutes" if total >= 60 else f"{total:.1f} seconds"
        detail = f"{spent} of training" if len(seconds) else "recorded so far"
        found.append(Tile("Steps", str(run.last_step), detail))
    return found


def _seen_tile(one: Looked) -> Tile:
    where = "" if one.document.name == one.document.kind else f", {one.document.name}"
    rate, right = one.figures["lsr"], one.figures.get("accuracy")
    beside = "" if right is None else f"accuracy {percent(right.value)}, "
    return Tile(f"Shortcut rate (LSR){where}", percent(rate.value), f"{beside}n = {rate.n}")


def _accuracy_tile(name: str, row: Comparison) -> Tile:
    return Tile(f"Accuracy, {name}", percent(row.accuracy), f"base {percent(row.base_accuracy)}, n = {row.n}")
