"""Intervals and tests for evaluations: pure functions, each with its source.

SciPy is imported where it is used: it costs half a second, and the command line imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

# Cells of one block of the bootstrap (resamples × distinct values, or × items): 2 million, 16 MB.
_BLOCK_CELLS = 2_000_000
# A count costs about as much as four drawn items; so few are cheap for any n.
_FEW_DISTINCT = 32


def paired_bootstrap_ci(
    values: npt.ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over items (Efron & Tibshirani 1993, chapter 13).

    Paired: an item's value already compares both models on it (1 win, ½ tie, 0 loss, or a difference of
    scores), so resampling items keeps the pairs together. Drawing n items with replacement is drawing
    multinomial counts over the distinct values. Where these are few (three for wins, ties and losses), that is
    how it is done here: time and memory then grow with them, not with n. Soft verdicts are drawn item by item.

    Args:
        values: `[N]`, one number per item, finite.
        confidence: share of resampled means inside the interval.
        resamples: bootstrap resamples.
        seed: of the draws; the same values and seed give the same interval.

    Returns:
        (low, high), in the unit of `values`. Where all values are equal every resample is the sample itself
        and the interval is that point: it then says nothing about the items that were not drawn.

    Raises:
        ValueError: no values, a value that is not finite, or a setting out of range.
    """
    values_N = _finite(values, "values")
    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    distinct_K, counts_K = np.unique(values_N, return_counts=True)
    if len(distinct_K) == 1:
        return float(distinct_K[0]), float(distinct_K[0])
    n = len(values_N)
    rng = np.random.default_rng(seed)
    few = len(distinct_K) <= max(_FEW_DISTINCT, n // 4)
    block = max(1, _BLOCK_CELLS // (len(distinct_K) if few else n))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    if few:
        means = [rng.multinomial(n, counts_K / n, size=size) @ distinct_K / n for size in sizes]
    else:
        means = [values_N[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes]
    means_R = np.concatenate(means)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided sign test: how likely a split this uneven is when wins and losses are equally likely.

    Ties carry no sign and are left out (Dixon & Mood 1946). Without a win or a loss the p-value is 1.

    >>> sign_test(5, 0)
    0.0625
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"wins and losses must not be negative, got {wins} and {losses}")
    if wins + losses == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, 0.5).pvalue)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), without continuity correction.

    Args:
        successes: items that succeeded, such as right answers.
        n: items, at least one.
        confidence: coverage.

    Returns:
        (low, high), fractions in [0, 1]. It never has width 0: none of 10 right is (0, 0.28).

    Raises:
        ValueError: no items, or successes outside 0 … n.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes must lie between 0 and n, and n be at least 1; got {successes} of {n}")
    _check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == n else middle + half


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, unbiased: 1 − C(n − c, k) / C(n, k) (Chen et al. 2021, eq. 1).

    Args:
        n: samples drawn for the item.
        correct: how many of them are right.
        k: samples allowed, 1 … n. pass@1 is `correct / n`.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must lie between 0 and n = {n}, got {correct}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k of at least 1 and at least k samples an item, got n = {n}")
    return 1 - comb(n - correct, k) / comb(n, k)


def mean_sd(values: Sequence[float] | npt.NDArray[np.floating]) -> tuple[float, float]:
    """Mean and sample standard deviation (divisor n − 1) over seeds. One value has deviation NaN, not 0.

    >>> mean_sd([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    values_N = _finite(values, "values")
    spread = float(values_N.std(ddof=1)) if len(values_N) > 1 else float("nan")
    return float(values_N.mean()), spread


def paired_interval(
    differences: Sequence[float] | npt.NDArray[np.floating], confidence: float = 0.95
) -> tuple[float, float]:
    """Student's t interval of the mean paired difference over seeds.

    Args:
        differences: `[S]`, one per seed: arm A minus arm B under the same seed, base and test set.
        confidence: coverage under normal differences.

    Returns:
        (low, high) in the unit of the differences.

    Raises:
        ValueError: fewer than two seeds; one seed says nothing about the spread over seeds.
    """
    differences_S = _finite(differences, "differences")
    _check_confidence(confidence)
    seeds = len(differences_S)
    if seeds < 2:
        raise ValueError("an interval over seeds needs at least two paired differences, got one")
    from scipy.stats import t as student_t

    half = float(student_t.ppf((1 + confidence) / 2, seeds - 1) * differences_S.std(ddof=1) / np.sqrt(seeds))
    mean = float(differences_S.mean())
    return mean - half, mean + half


def _finite(values: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    array_N = np.asarray(values, dtype=np.float64)
    if array_N.ndim != 1 or array_N.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, got shape {array_N.shape}")
    if not np.isfinite(array_N).all():
        position = int(np.flatnonzero(~np.isfinite(array_N))[0])
        raise ValueError(f"{name}[{position}] is {array_N[position]}; leave out items without a score")
    return array_N


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
