"""Advantages: payoffs against the mean of their siblings.

Source: Language Self-Play, arXiv 2509.07414, Algorithm 1. Over a query's G answers, paid R, this is
A_Sol(q_i, a_i^j) = R − V(q_i); over the N queries, paid −V, it is A_Ch(q_i) = V̄ − V(q_i). Who is whose sibling is the
game's to say (`Game.siblings`). Every function takes and returns float64 arrays, one group at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Baseline = Callable[[ArrayLike], Floats]
"""payoffs of siblings → their advantages"""


def centred(payoff_G: ArrayLike) -> Floats:
    """A_j = r_j − mean(r): the paper's only normalisation, for both roles.

    A group of one, or one without spread, has advantage 0: nothing to learn from.

    >>> centred([1, 1, 0]).round(4).tolist()  # A_Sol of two right answers and a wrong one
    [0.3333, 0.3333, -0.6667]
    >>> centred([-1.0, -0.5, 0.0]).tolist()  # A_Ch: the query that nobody solved is the best
    [-0.5, 0.0, 0.5]
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


def is_dead(payoff_G: ArrayLike) -> bool:
    """Whether siblings were all paid the same: a group that teaches nothing."""
    payoff_G = np.asarray(payoff_G, dtype=np.float64)
    return bool(payoff_G.size < 2 or np.ptp(payoff_G) <= 1e-12)
