"""R_Q: the quality of an exchange, from the frozen reference under a rubric, or from a program.

Source: Language Self-Play, arXiv 2509.07414, section 3 and its Box 3 (seven yes/no criteria).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from sparring.domains import Rubric
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.types import Turn, children, of_role

GradeParser = Callable[[str], float | None]
"""a grader's reply → R_Q, None where it can't be read or contradicts itself"""


class Quality(Protocol):
    """Where R_Q(q, a) comes from. `ask` takes the grader's turns; `read` turns them into scores by answer.

    `parse_rate` is the share of what was asked for that could be read, None where nothing was.
    """

    roles: tuple[Role, ...]

    def ask(self, sampler: Sampler, answers: Sequence[Turn]) -> list[Turn]: ...

    def read(self, answers: Sequence[Turn], turns: Sequence[Turn]) -> dict[Turn, float | None]: ...

    def parse_rate(self, grades: Sequence[float | None], turns: Sequence[Turn]) -> float | None: ...


class ReferenceQuality:
    """The frozen reference grades each exchange, as in the paper.

    A reply that can't be read, that was cut off, or whose total is not its points' sum, is None: counted, left out of
    the mean, never 0.
    Several samples (the grader's temperature above 0) are averaged over those that could be read.
    """

    def __init__(self, grader: Role, parse: GradeParser, samples: int = 1) -> None:
        if grader.weight != 0:
            raise ValueError("the grader is the frozen reference: its role must have weight 0")
        if samples < 1:
            raise ValueError(f"quality samples must be at least 1, not {samples}")
        self.roles = (grader,)
        self._grader, self._parse, self._samples = grader, parse, samples

    def ask(self, sampler: Sampler, answers: Sequence[Turn]) -> list[Turn]:
        """One prompt an answer, asked of the reference."""
        prompts = [
            self._grader.prompt(query=query_text(answer), answer=answer.text, parent=answer) for answer in answers
        ]
        return sampler.sample(self._grader, prompts, n=self._samples, model="reference")

    def read(self, answers: Sequence[Turn], turns: Sequence[Turn]) -> dict[Turn, float | None]:
        """Mean of the readable grades of each answer."""
        replies = children(turns, self._grader)
        return {answer: _mean([self._grade(reply) for reply in replies[answer]]) for answer in answers}

    def parse_rate(self, grades: Sequence[float | None], turns: Sequence[Turn]) -> float | None:
        """The share of the grader's replies that could be read."""
        return _known_share([self._grade(reply) for reply in of_role(turns, self._grader)])

    def _grade(self, reply: Turn) -> float | None:
        return self._parse(reply.text) if reply.finish == "stop" else None


class ProgramQuality:
    """A program scores each exchange: the cheap setting, where a domain has one."""

    roles: tuple[Role, ...] = ()

    def __init__(self, rubric: Rubric) -> None:
        self._rubric = rubric

    def ask(self, sampler: Sampler, answers: Sequence[Turn]) -> list[Turn]:
        """Nobody is asked."""
        return []

    def read(self, answers: Sequence[Turn], turns: Sequence[Turn]) -> dict[Turn, float | None]:
        """The rubric's score of each answer."""
        scores = self._rubric([query_text(answer) for answer in answers], [answer.text for answer in answers])
        return dict(zip(answers, scores, strict=True))

    def parse_rate(self, grades: Sequence[float | None], turns: Sequence[Turn]) -> float | None:
        """The share of the program's scores that are known."""
        return _known_share(grades)


def query_text(answer: Turn) -> str:
    """The query an answer replies to, as the Solver was asked it."""
    return str(answer.prompt.info["query_text"])


def mean_by_query(
    scores: Mapping[Turn, float | None], answers_by_query: Mapping[Turn, Sequence[Turn]]
) -> dict[Turn, float | None]:
    """V(q_i) = (1/G) Σ_j R(q_i, a_i^j), over the answers that have a score; None where none has."""
    return {query: _mean([scores[answer] for answer in answers]) for query, answers in answers_by_query.items()}


def _known_share(values: Sequence[float | None]) -> float | None:
    return sum(value is not None for value in values) / len(values) if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
