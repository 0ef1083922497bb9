r"""Graders of perception: whether a description holds what its question needs.

A grader is a program (a domain's, or a user's function), or a model that answers the question from the description
alone and whose answer is compared with the gold one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from sparring.domains import Described
from sparring.evaluation.judges.base import Judge, JudgeError, Pair
from sparring.evaluation.judges.templates import Template
from sparring.evaluation.matched import Answered, Writer, by_rule_then_judge
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.types import Prompt, Turn
from sparring.verify.extract import boxed
from sparring.verify.matching import normalised

SUFFICIENT, SAME_ANSWER = "sufficient", "same_answer"
"""The shipped prompts: of a grader that answers, and of a judge of answers."""

CANNOT_TELL = "cannot tell"
"""What a grader is told to say where the description is not enough: a verdict like any wrong answer."""

_NOBODY = Role("described", "", SamplingParams(1), weight=0.0)


def template(name: str) -> Template:
    """A shipped prompt of this module."""
    file = files("sparring.evaluation.judges").joinpath(f"prompts/{name}.txt")
    return Template((("user", file.read_text(encoding="utf-8").strip()),))


class Written:
    """A kind of verdict (`judges.styles.Style`) that is nothing but text, written greedily."""

    name = "written"

    def __init__(self, max_tokens: int) -> None:
        self.completion_tokens = max_tokens

    @property
    def request(self) -> dict[str, Any]:
        """Greedy."""
        return {"max_tokens": self.completion_tokens, "temperature": 0.0}

    def read(self, choice: Mapping[str, Any]) -> tuple[float | None, str]:
        """See `Style.read`."""
        text = choice["message"].get("content")
        if not isinstance(text, str | None):
            raise TypeError(f"content is {type(text).__name__}")
        return None, text or ""


class Replies:
    """A judge's replies as text: `matched.Writer` over any judge that writes. One cut off at max_tokens is empty."""

    def __init__(self, judge: Judge, max_tokens: int) -> None:
        self._judge, self._max_tokens, self.name = judge, max_tokens, judge.name

    def __call__(self, pairs: Sequence[Pair]) -> list[str]:
        """See `matched.Writer`."""
        verdicts = self._judge.judge(pairs)
        return ["" if verdict.completion_tokens >= self._max_tokens else verdict.text for verdict in verdicts]


class ModelGrader:
    r"""A model that gets question and description, nothing else; what lets it come to the gold answer is sufficient.

    Its answer is read from its last \boxed{…} alone: without one there is no verdict. By the rule of `matched`, then,
    where there is one, by a judge that sees question, gold and answer.

    Args:
        answering: who answers, asked with the prompt `sufficient`.
        judge: who judges answers that the rule calls wrong, asked with the prompt `same_answer`.
    """

    def __init__(self, answering: Writer, judge: Writer | None = None) -> None:
        self._answering, self._judge = answering, judge

    def __call__(self, asked: Sequence[Described]) -> list[bool | None]:
        """See `SufficiencyGrader`."""
        pairs = [Pair(one.question, one.description, "", str(number)) for number, one in enumerate(asked, 1)]
        found = [boxed(reply) for reply in self._answering(pairs)]
        answers = {
            index: Answered(one.question, one.gold, f"\\boxed{{{result}}}", one.columns)
            for index, (one, result) in enumerate(zip(asked, found, strict=True))
            if result is not None and normalised(result) != CANNOT_TELL
        }
        verdicts = dict(zip(answers, by_rule_then_judge(list(answers.values()), self._judge), strict=True))
        return [None if result is None else verdicts.get(index, False) for index, result in enumerate(found)]


class FunctionGrader:
    """A user's program, of a reward's form: (questions, descriptions, **columns) → 1 where one suffices, 0 where not,
    None where it can't say."""

    def __init__(self, function: Reward) -> None:
        self._function = function

    def __call__(self, asked: Sequence[Described]) -> list[bool | None]:
        """See `SufficiencyGrader`. Raises JudgeError for a number that is neither 1 nor 0."""
        scores = self._function([one.question for one in asked], [_turn(one) for one in asked])
        for score in scores:
            if score not in (None, 0.0, 1.0):
                raise JudgeError(f"--grader: {self._function.name} must return 1, 0 or None, not {score:g}")
        return [None if score is None else score == 1.0 for score in scores]


def _turn(one: Described) -> Turn:
    """A description as a reward expects an answer; nobody sampled it."""
    columns = {**one.columns, "answer": one.gold, "query_text": one.question}
    prompt = Prompt(({"role": "user", "content": one.question},), info=columns)
    return Turn(_NOBODY, prompt, (), (), np.empty(0, np.float32), one.description, "stop", info=columns)
