"""What a benchmark is: its questions, and how answers to them are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from sparring import prompts
from sparring.domains import TestItem
from sparring.evaluation.benchmarks.rows import Row, Source, read_rows
from sparring.evaluation.statistics import paired_bootstrap_ci, pass_at_k, wilson_interval


@dataclass(frozen=True)
class ItemResult:
    """One item's answers, scored.

    Attributes:
        item_id: the item's.
        subset: the item's, widest first; () for none.
        scores: one an answer: 1.0 right, 0.0 wrong.
        unscored: answers that could not be judged (a comparison cut off, a sandbox that failed); they count as wrong.
        details: what a benchmark knows besides, one mapping an answer.
    """

    item_id: str
    subset: tuple[str, ...]
    scores: tuple[float, ...]
    unscored: int = 0
    details: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(
        cls, item: TestItem, scores: Sequence[float | None], details: Sequence[Mapping[str, Any]] = ()
    ) -> ItemResult:
        """From scores of which None says that an answer could not be judged."""
        unscored = sum(score is None for score in scores)
        return cls(item.item_id, item.subset, tuple(score or 0.0 for score in scores), unscored, tuple(details))


@dataclass(frozen=True)
class Accuracy:
    """The share of right answers over some items.

    Attributes:
        n: items.
        accuracy: mean over items of the share of their answers that are right, a fraction in [0, 1].
        ci95: 95 % interval over items: Wilson's with one answer an item, a bootstrap of items with several.
    """

    n: int
    accuracy: float
    ci95: tuple[float, float]

    @classmethod
    def of(cls, results: Sequence[ItemResult]) -> Accuracy:
        """Over these items (at least one)."""
        shares = [float(np.mean(result.scores)) for result in results]
        single = all(len(result.scores) == 1 for result in results)
        interval = wilson_interval(round(sum(shares)), len(shares)) if single else paired_bootstrap_ci(shares)
        return cls(len(shares), float(np.mean(shares)), interval)


@dataclass(frozen=True)
class BenchmarkReport:
    """A model's result on a benchmark.

    Attributes:
        benchmark: its name.
        samples: answers an item.
        overall: over all items.
        subsets: by subset path joined with "/": "Algebra" holds all of "Algebra/level 3" and its siblings.
        pass_at: k → the mean over items of the unbiased chance that one of k answers is right; for each k asked for.
        unscored: share of the answers that could not be judged and count as wrong.
        figures: what the benchmark reports besides, such as IFEval's four accuracies.
    """

    benchmark: str
    samples: int
    overall: Accuracy
    subsets: Mapping[str, Accuracy]
    pass_at: Mapping[int, float]
    unscored: float
    figures: Mapping[str, float] = field(default_factory=dict[str, float])

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON; the keys of `pass_at` become text."""
        return {**asdict(self), "pass_at": {str(k): value for k, value in self.pass_at.items()}}


class Benchmark(ABC):
    """A set of questions with a program that scores answers.

    `name` is also its prompt's, in `sparring.prompts`; `source` says where the set is on the hub.
    """

    name: ClassVar[str]
    source: ClassVar[Source]

    @property
    def template(self) -> str:
        """The prompt, zero-shot: a Jinja text with {{ query }}."""
        return prompts.read(self.name)

    def load(self, path: str | None = None) -> list[TestItem]:
        """The items, in the set's order: from a file (.jsonl, .jsonl.gz, .json, .parquet), or from the hub.

        Raises:
            ValueError: nothing there, a damaged file, an empty set, or a row that lacks a field or holds a wrong value;
                the message names file, line and field.
        """
        items = [self.item(row) for row in read_rows(path, self.source)]
        known: set[str] = set()
        for item in items:
            if item.item_id in known:
                raise ValueError(f"{path or self.source.hub_id}: two items are called {item.item_id!r}")
            known.add(item.item_id)
        return items

    @abstractmethod
    def item(self, row: Row) -> TestItem:
        """An item from a row."""

    @abstractmethod
    def score(self, items: Sequence[TestItem], answers: Sequence[Sequence[str]]) -> list[ItemResult]:
        """One result an item, from its answers (at least one, equally many an item).

        Raises:
            ValueError: what scoring needs is not installed.
        """

    def figures(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """What the benchmark reports besides accuracy."""
        return {}

    def report(self, results: Sequence[ItemResult], pass_at: Sequence[int] = ()) -> BenchmarkReport:
        """Accuracy overall and per subset, pass@k for each k of `pass_at`, and the benchmark's own figures.

        Raises:
            ValueError: no results, or fewer answers an item than a k.
        """
        if not results:
            raise ValueError(f"{self.name}: there is no result to report")
        samples = len(results[0].scores)
        return BenchmarkReport(
            self.name,
            samples,
            Accuracy.of(results),
            {name: Accuracy.of(members) for name, members in _by_subset(results).items()},
            {k: float(np.mean([pass_at_k(samples, _right(result), k) for result in results])) for k in pass_at},
            sum(result.unscored for result in results) / (samples * len(results)),
            self.figures(results),
        )

    def close(self) -> None:  # noqa: B027 - most hold nothing open
        """Let go of what scoring holds open."""


def flat(items: Sequence[TestItem], answers: Sequence[Sequence[str]]) -> Iterator[tuple[TestItem, str]]:
    """Each answer with its item, item by item."""
    for item, given in zip(items, answers, strict=True):
        for answer in given:
            yield item, answer


def grouped(
    items: Sequence[TestItem], answers: Sequence[Sequence[str]], scores: Sequence[float | None]
) -> list[ItemResult]:
    """One result an item, from the scores of `flat`'s answers."""
    rest = iter(scores)
    return [ItemResult.of(item, [next(rest) for _ in given]) for item, given in zip(items, answers, strict=True)]


def _right(result: ItemResult) -> int:
    return sum(score == 1.0 for score in result.scores)


def _by_subset(results: Sequence[ItemResult]) -> dict[str, list[ItemResult]]:
    subsets: dict[str, list[ItemResult]] = {}
    for result in results:
        for depth in range(1, len(result.subset) + 1):
            subsets.setdefault("/".join(result.subset[:depth]), []).append(result)
    return dict(sorted(subsets.items()))
