"""What a Challenger is paid for: objects, one a term, each readable on its own.

Symbols: V(q) in the reward's units is the mean reward of the answers to q, V_Q(q) their mean quality.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np


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
        """
        Raises:
            ValueError: V is outside [0, 1].
        """
        if not 0 <= value <= 1:
            raise ValueError(
                f"the frontier payoff is for rewards in [0, 1], and the answers to a query have a mean of {value:g}: "
                "set game.reward.scale=sigmoid, or game.challenge.payoff=adversarial"
            )
        return 1 - abs(value - self.target) / max(self.target, 1 - self.target)


class Similarity(Protocol):
    """How alike texts are, in [0, 1]; 1 for equal ones."""

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """[len(texts), len(others)] float64."""
        ...


@dataclass(frozen=True)
class Equality:
    """1 where two texts are equal, letter by letter, else 0.

    >>> Equality()(["a", "b"], ["b", "c"]).tolist()
    [[0.0, 0.0], [1.0, 0.0]]
    """

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """See Similarity."""
        return np.array([[float(text == other) for other in others] for text in texts]).reshape(len(texts), len(others))


@dataclass(frozen=True)
class NGrams:
    """Jaccard's index of two texts' word n-grams, |A ∩ B| / |A ∪ B|; case and punctuation don't count.

    A text of fewer words is one gram. Words are what blank space and punctuation part: texts in scripts without them
    are alike only where whole runs are equal.

    >>> NGrams(2)(["one two three"], ["One, two, three!", "two three four", "four"]).round(2).tolist()
    [[1.0, 0.33, 0.0]]
    """

    n: int = 3

    def __call__(self, texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """See Similarity."""
        given, met = [_grams(text, self.n) for text in texts], [_grams(other, self.n) for other in others]
        row: dict[str, int] = {}
        for gram in (gram for grams in given for gram in grams):
            row.setdefault(gram, len(row))
        holds = np.zeros((len(row), len(texts)))  # 1 where a text has the gram
        for index, grams in enumerate(given):
            holds[[row[gram] for gram in grams], index] = 1
        both = np.zeros((len(texts), len(others)))
        for index, grams in enumerate(met):
            both[:, index] = holds[[row[gram] for gram in grams if gram in row]].sum(axis=0)
        sizes = np.array([len(grams) for grams in given]), np.array([len(grams) for grams in met])
        return both / (sizes[0][:, None] + sizes[1][None, :] - both)


@lru_cache(maxsize=4096)  # an archive is compared with every batch
def _grams(text: str, n: int) -> frozenset[str]:
    words = re.findall(r"\w+", text.casefold())
    return frozenset(" ".join(words[start : start + n]) for start in range(max(1, len(words) - n + 1)))


@dataclass
class RepetitionPenalty:
    """−weight · min(1, mean similarity to the batch's other queries + mean similarity to the archive).

    With `Equality` these are the shares of the others, and of the archive, that equal the query: R-Zero's idea (arXiv
    2508.05004), exact. `NGrams` finds paraphrases that share phrases too, and gives the same where queries are either
    equal or have no phrase in common.

    Args:
        weight: the penalty of a query that all others equal.
        archive: how many past queries are remembered (0: the batch only).
        similarity: how alike two queries are.
    """

    weight: float
    archive: int = 0
    similarity: Similarity = field(default_factory=Equality)
    _past: deque[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.weight < 0 or self.archive < 0:
            raise ValueError("repetition: weight and archive must be 0 or more")
        self._past = deque(maxlen=self.archive)

    def __call__(self, queries: Sequence[str]) -> list[float]:
        """Penalties (zero or negative), then the batch joins the archive."""
        among, past = self.similarity(queries, queries), self.similarity(queries, list(self._past))
        np.fill_diagonal(among, 0.0)  # itself
        others, remembered = max(1, len(queries) - 1), max(1, len(self._past))
        alike = np.minimum(1.0, among.sum(axis=1) / others + past.sum(axis=1) / remembered)
        self._past.extend(queries)
        return [-self.weight * float(share) for share in alike]

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
