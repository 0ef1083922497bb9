"""The majority of a query's answers as its label, where nobody knows the right one.

Source: TTRL, arXiv 2504.16084, and R-Zero, arXiv 2508.05004, which pay an answer for agreeing with its siblings.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparring.verify.matching import Matcher

FEWEST = 2
"""Votes that make a label: one answer agrees with nobody."""


def majority_label(results: Sequence[str | None], matcher: Matcher) -> str | None:
    """The result that most answers give, by the matcher's equality; answers without a result (None) don't vote.

    None where two results have most votes, or none has two.

    >>> from sparring.verify.matching import Numeric
    >>> majority_label(["0.5", "1/2", "3", None], Numeric()), majority_label(["1", "1", "2", "2"], Numeric())
    ('0.5', None)
    """
    votes: dict[str, int] = {}
    for result in results:
        if result is None:
            continue
        same = next((label for label in votes if label == result), None) or _equal(result, list(votes), matcher)
        votes[same or result] = votes.get(same or result, 0) + 1
    most = max(votes.values(), default=0)
    ahead = [label for label, count in votes.items() if count == most]
    return ahead[0] if most >= FEWEST and len(ahead) == 1 else None


def _equal(result: str, labels: list[str], matcher: Matcher) -> str | None:
    grades = matcher.grade([(label, result) for label in labels])
    return next((label for label, grade in zip(labels, grades, strict=True) if grade == 1.0), None)
