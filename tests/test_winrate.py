"""Win rates from verdicts in both orders: by hand, under exchange of the models, and under a biased judge."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.evaluation.statistics import paired_bootstrap_ci, sign_test
from sparring.evaluation.winrate import BothOrders, win_rates

SMALL = [
    BothOrders("1", ("koala",), 1, 1),  # win
    BothOrders("2", ("koala",), 1, 0),  # tie: the judge takes the first
    BothOrders("3", ("koala",), 0.5, 1),  # win, ¾
    BothOrders("4", ("oasst", "de"), 0.25, 0),  # loss, ⅛
    BothOrders("5", ("oasst", "de"), None, 1),
    BothOrders("6", ("oasst",), None, None),
    BothOrders("7", ("vicuna",), 1, None),
]


def test_by_hand() -> None:
    rates = win_rates(SMALL)
    overall = rates.overall
    assert (overall.n, overall.wins, overall.ties, overall.losses) == (4, 2, 1, 1)
    assert overall.win_rate == pytest.approx((1 + 0.5 + 0.75 + 0.125) / 4)
    assert overall.ci95 == paired_bootstrap_ci([1, 0.5, 0.75, 0.125])
    assert overall.sign_test_p == sign_test(2, 1) == 1
    # What was shown first got 1 and 0, 1 and 1, ½ and 0, ¼ and 1: means ½, 1, ¼, ⅝.
    assert overall.position_bias == pytest.approx((0 + 0.5 - 0.25 + 0.125) / 4)
    assert overall.position_bias_ci95 == paired_bootstrap_ci([0, 0.5, -0.25, 0.125])
    assert overall.flip_rate == 0.25
    assert (overall.unparsed_first, overall.unparsed_second, overall.excluded) == (2, 2, 3)
    assert rates.subsets.keys() == {"koala", "oasst", "oasst/de"}  # vicuna has no item parsed in both orders
    assert [path for path, _ in rates.rows()] == [(), ("koala",), ("oasst",), ("oasst", "de")]
    oasst, german = rates.subsets["oasst"], rates.subsets["oasst/de"]
    assert (oasst.n, oasst.losses, oasst.excluded, oasst.unparsed_first, oasst.unparsed_second) == (1, 1, 2, 2, 1)
    assert (german.n, german.excluded, german.win_rate) == (1, 1, 0.125)


def test_json() -> None:
    data = json.loads(json.dumps(win_rates(SMALL).to_json()))
    assert data["schema"] == 1
    for entry in (data["overall"], *data["subsets"].values()):
        assert set(entry) == {
            *("n", "wins", "ties", "losses", "win_rate", "ci95", "sign_test_p"),
            *("position_bias", "position_bias_ci95", "flip_rate"),
            *("unparsed_first", "unparsed_second", "excluded"),
        }
        low, high = entry["position_bias_ci95"]
        assert low <= entry["position_bias"] <= high
    assert data["overall"]["ci95"] == list(win_rates(SMALL).overall.ci95)


exact = st.none() | st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0])


@settings(deadline=None)
@given(st.lists(st.tuples(exact, exact), min_size=1, max_size=15))
def test_exchanging_the_models(pairs: list[tuple[float | None, float | None]]) -> None:
    """B's preference where B is first is 1 minus A's where A is second."""

    def turned(value: float | None) -> float | None:
        return None if value is None else 1 - value

    items = [BothOrders(str(i), (), first, second) for i, (first, second) in enumerate(pairs)]
    back = [BothOrders(str(i), (), turned(second), turned(first)) for i, (first, second) in enumerate(pairs)]
    if all(None in pair for pair in pairs):
        with pytest.raises(ValueError, match=f"none of the {len(pairs)} items has a verdict in both orders"):
            win_rates(items)
        return
    one, other = win_rates(items).overall, win_rates(back).overall
    assert (one.n, one.wins, one.ties, one.losses) == (other.n, other.losses, other.ties, other.wins)
    assert one.n + one.excluded == len(pairs)
    assert one.win_rate == pytest.approx(1 - other.win_rate)
    assert one.position_bias == pytest.approx(other.position_bias)
    assert one.flip_rate == other.flip_rate
    assert (one.unparsed_first, one.unparsed_second) == (other.unparsed_second, other.unparsed_first)


def test_a_judge_that_only_sees_positions() -> None:
    always_first = win_rates([BothOrders(str(i), (), 1, 0) for i in range(9)]).overall
    assert (always_first.ties, always_first.win_rate, always_first.flip_rate) == (9, 0.5, 1)
    assert always_first.position_bias == 0.5
    assert win_rates([BothOrders("0", (), 0, 1)]).overall.position_bias == -0.5


def test_both_orders_take_the_bias_out() -> None:
    """The judge prefers A with .7 and adds .15 to the first place: the win rate is .7 all the same."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(-0.1, 0.1, (2000, 2))
    items = [BothOrders(str(i), (), 0.85 + a, 0.55 + b) for i, (a, b) in enumerate(noise.tolist())]
    overall = win_rates(items).overall
    assert overall.win_rate == pytest.approx(0.7, abs=0.005)
    assert overall.position_bias == pytest.approx(0.15, abs=0.005)
    assert overall.position_bias_ci95[0] > 0.14


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no items"),
        ([SMALL[0], SMALL[0]], "'1' is given twice"),
        ([BothOrders("a", (), 1.5, 1)], "'a': first is 1.5, not a preference"),
        ([BothOrders("a", (), 1, float("nan"))], "'a': second is nan"),
        ([BothOrders("a", ("x/y",), 1, 1)], "free of '/'"),
        ([BothOrders("a", (), 1, None)], "none of the 1 items"),
    ],
)
def test_bad_items_are_refused(items: list[BothOrders], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        win_rates(items)
