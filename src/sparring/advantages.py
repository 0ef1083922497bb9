"""Advantages: payoffs against the mean of their siblings.

Source: Language Self-Play, arXiv 2509.07414, Algorithm 1. Symbols: N queries q_i, G answers a_i^j each,
R the answers' reward, V(q_i) the mean over a query's answers, V̄ the mean over queries.
Every function takes and returns float64 arrays; group sizes may differ, so groups come one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Baseline = Callable[[ArrayLike], Floats]
"""payoffs of siblings → their advantages"""


def value(reward_G: ArrayLike) -> float:
    """V(q_i) = (1/G) Σ_j R(q_i, a_i^j).

    >>> round(value([1, 1, 0]), 4)
    0.6667
    """
    return float(np.mean(np.asarray(reward_G, dtype=np.float64)))


def centred(payoff_G: ArrayLike) -> Floats:
    """A_j = r_j − mean(r): the paper's only normalisation.

    A group of one, or one without spread, has advantage 0: nothing to learn from.

    >>> centred([1, 1, 0]).round(4).tolist()
    [0.3333, 0.3333, -0.6667]
    """
    payoff_G = np.asarray(payoff_G, dtype=np.float64)
    return payoff_G - payoff_G.mean() if payoff_G.size else payoff_G


def standardised(payoff_G: ArrayLike, epsilon: float = 1e-4) -> Floats:
    """A_j = (r_j − mean(r)) / (std(r) + ε), std unbiased, as GRPO and TRL's scale_rewards="group" have it.

    >>> standardised([1, 1, 0], epsilon=0.0).round(4).tolist()
    [0.5774, 0.5774, -1.1547]
    """
    advantage_G = centred(payoff_G)
    if advantage_G.size < 2:
        return advantage_G
    return advantage_G / (np.std(advantage_G, ddof=1) + epsilon)


def solver_advantages(reward_NG: Sequence[ArrayLike], baseline: Baseline = centred) -> list[Floats]:
    """A_Sol(q_i, a_i^j) = R(q_i, a_i^j) − V(q_i), each query's answers among themselves."""
    return [baseline(reward_G) for reward_G in reward_NG]


def challenger_advantages(payoff_N: ArrayLike, baseline: Baseline = centred) -> Floats:
    """A_Ch(q_i): the payoff −V(q_i) [+ V_Q(q_i)] against its mean over the N queries, so V̄ − V(q_i) for LSP-Zero.

    >>> challenger_advantages([-1.0, -0.5, 0.0]).tolist()
    [-0.5, 0.0, 0.5]
    """
    return baseline(payoff_N)


def is_dead(payoff_G: ArrayLike) -> bool:
    """Whether siblings were all paid the same: a group that teaches nothing."""
    payoff_G = np.asarray(payoff_G, dtype=np.float64)
    return bool(payoff_G.size < 2 or np.ptp(payoff_G) <= 1e-12)
