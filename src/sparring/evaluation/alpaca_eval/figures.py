"""AlpacaEval's published figures: win rate, standard error, discrete win rate, counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from sparring.evaluation.alpaca_eval.verdicts import Verdicts
from sparring.evaluation.statistics import paired_bootstrap_ci


@dataclass(frozen=True)
class Figures:
    """A row of AlpacaEval's leaderboard, under its names.

    Attributes:
        win_rate: mean preference for the model, in percent.
        standard_error: sample standard deviation (divisor n − 1) over √n, in percentage points; NaN for one verdict.
        discrete_win_rate: the same mean with every verdict rounded to a win or a loss, a draw being half, in percent.
        n_total: parsed verdicts.
        n_wins: verdicts for the model, however narrow.
        n_wins_base: verdicts for the baseline.
        n_draws: exact draws.
        unparsed: replies of the judge that gave no verdict: left out of all the above.
    """

    win_rate: float
    standard_error: float
    discrete_win_rate: float
    n_total: int
    n_wins: int
    n_wins_base: int
    n_draws: int
    unparsed: int

    def to_json(self) -> dict[str, Any]:
        """The fields by name; a standard error that is NaN is None."""
        return {**asdict(self), "standard_error": self.standard_error if isfinite(self.standard_error) else None}


def model_share(preference: float) -> float:
    """How much of a win a preference is for the model: 0 (baseline better) … 1; AlpacaEval 1's draw, 0, is ½.

    >>> [model_share(preference) for preference in (1, 1.25, 2, 0)]
    [0.0, 0.25, 1.0, 0.5]
    """
    return 0.5 if preference == 0 else float(preference - 1)


def figures(preferences: Iterable[float | None]) -> Figures:
    """The figures of these preferences (1 … 2, or 0 for a draw; None: unparsed), as AlpacaEval publishes them.

    Raises:
        ValueError: a preference out of range, or none at all that was parsed.
    """
    every = list(preferences)
    shares: list[float] = []
    for place, preference in enumerate(every):
        if preference is not None:
            if not (preference == 0 or 1 <= preference <= 2):
                raise ValueError(f"preference {place} is {preference}: expected 1 … 2, 0 for a draw, or None")
            shares.append(model_share(preference))
    if not shares:
        raise ValueError(f"none of the {len(every)} verdicts was parsed, so there is no win rate")
    share_N = np.array(shares)
    wins, losses, n = int((share_N > 0.5).sum()), int((share_N < 0.5).sum()), len(share_N)
    draws = n - wins - losses
    return Figures(
        win_rate=100 * float(share_N.mean()),
        standard_error=100 * float(share_N.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"),
        discrete_win_rate=100 * (wins + draws / 2) / n,
        n_total=n,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        unparsed=len(every) - n,
    )


def figures_by_subset(verdicts: Verdicts) -> dict[str, Figures]:
    """The figures of each subset that the verdicts know; one without a parsed verdict has none."""
    parts: dict[str, list[float | None]] = {}
    for verdict in verdicts.each:
        if verdict.dataset is not None:
            parts.setdefault(verdict.dataset, []).append(verdict.preference)
    return {
        name: figures(part)
        for name, part in sorted(parts.items())
        if any(preference is not None for preference in part)
    }


def intervals(verdicts: Verdicts) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Win rates as fractions with 95 % bootstrap intervals over instructions: overall, and by subset where known."""
    parts: dict[str, list[float]] = {}
    for verdict in verdicts.each:
        if verdict.preference is not None:
            share = model_share(verdict.preference)
            for name in ("", *([] if verdict.dataset is None else [verdict.dataset])):
                parts.setdefault(name, []).append(share)
    rows = {
        name: {"n": len(shares), "win_rate": float(np.mean(shares)), "ci95": list(paired_bootstrap_ci(shares))}
        for name, shares in parts.items()
    }
    return rows.pop(""), rows
