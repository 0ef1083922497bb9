"""What a step says of a run's health beyond its metrics: figures of its texts and of its two judges.

Every figure is a share, a distance or a number of standard deviations; a figure that can't be told (no queries, no
judge, no first steps yet) is left out. Times are bounded: texts are compared by their ends, many answers by a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np

from sparring.domains import Query
from sparring.health.language import CODE_MOST, asks_for_code, distance, evenly, has_code, profile
from sparring.health.sketch import TABLE, Sketch, clusters, of_levelled, sketched
from sparring.types import Payoffs, Turn


@dataclass(frozen=True)
class Exchange:
    """One answer of the policy: to what, and its two scores where it has them."""

    query: str
    answer: str
    reward: float | None = None
    judged: float | None = None


@dataclass(frozen=True)
class Said:
    """What the policy said in one step: queries as they were read, valid or not, and answers."""

    queries: tuple[str, ...] = ()
    exchanges: tuple[Exchange, ...] = ()


def said(turns: Sequence[Turn], payoffs: Payoffs) -> Said:
    """From a step's turns; the frozen reference's are left out. The payoff's part `reward` is R, `quality` R_Q."""
    queries: list[str] = []
    exchanges: list[Exchange] = []
    for turn in turns:
        query = turn.info.get("query")
        if turn.model != "policy":
            continue
        if isinstance(query, Query):
            queries.append(query.text)
            continue
        asked = turn.prompt.info.get("query_text", turn.prompt.messages[-1]["content"])
        parts = payoffs[turn].parts if turn in payoffs else {}
        exchanges.append(Exchange(str(asked), turn.text, parts.get("reward"), parts.get("quality")))
    return Said(tuple(queries), tuple(exchanges))


def of_batch(queries: Sketch) -> dict[str, float]:
    """Among a step's queries: share of different ones, of different n-grams, and the largest cluster's share."""
    n = len(queries.texts)
    if n == 0:
        return {}
    places = queries.places()
    return {
        "queries/distinct": len(set(queries.texts)) / n,
        "queries/ngrams": len(np.unique(places)) / len(places),
        "queries/cluster": float(clusters(queries)[0]) / n,
    }


def against(queries: Sketch, past: Sketch) -> dict[str, float]:
    """Of a step's queries the share met before, near one met before, and the share of their n-grams met before."""
    if not queries.texts or not past.texts:
        return {}
    met, places = set(past.texts), queries.places()
    held = np.zeros(TABLE, np.bool_)
    held[past.places()] = True
    near = np.stack([np.isin(queries.bands[:, band], past.bands[:, band]) for band in range(past.bands.shape[1])])
    return {
        "queries/seen": fmean(text in met for text in queries.texts),
        "queries/seen_ngrams": float(held[places].mean()),
        "queries/seen_near": float(near.any(axis=0).mean()),
    }


def code_share(exchanges: Sequence[Exchange]) -> dict[str, float]:
    """The share of answers with code among those whose query asks for none; of many exchanges, by a sample."""
    asked: dict[str, bool] = {}
    coded: list[bool] = []
    for exchange in evenly(exchanges, CODE_MOST):
        if exchange.query not in asked:
            asked[exchange.query] = asks_for_code(exchange.query)
        if not asked[exchange.query]:
            coded.append(has_code(exchange.answer))
    return {"answers/code": fmean(coded)} if coded else {}


@dataclass
class Moments:
    """Count, sum and sum of squares of a score over some steps."""

    steps: int = 0
    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        """One more step's values."""
        self.steps += 1
        self.n += len(values)
        self.total += sum(values)
        self.squares += sum(value * value for value in values)

    def risen(self, values: Sequence[float]) -> float | None:
        """How far the mean of these lies above ours, in our standard deviations; None where all of ours are equal."""
        mean = self.total / self.n
        variance = self.squares / self.n - mean * mean
        # What is left of equal values after rounding is no spread.
        if variance <= 1e-12 * max(1.0, mean * mean):
            return None
        return (fmean(values) - mean) / sqrt(variance)


class FirstSteps:
    """What the run's first steps were like: profiles and scores to compare later ones with.

    Args:
        steps: how many of them, of those that had something to compare.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._profiles: dict[str, list[list[float]]] = {}
        self._scores = {"reward": Moments(), "judged": Moments()}

    def language(self, name: str, texts: Sequence[str]) -> dict[str, float]:
        """<name>/language: the profile's distance from the first steps' mean profile."""
        if not texts:
            return {}
        first = self._profiles.setdefault(name, [])
        now = profile(texts)
        if len(first) < self._steps:
            first.append(now.tolist())
            return {}
        return {f"{name}/language": distance(now, np.mean(first, axis=0))}

    def scores(self, exchanges: Sequence[Exchange]) -> dict[str, float]:
        """answers/reward: how far the mean reward lies above the first steps', in their standard deviations;
        answers/divergence: how much further it has risen than the judge, measured alike.

        Left out where all first answers were given the same, which tells no unit.
        """
        reward = self._risen("reward", [e.reward for e in exchanges if e.reward is not None])
        judged = self._risen("judged", [e.judged for e in exchanges if e.judged is not None])
        figures = {} if reward is None else {"answers/reward": reward}
        return figures if reward is None or judged is None else {**figures, "answers/divergence": reward - judged}

    def _risen(self, score: str, values: Sequence[float]) -> float | None:
        moments = self._scores[score]
        if values and moments.steps < self._steps:
            moments.add([float(value) for value in values])
            return None
        return moments.risen(values) if values else None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        profiles = {name: [list(row) for row in rows] for name, rows in self._profiles.items()}
        return {"profiles": profiles, "scores": {name: asdict(moments) for name, moments in self._scores.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self._profiles = {name: [list(row) for row in rows] for name, rows in state["profiles"].items()}
        self._scores = {name: Moments(**moments) for name, moments in state["scores"].items()}


class Past:
    """What a run said so far: an archive of its last queries, and its first steps.

    Args:
        archive: queries remembered (0: none).
        first_steps: see FirstSteps.
    """

    def __init__(self, archive: int, first_steps: int) -> None:
        self._size = archive
        self._archive = sketched(())
        self._first = FirstSteps(first_steps)

    def figures(self, step: Said) -> dict[str, float]:
        """health/<figure> of one step, which then belongs to the past."""
        queries = sketched(step.queries)
        figures = {
            **of_batch(queries),
            **against(queries, self._archive),
            **self._first.language("queries", step.queries),
            **self._first.language("answers", [exchange.answer for exchange in step.exchanges]),
            **code_share(step.exchanges),
            **self._first.scores(step.exchanges),
        }
        self._archive = self._archive.joined(queries).last(self._size)
        return {f"health/{name}": value for name, value in figures.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"archive": list(self._archive.texts), "first": self._first.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self._archive = of_levelled(state["archive"]).last(self._size)
        self._first.restore(state["first"])
