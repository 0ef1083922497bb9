"""Statistics against hand-computed cases and SciPy."""

from fractions import Fraction
from itertools import combinations
from math import isnan, sqrt

import numpy as np
import pytest
from scipy import stats

from sparring.evaluation.statistics import (
    mean_sd,
    paired_bootstrap_ci,
    paired_interval,
    pass_at_k,
    sign_test,
    wilson_interval,
)


@pytest.mark.parametrize("kind", ["credits", "continuous"])
def test_bootstrap_agrees_with_scipy(kind: str) -> None:
    rng = np.random.default_rng(7)
    values = rng.choice([0.0, 0.5, 1.0], 300, p=[0.2, 0.3, 0.5]) if kind == "credits" else rng.normal(2, 3, 300)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", batch=1000
    ).confidence_interval
    standard_error = values.std() / sqrt(len(values))
    assert paired_bootstrap_ci(values) == pytest.approx(tuple(expected), abs=0.12 * standard_error)


def test_bootstrap_of_two_items_by_hand() -> None:
    # Means of two draws from {0, 1}: 0, ½, 1 with chances ¼, ½, ¼; 95 % spans all, 40 % only ½.
    assert paired_bootstrap_ci([0, 1]) == (0, 1)
    assert paired_bootstrap_ci([0, 1], confidence=0.4) == (0.5, 0.5)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = paired_bootstrap_ci(rng.choice([0.0, 0.5, 1.0], 100, p=[0.2, 0.3, 0.5]), 0.95, 1000, trial)
        covered += low <= 0.65 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_bootstrap_is_seeded_and_blocks_do_not_change_its_size() -> None:
    values = np.random.default_rng(1).normal(size=500)  # 500 distinct values, drawn item by item: several blocks
    assert paired_bootstrap_ci(values, seed=3) == paired_bootstrap_ci(values, seed=3)
    assert paired_bootstrap_ci(values, seed=3) != paired_bootstrap_ci(values, seed=4)


def test_bootstrap_of_equal_values_is_that_value() -> None:
    assert paired_bootstrap_ci([0.3] * 9) == (0.3, 0.3)
    assert paired_bootstrap_ci([1.0]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([], {}, "non-empty"),
        ([[1.0, 2.0]], {}, "non-empty list"),
        ([1.0, float("nan")], {}, r"values\[1\] is nan"),
        ([1.0, 2.0], {"confidence": 95}, "confidence"),
        ([1.0, 2.0], {"resamples": 0}, "resamples"),
    ],
)
def test_bootstrap_refuses(values: list, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap_ci(values, **settings)


def test_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(3, 3) == 1
    assert sign_test(4, 1) == pytest.approx(2 * (1 + 5) / 2**5)
    assert sign_test(1, 4) == sign_test(4, 1)
    with pytest.raises(ValueError, match="negative"):
        sign_test(-1, 3)


def test_mean_sd() -> None:
    assert mean_sd([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx((5, sqrt(32 / 7)))
    mean, spread = mean_sd([3.0])
    assert mean == 3
    assert isnan(spread)


def test_paired_interval_by_hand_and_against_scipy() -> None:
    # Mean 2, sd 1, n 3: half width t(.975; 2) / √3 with t = 4.302653.
    half = 4.302652729911275 / sqrt(3)
    assert paired_interval([1, 2, 3]) == pytest.approx((2 - half, 2 + half))
    differences = np.random.default_rng(2).normal(0.1, 0.2, 6)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    assert paired_interval(differences, 0.9) == pytest.approx(tuple(expected))
    assert paired_interval([0.5, 0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least two"):
        paired_interval([1.0])


def test_wilson_by_hand() -> None:
    # z² = 3.841459; half of 10: middle ½, half width √(z²·(10 + z²)) / (2·(10 + z²)) = √(3.841459 / 13.841459) / 2.
    half = sqrt(3.841458820694124 / 13.841458820694124) / 2
    assert wilson_interval(5, 10) == pytest.approx((0.5 - half, 0.5 + half))
    assert wilson_interval(0, 10) == pytest.approx((0, 3.841458820694124 / 13.841458820694124))
    low, high = wilson_interval(10, 10)
    assert low == pytest.approx(10 / 13.841458820694124)
    assert high == 1


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_wilson_agrees_with_scipy(confidence: float) -> None:
    for n in (1, 2, 7, 805):
        for successes in {0, 1, n // 3, n - 1, n}:
            expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
            assert wilson_interval(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_refuses() -> None:
    for successes, n in ((0, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match=f"got {successes} of {n}"):
            wilson_interval(successes, n)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, 95)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)  # C(3, 2) / C(5, 2)
    assert pass_at_k(5, 0, 5) == 0
    assert pass_at_k(5, 1, 5) == 1
    assert pass_at_k(5, 4, 2) == 1  # two of five can't both be the wrong one
    assert pass_at_k(2000, 1, 1000) == pytest.approx(0.5)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_against_every_draw(n: int) -> None:
    for correct in range(n + 1):
        right = [place < correct for place in range(n)]
        for k in range(1, n + 1):
            draws = [any(draw) for draw in combinations(right, k)]
            assert pass_at_k(n, correct, k) == pytest.approx(float(Fraction(sum(draws), len(draws))))


@pytest.mark.parametrize(
    ("n", "correct", "k", "message"),
    [
        (3, 4, 1, "between 0 and n = 3"),
        (3, -1, 1, "between 0"),
        (3, 1, 4, "pass@4 needs"),
        (3, 1, 0, "pass@0 needs"),
        (0, 0, 1, "n = 0"),
    ],
)
def test_pass_at_k_refuses(n: int, correct: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, correct, k)
