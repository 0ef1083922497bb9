r"""Rewards that a program can check: an answer's result against the row's reference, or against its siblings.

`game.reward.function=sparring.rewards.verifiable:math` pays 1 for the right result and 0 for another or none. The
reference is the row's column `answer`. Other columns, tolerances or a comparison of one's own take a file:

    from sparring.rewards.verifiable import Verified
    from sparring.verify.matching import Numeric
    reward = Verified(Numeric(relative=0.01), column="target")        # game.reward.function=my.py:reward
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparring.verify.choices import lone_option
from sparring.verify.ifeval.follow import Instructions, follow
from sparring.verify.matching import (
    Choice,
    Exact,
    Expression,
    Matcher,
    Normalised,
    Numeric,
    Regression,
    UnusableReferenceError,
)
from sparring.verify.vote import majority_label

OPTION = "multiple choice"


class _Matched:
    """A matcher's figures, and its end."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self._read = self._without = 0

    def require(self) -> None:
        """Raise ValueError where a library that comparisons need is not installed."""
        self.matcher.require()

    def drain(self) -> dict[str, float]:
        """`no_result`: the share of answers without a result since the last call; and the matcher's figures."""
        figures = {"no_result": self._without / self._read} if self._read else {}
        self._read = self._without = 0
        return {**figures, **self.matcher.drain()}

    def close(self) -> None:
        """Close the matcher."""
        self.matcher.close()

    def _results(self, answers: Sequence[str]) -> list[str | None]:
        results = [self.matcher.extract(answer) for answer in answers]
        self._read += len(results)
        self._without += results.count(None)
        return results


class Verified(_Matched):
    """R(q, a) against the reference in a column of the row.

    An answer without a result is wrong. One that can't be compared (in time) is None: not paid, counted.

    Args:
        matcher: how results are read and compared.
        column: the row's column with the reference.
    """

    def __init__(self, matcher: Matcher, column: str = "answer") -> None:
        super().__init__(matcher)
        self.column = column

    def __call__(self, queries: Sequence[str], answers: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """One score an answer.

        Raises:
            ValueError: there is no such column, or a row (named by its query) has no usable reference there.
        """
        references = _column(columns, self.column)
        labels = [self._label(query, value) for query, value in zip(queries, references, strict=True)]
        return self.matcher.compare(labels, self._results(answers))

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether a row's reference is one of this kind."""
        try:
            self.matcher.reference(row.get(self.column))
        except UnusableReferenceError:
            return False
        return True

    def _label(self, query: str, value: Any) -> str:
        try:
            return self.matcher.reference(value)
        except UnusableReferenceError as error:
            raise ValueError(f"column {self.column!r} of the row that asks {_start(query)}: {error}") from error


class ByType:
    """R(q, a) by the kind of answer that a column of the row names: each kind has a reward of its own.

    A row whose reference is none of its kind (a multiple choice whose answer is no letter) counts as one without a
    kind; of those, one whose reference is a letter A to J alone is a multiple choice.

    Args:
        rewards: kind, in lower case with single spaces → its reward. otherwise: of every other kind, and of none.
        column: the row's column with the kind.
    """

    def __init__(self, rewards: Mapping[str, Verified], otherwise: Verified, column: str = "problem_type") -> None:
        self._rewards, self._otherwise, self.column = dict(rewards), otherwise, column

    def __call__(self, queries: Sequence[str], answers: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """One score an answer; raises ValueError as `Verified` does."""
        named = columns.get(self.column, [None] * len(queries))
        chosen = [
            self._rewards.get(self.kind(name, {key: values[index] for key, values in columns.items()}), self._otherwise)
            for index, name in enumerate(named)
        ]
        scores: list[float | None] = [None] * len(queries)
        for reward in dict.fromkeys(chosen):
            mine = [index for index, other in enumerate(chosen) if other is reward]
            given = {name: [values[index] for index in mine] for name, values in columns.items()}
            found = reward([queries[index] for index in mine], [answers[index] for index in mine], **given)
            for index, score in zip(mine, found, strict=True):
                scores[index] = score
        return scores

    def kind(self, named: Any, row: Mapping[str, Any]) -> str:
        """The kind that a row (its columns) is compared by; empty: by none of its own."""
        kind = " ".join(re.split(r"[\s_-]+", str(named).lower()))
        if kind in self._rewards and self._rewards[kind].takes(row):
            return kind
        chosen = self._rewards.get(OPTION)
        return OPTION if chosen is not None and lone_option(row.get(chosen.column)) else ""

    def require(self) -> None:
        """Raise ValueError where a library that any kind's comparisons need is not installed."""
        for reward in (*self._rewards.values(), self._otherwise):
            reward.require()

    def drain(self) -> dict[str, float]:
        """Each kind's figures, by its name."""
        named = {**self._rewards, "other": self._otherwise}
        return {f"{kind}/{name}": value for kind, reward in named.items() for name, value in reward.drain().items()}

    def close(self) -> None:
        """Close them all."""
        for reward in (*self._rewards.values(), self._otherwise):
            reward.close()


class Majority(_Matched):
    """R(q, a) against what most answers to the same query say: a label where a query has none.

    Answers are compared as the matcher does. Without a majority (a tie, or no two that agree) all are None: not paid.

    Args:
        matcher: how results are read and compared.
    """

    def __init__(self, matcher: Matcher) -> None:
        super().__init__(matcher)
        self._votes = self._agreed = 0

    def __call__(self, queries: Sequence[str], answers: Sequence[str], siblings: Sequence[int]) -> list[float | None]:
        """One score an answer; `siblings` holds the same number for answers to one query, which texts don't tell."""
        results = self._results(answers)
        groups: dict[int, list[int]] = {}
        for index, group in enumerate(siblings):
            groups.setdefault(group, []).append(index)
        labels: list[str | None] = [None] * len(answers)
        for indices in groups.values():
            label = majority_label([results[index] for index in indices], self.matcher)
            self._votes += 1
            self._agreed += label is not None
            for index in indices:
                labels[index] = label
        return self.matcher.compare(labels, results)

    def drain(self) -> dict[str, float]:
        """Besides `no_result` and the matcher's: `labelled`, the share of queries with a majority."""
        figures = {"labelled": self._agreed / self._votes} if self._votes else {}
        self._votes = self._agreed = 0
        return {**figures, **super().drain()}


def ifeval(
    queries: Sequence[str],
    answers: Sequence[str],
    instruction_id_list: Sequence[Sequence[str]],
    kwargs: Sequence[Sequence[Any]],
) -> list[float]:
    """The share of a prompt's instructions that its answer follows, strictly; columns as IFEval's data has them.

    Raises:
        ValueError: a row (named by its query) with an unknown instruction, or arguments that it can't use.
    """
    scores: list[float] = []
    for query, answer, names, arguments in zip(queries, answers, instruction_id_list, kwargs, strict=True):
        instructions = Instructions.read(names, arguments, f"the row that asks {_start(query)}")
        followed = follow(instructions, answer)
        scores.append(sum(followed) / len(followed))
    return scores


def _column(columns: dict[str, Sequence[Any]], name: str) -> Sequence[Any]:
    if name not in columns:
        raise ValueError(
            f"no row has a column {name!r} with the reference; the rows have: {', '.join(columns) or 'none'}"
        )
    return columns[name]


def _start(query: str) -> str:
    return repr(query if len(query) <= 80 else f"{query[:77]}...")


math = Verified(Expression())
choice = Verified(Choice())
exact = Verified(Exact())
normalised = Verified(Normalised())
number = Verified(Numeric())
regression = Verified(Regression())
majority = Majority(Expression())
by_type = ByType({OPTION: Verified(Choice()), "regression": Verified(Regression())}, otherwise=Verified(Expression()))
"""Vision-SR1-47K's kinds: options by letter, regression by relative error, numerical answers as mathematics."""
