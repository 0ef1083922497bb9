r"""Whether answers to questions about pictures are right: a rule first, and of what the rule calls wrong a judge.

A judge sees question, reference and answer. What it says is read strictly: "correct" or "incorrect" and nothing else; a
reply that is neither never counts as right, and is counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sparring.evaluation.judges.base import Pair
from sparring.rewards.verifiable import by_type
from sparring.verify.extract import unwrapped
from sparring.verify.matching import Normalised
from sparring.verify.words import signs_of

RIGHT = 0.95
"""The least score of a right answer: a regression's is 1 minus its relative error."""

_VERDICTS = {"correct": True, "incorrect": False}
_NORMALISED = Normalised()


@dataclass(frozen=True)
class Answered:
    """An answer beside what it is compared with; columns: the row's others (problem_type says how to compare)."""

    question: str
    gold: str
    text: str
    columns: Mapping[str, Any]


class Writer(Protocol):
    """Who is asked in words: a reply a pair, in order; an empty one where none was to be had."""

    name: str

    def __call__(self, pairs: Sequence[Pair]) -> list[str]: ...


def by_rule(answers: Sequence[Answered]) -> list[bool | None]:
    """Whether each answer is right, by its kind: an option by its letter, a regression within 5 %, anything else as
    mathematics or as the same words. None: it could not be compared in time.

    See `rewards.verifiable.ByType`: a kind that the reference doesn't fit is not used, and a lone letter is a choice.
    """
    kinds = [_kind(answer) for answer in answers]
    texts = [answer.text for answer in answers]
    golds = [answer.gold for answer in answers]
    scores = by_type([answer.question for answer in answers], texts, answer=golds, problem_type=kinds)
    return [
        None if score is None else score >= RIGHT or (not kind and _same_words(answer))
        for answer, kind, score in zip(answers, kinds, scores, strict=True)
    ]


def by_judge(answers: Sequence[Answered], judge: Writer) -> list[bool | None]:
    """What a judge says of each answer; None: it said neither. An empty answer is wrong, and nobody is asked."""
    asked = [Pair(a.question, a.gold, a.text, str(number)) for number, a in enumerate(answers, 1) if a.text.strip()]
    replies = iter(judge(asked) if asked else [])
    return [read_verdict(next(replies)) if answer.text.strip() else False for answer in answers]


def by_rule_then_judge(answers: Sequence[Answered], judge: Writer | None) -> list[bool | None]:
    """By the rule; what that doesn't call right, by the judge, where there is one."""
    right = by_rule(answers)
    left = [index for index, verdict in enumerate(right) if not verdict]
    if judge is None or not left:
        return right
    found = dict(zip(left, by_judge([answers[index] for index in left], judge), strict=True))
    return [found.get(index, verdict) for index, verdict in enumerate(right)]


def read_verdict(reply: str) -> bool | None:
    r"""A judge's reply: whether it says "correct"; None unless its last line is that word or "incorrect", alone.

    >>> [read_verdict(text) for text in ("Correct.", "**incorrect**", "It is not correct.", "correct or incorrect", "")]
    [True, False, None, None, None]
    """
    last = reply.strip().rpartition("\n")[2]
    return _VERDICTS.get(re.sub(r"\s+", " ", unwrapped(last)).casefold())


def _kind(answer: Answered) -> str:
    return by_type.kind(answer.columns.get(by_type.column), {"answer": answer.gold})


def _same_words(answer: Answered) -> bool:
    given = _NORMALISED.extract(answer.text)
    if given is None or signs_of(answer.gold) != signs_of(given):
        return False  # words leave operators out: 2x + 1, 2x - 1
    return _NORMALISED.grade([(answer.gold, given)]) == [1.0]
