r"""Benchmarks of one right answer: GSM8K and MATH-500."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sparring.domains import TestItem
from sparring.evaluation.benchmarks.base import Benchmark, ItemResult, flat, grouped
from sparring.evaluation.benchmarks.rows import Row, Source
from sparring.verify.matching import Expression, Matcher, Numeric, UnusableReferenceError


class _Matched(Benchmark):
    """Answers' results compared with the row's by a matcher."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def score(self, items: Sequence[TestItem], answers: Sequence[Sequence[str]]) -> list[ItemResult]:
        """1 for the right result, 0 for another or none."""
        given = list(flat(items, answers))
        wanted = [str(item.columns["answer"]) for item, _ in given]
        return grouped(
            items, answers, self._matcher.compare(wanted, [self._matcher.extract(text) for _, text in given])
        )

    def close(self) -> None:
        """Close the matcher."""
        self._matcher.close()

    def _reference(self, row: Row, field: str) -> str:
        try:
            return self._matcher.reference(row.value(field))
        except UnusableReferenceError as error:
            raise ValueError(f"{row.where}: its {field}: {error}") from error


class GSM8K(_Matched):
    """Grade-school word problems with a number as answer. Source: Cobbe et al. 2021, arXiv 2110.14168."""

    name: ClassVar[str] = "gsm8k"
    source: ClassVar[Source] = Source("openai/gsm8k", "test", "main")

    def __init__(self) -> None:
        super().__init__(Numeric())

    def item(self, row: Row) -> TestItem:
        """A row of `question` and `answer` (a solution that ends on "#### 72")."""
        columns = {"answer": self._reference(row, "answer")}
        return TestItem(f"gsm8k/{row.number}", (), row.text("question"), columns)


class Math500(_Matched):
    """500 problems of MATH. Source: Lightman et al. 2023, arXiv 2305.20050; Hendrycks et al. 2021, arXiv 2103.03874.

    Subsets are the subject, and within it the level. Comparing needs math-verify (`pip install 'sparring[verify]'`).
    """

    name: ClassVar[str] = "math500"
    source: ClassVar[Source] = Source("HuggingFaceH4/MATH-500", "test")

    def __init__(self) -> None:
        super().__init__(Expression())

    def item(self, row: Row) -> TestItem:
        """A row of `problem`, `answer`, `subject`, `level` and `unique_id`."""
        subset = (row.text("subject"), f"level {row.value('level')}")
        columns = {"answer": self._reference(row, "answer")}
        return TestItem(row.text("unique_id"), subset, row.text("problem"), columns)
