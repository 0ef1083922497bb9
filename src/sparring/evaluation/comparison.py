"""Two models on the same items: wins, ties, losses, win rate with interval, per subset and overall."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
from rich import box
from rich.markup import escape
from rich.table import Table

from sparring.evaluation.statistics import paired_bootstrap_ci, sign_test

SCHEMA = 1


class Item(Protocol):
    """Anything compared item by item."""

    @property
    def item_id(self) -> str: ...
    @property
    def subset(self) -> tuple[str, ...]: ...


AnyItem = TypeVar("AnyItem", bound=Item)
AnyTally = TypeVar("AnyTally", bound="Tally")


@dataclass(frozen=True)
class Outcome:
    """One item, scored for both models.

    Attributes:
        item_id: names the item; unique within a comparison.
        subset: path of the subset it belongs to, widest first, such as `("easy", "reverse")`; `()` for none.
        base_score: the base model's score, higher is better; 0 or 1 from a verifier, or a mean over samples.
        score: the trained model's score on the same item.
    """

    item_id: str
    subset: tuple[str, ...]
    base_score: float
    score: float

    @property
    def credit(self) -> float:
        """1 for a win of the trained model, ½ for a tie, 0 for a loss."""
        return float(np.sign(self.score - self.base_score) + 1) / 2


@dataclass(frozen=True, kw_only=True)
class Tally:
    """One model's wins over another.

    Attributes:
        n: items; `wins + ties + losses`.
        wins: items of a credit above ½.
        ties: items of a credit of ½.
        losses: items of a credit below ½.
        win_rate: mean credit, a fraction in [0, 1]; ½ is parity. `(wins + ties / 2) / n` where a win's credit is 1
            and a loss's 0.
        ci95: 95 % interval of `win_rate` by paired bootstrap over items, fractions in [0, 1].
        sign_test_p: exact two-sided sign test of wins against losses.
    """

    n: int
    wins: int
    ties: int
    losses: int
    win_rate: float
    ci95: tuple[float, float]
    sign_test_p: float

    @classmethod
    def of_credits(cls, credits_N: npt.NDArray[np.float64], **more: Any) -> Self:
        """Count these credits, each in [0, 1] (at least one); `more` holds the fields that a subclass adds."""
        wins, losses = int((credits_N > 0.5).sum()), int((credits_N < 0.5).sum())
        return cls(
            n=len(credits_N),
            wins=wins,
            ties=len(credits_N) - wins - losses,
            losses=losses,
            win_rate=float(credits_N.mean()),
            ci95=paired_bootstrap_ci(credits_N),
            sign_test_p=sign_test(wins, losses),
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class Comparison(Tally):
    """The trained model against the base on one set of items, by scores: a higher score wins.

    Attributes:
        accuracy: the trained model's mean score.
        base_accuracy: the base model's mean score.
    """

    accuracy: float
    base_accuracy: float

    @classmethod
    def of(cls, outcomes: list[Outcome]) -> Comparison:
        """Compare on these outcomes (at least one)."""
        return cls.of_credits(
            np.array([outcome.credit for outcome in outcomes]),
            accuracy=float(np.mean([outcome.score for outcome in outcomes])),
            base_accuracy=float(np.mean([outcome.base_score for outcome in outcomes])),
        )


@dataclass(frozen=True)
class Evaluation:
    """The content of a run's `evaluation.json`: one comparison overall and one per subset.

    Attributes:
        overall: over all items.
        subsets: by subset path joined with "/": "easy" holds all of "easy/reverse" and its siblings.
    """

    overall: Comparison
    subsets: dict[str, Comparison]

    def to_json(self) -> dict[str, Any]:
        """`{"schema": 1, "overall": {…}, "subsets": {"easy": {…}, "easy/reverse": {…}, …}}`.

        Each comparison has the fields of `Comparison`; `win_rate` and `ci95` (`[low, high]`) are fractions in
        [0, 1], as are `accuracy` and `base_accuracy` where scores are 0 or 1.
        """
        return {
            "schema": SCHEMA,
            "overall": tally_json(self.overall),
            "subsets": {name: tally_json(comparison) for name, comparison in self.subsets.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> Evaluation:
        """The inverse of `to_json`. Fields it doesn't know are left out.

        Raises:
            ValueError: another schema, a missing field, or a field of the wrong type; the message names it.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"evaluation: expected an object with schema {SCHEMA}, found {found!r}")
        subsets = _object(data.get("subsets", {}), "subsets")
        return cls(
            overall=_comparison_from(data.get("overall"), "overall"),
            subsets={str(name): _comparison_from(entry, f"subsets.{name}") for name, entry in subsets.items()},
        )

    def rows(self) -> Iterator[tuple[tuple[str, ...], Comparison]]:
        """(path, comparison) depth first: `()` overall, then each subset followed by its parts."""
        yield from depth_first(self.overall, self.subsets)


def compare(outcomes: Iterable[Outcome]) -> Evaluation:
    """Compare trained and base scores, overall and for every subset along each outcome's path.

    Raises:
        ValueError: no outcomes, an item given twice, a score that is not finite, or a subset name that is
            empty or holds "/".
    """
    every = list(outcomes)
    for outcome in every:
        _check_scores(outcome)
    parts = by_subset(every)
    return Evaluation(
        overall=Comparison.of(every),
        subsets={name: Comparison.of(part) for name, part in parts.items()},
    )


def by_subset(items: list[AnyItem]) -> dict[str, list[AnyItem]]:
    """The items of every subset along each item's path, under the path joined with "/".

    Raises:
        ValueError: no items, one given twice, or a subset name that is empty or holds "/".
    """
    if not items:
        raise ValueError("nothing to compare: the evaluation set gave no items")
    seen: set[str] = set()
    parts: dict[tuple[str, ...], list[AnyItem]] = {}
    for item in items:
        _check(item, seen)
        seen.add(item.item_id)
        for depth in range(1, len(item.subset) + 1):
            parts.setdefault(item.subset[:depth], []).append(item)
    return {"/".join(path): parts[path] for path in sorted(parts)}


def depth_first(overall: AnyTally, subsets: Mapping[str, AnyTally]) -> Iterator[tuple[tuple[str, ...], AnyTally]]:
    """(path, tally): `()` overall, then each subset followed by its parts."""
    yield (), overall
    for name in sorted(subsets, key=lambda name: name.split("/")):
        yield tuple(name.split("/")), subsets[name]


def table(evaluation: Evaluation) -> Table:
    """The comparison for a terminal of 100 columns: overall, then each subset followed by its parts."""
    result = Table(
        title="Base against trained",
        title_justify="left",
        header_style="bold",
        box=box.HORIZONTALS,
        padding=(0, 1, 0, 0),
    )
    result.add_column("", overflow="fold", max_width=24)
    for heading in (
        "n",
        "base\naccuracy",
        "accuracy",
        "change",
        "wins/ties/\nlosses",
        "win rate\n[95 % interval]",
    ):
        result.add_column(heading, justify="right", no_wrap=True)
    for path, row in evaluation.rows():
        if len(path) <= 1:
            result.add_section()
        result.add_row(
            "  " * (len(path) - 1) + escape(path[-1]) if path else "overall",
            str(row.n),
            f"{row.base_accuracy:.1%}",
            f"{row.accuracy:.1%}",
            f"{100 * (row.accuracy - row.base_accuracy):+.1f}",
            f"{row.wins}/{row.ties}/{row.losses}",
            f"{row.win_rate:.1%} [{100 * row.ci95[0]:.1f}, {100 * row.ci95[1]:.1f}]",
            style="bold" if len(path) <= 1 else None,
        )
    return result


def _check(item: Item, seen: set[str]) -> None:
    if item.item_id in seen:
        raise ValueError(f"item {item.item_id!r} is given twice; average its samples first")
    for part in item.subset:
        if not part or "/" in part:
            raise ValueError(f"item {item.item_id!r}: subset name {part!r} must be non-empty and free of '/'")


def _check_scores(outcome: Outcome) -> None:
    for name, score in (("base_score", outcome.base_score), ("score", outcome.score)):
        if not isfinite(score):
            raise ValueError(f"item {outcome.item_id!r}: {name} is {score}; leave out items without a score")


def tally_json(tally: Tally) -> dict[str, Any]:
    """A tally's fields, in JSON's types."""
    return {**asdict(tally), "ci95": list(tally.ci95)}


_COUNTS = ("n", "wins", "ties", "losses")
_NUMBERS = ("win_rate", "accuracy", "base_accuracy", "sign_test_p")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise ValueError(f"evaluation: {where} must be an object, found {type(value).__name__}")


def _comparison_from(value: Any, where: str) -> Comparison:
    entry = _object(value, where)
    try:
        low, high = entry["ci95"]
        return Comparison(
            **{name: int(entry[name]) for name in _COUNTS},  # pyright: ignore[reportArgumentType]
            **{name: float(entry[name]) for name in _NUMBERS},
            ci95=(float(low), float(high)),
        )
    except KeyError as error:
        raise ValueError(f"evaluation: {where} has no {error.args[0]!r}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"evaluation: {where} has a field of the wrong type ({error})") from error
