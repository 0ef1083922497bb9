"""Paired win rate of model A against model B from a judge's verdicts in both orders of showing.

A judge that sees A first and then B first favours neither by position: an item's credit is the mean of both. What is
left of the judge's lean to a position is measured, not corrected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparring.evaluation.comparison import SCHEMA, Tally, by_subset, depth_first, tally_json
from sparring.evaluation.statistics import paired_bootstrap_ci


@dataclass(frozen=True)
class BothOrders:
    """What a judge made of one item, shown in both orders.

    Attributes:
        item_id: names the item; unique within a comparison.
        subset: path of the subset it belongs to, widest first; `()` for none.
        first: preference for A where A was shown first, in [0, 1]: 1 is A, 0 is B, ½ neither; None: unparsed.
        second: preference for A (not for what came first) where A was shown second; None: unparsed.
    """

    item_id: str
    subset: tuple[str, ...]
    first: float | None
    second: float | None


@dataclass(frozen=True, kw_only=True)
class WinRate(Tally):
    """A against B over the items whose verdicts were parsed in both orders.

    An item's credit is the mean preference for A over both orders; win, tie and loss are a credit above, at and below
    ½. `win_rate` is the mean credit, so that a soft verdict counts as much as it says.

    Attributes:
        position_bias: mean preference for whatever was shown first, minus ½: above 0 the judge favours the first place.
        position_bias_ci95: 95 % interval of it by bootstrap over items.
        flip_rate: share of items whose winner changes with the order; a tie in one order is no flip.
        unparsed_first: items without a verdict where A was shown first.
        unparsed_second: items without a verdict where A was shown second.
        excluded: items left out because either verdict is missing.
    """

    position_bias: float
    position_bias_ci95: tuple[float, float]
    flip_rate: float
    unparsed_first: int
    unparsed_second: int
    excluded: int


@dataclass(frozen=True)
class WinRates:
    """A win rate overall and one per subset.

    Attributes:
        overall: over all items.
        subsets: by subset path joined with "/". A subset without an item parsed in both orders has none.
    """

    overall: WinRate
    subsets: dict[str, WinRate]

    def to_json(self) -> dict[str, Any]:
        """`{"schema": 1, "overall": {…}, "subsets": {name: {…}}}`, each with the fields of `WinRate`."""
        return {
            "schema": SCHEMA,
            "overall": _json(self.overall),
            "subsets": {name: _json(rate) for name, rate in self.subsets.items()},
        }

    def rows(self) -> Iterator[tuple[tuple[str, ...], WinRate]]:
        """(path, win rate) depth first: `()` overall, then each subset followed by its parts."""
        return depth_first(self.overall, self.subsets)


def win_rates(items: Iterable[BothOrders]) -> WinRates:
    """A's win rate over B, overall and for every subset along each item's path.

    Raises:
        ValueError: no items, none parsed in both orders, an item given twice, a preference outside [0, 1], or a subset
            name that is empty or holds "/".
    """
    every = list(items)
    parts = by_subset(every)
    for item in every:
        for name, preference in (("first", item.first), ("second", item.second)):
            if preference is not None and not 0 <= preference <= 1:
                raise ValueError(f"item {item.item_id!r}: {name} is {preference}, not a preference in [0, 1]")
    overall = _win_rate(every)
    if overall is None:
        raise ValueError(
            f"none of the {len(every)} items has a verdict in both orders: the judge's replies don't parse"
        )
    rates = {name: _win_rate(part) for name, part in parts.items()}
    return WinRates(overall, {name: rate for name, rate in rates.items() if rate is not None})


def _win_rate(items: list[BothOrders]) -> WinRate | None:
    parsed = [(item.first, item.second) for item in items if item.first is not None and item.second is not None]
    if not parsed:
        return None
    first_N, second_N = np.array(parsed, dtype=np.float64).T
    # The first place gets `first` in one order and 1 − `second` in the other: their mean, minus ½.
    lean_N = (first_N - second_N) / 2
    return WinRate.of_credits(
        (first_N + second_N) / 2,
        position_bias=float(lean_N.mean()),
        position_bias_ci95=paired_bootstrap_ci(lean_N),
        flip_rate=float(((first_N - 0.5) * (second_N - 0.5) < 0).mean()),
        unparsed_first=sum(item.first is None for item in items),
        unparsed_second=sum(item.second is None for item in items),
        excluded=len(items) - len(parsed),
    )


def _json(rate: WinRate) -> dict[str, Any]:
    return {**tally_json(rate), "position_bias_ci95": list(rate.position_bias_ci95)}
