"""What a Challenger is paid for: objects, one a term, each readable on its own.

Symbols: V(q) in the reward's units is the mean reward of the answers to q, V_Q(q) their mean quality.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class ChallengerPayoff(Protocol):
    """V(q) → what a valid query is paid before quality."""

    def __call__(self, value: float) -> float: ...


@dataclass(frozen=True)
class Adversarial:
    """−V(q): the harder the better. The paper's, arXiv 2509.07414, Algorithm 1.

    Degenerate case: an unsolvable query is the best of all; only quality and KL hold against that.

    >>> Adversarial()(0.25)
    -0.25
    """

    def __call__(self, value: float) -> float:
        return -value


@dataclass(frozen=True)
class Frontier:
    """1 − |V(q) − target| / max(target, 1 − target), for rewards in [0, 1]: highest where the target share is solved.

    With target ½ this is 1 − 2|V − ½|, R-Zero's (arXiv 2508.05004). Degenerate case: it wants V near the target, not
    difficulty, so a Solver that gets worse makes easy queries pay: watch difficulty on a fixed test.

    >>> [Frontier()(value) for value in (0.0, 0.5, 0.75, 1.0)]
    [0.0, 1.0, 0.5, 0.0]
    """

    target: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.target <= 1:
            raise ValueError(f"frontier target must be in [0, 1], not {self.target}")

    def __call__(self, value: float) -> float:
        return 1 - abs(value - self.target) / max(self.target, 1 - self.target)


@dataclass
class RepetitionPenalty:
    """−weight · (share of the batch's other queries, and of the archive, that equal this one): R-Zero's idea, exact.

    Args:
        weight: the penalty of a query that all others equal.
        archive: how many past queries are remembered (0: the batch only).
    """

    weight: float
    archive: int = 0
    _past: deque[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.weight < 0 or self.archive < 0:
            raise ValueError("repetition: weight and archive must be 0 or more")
        self._past = deque(maxlen=self.archive)

    def __call__(self, queries: Sequence[str]) -> list[float]:
        """Penalties (zero or negative), then the batch joins the archive."""
        batch, past = Counter(queries), Counter(self._past)
        others, remembered = max(1, len(queries) - 1), max(1, len(self._past))
        penalties = [
            -self.weight * min(1.0, (batch[query] - 1) / others + past[query] / remembered) for query in queries
        ]
        self._past.extend(queries)
        return penalties

    def state(self) -> dict[str, Any]:
        """The archive, for a checkpoint."""
        return {"past": list(self._past)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self._past.clear()
        self._past.extend(state["past"])


def own_queries(n_queries: int, frozen_share: float) -> int:
    """How many of a step's queries the policy writes; the frozen Challenger writes the others.

    >>> own_queries(40, 0.5)
    20
    """
    if not 0 <= frozen_share <= 1:
        raise ValueError(f"frozen_share must be in [0, 1], not {frozen_share}")
    return n_queries - math.floor(n_queries * frozen_share + 0.5)
