"""What a game is about: tasks to ask for, how a query is read, how an answer and an exchange are judged.

The arena (`sparring.arena.domain`) and plain text (`sparring.text`) are the two domains shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sparring.data import PromptSet


@dataclass(frozen=True)
class Task:
    """What a Challenger is asked to write an input for. Empty strings: the model's own judgement.

    `template` holds {} placeholders that the Challenger fills; `name` is how reports call the pair.
    """

    task: str = ""
    template: str = ""
    name: str = "own judgement"


@dataclass(frozen=True)
class Query:
    """A Challenger's turn as the Solver will be asked it.

    `problem` says why a query is invalid (None: it is valid). `reserved` queries belong to the held-out tests:
    they are neither answered nor trained. `family` and `level` are for curricula in reports, None where a domain has
    no such thing.
    """

    text: str
    problem: str | None = None
    reserved: bool = False
    family: str | None = None
    level: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def answerable(self) -> bool:
        """Whether the Solver is asked."""
        return self.problem is None and not self.reserved


class QueryReader(Protocol):
    """Reads a Challenger's text: never raises, whatever the text."""

    def __call__(self, text: str, task: Task, complete: bool) -> Query:
        """complete: the turn ended by itself, not at max_new_tokens."""
        ...


class Rubric(Protocol):
    """Scores exchanges without asking a model; in [0, 1], None where it can't say."""

    def __call__(self, queries: Sequence[str], answers: Sequence[str]) -> list[float | None]: ...


@dataclass(frozen=True)
class TestItem:
    """One held-out question. `subset` is its path, widest first: ("hard", "reverse"); images: encoded bytes."""

    __test__ = False  # no test for pytest to collect

    item_id: str
    subset: tuple[str, ...]
    query: str
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Domain:
    """Everything a game asks of its subject.

    challenger, solver, grader: the roles' prompts (Jinja: task and template; query; query and answer).
    perceiver, reader: those of Vision-SR1 (query; query and description).
    parse_grade: a grader's reply → R_Q in [0, 1], None where it can't be read; points: what R_Q = 1 is worth in the
    paper's units.
    reward: R(q, a) where the domain can verify answers; rubric: R_Q by program; None where it has none.
    prompt_set: named prompt sets ("arena:easy"); tests: (seed, items a split) → held-out items.
    refuse_copies: whether a query that repeats another of its batch is invalid.
    """

    name: str
    challenger: str
    solver: str
    grader: str
    tasks: tuple[Task, ...]
    read_query: QueryReader
    parse_grade: Callable[[str], float | None]
    reward: Callable[..., Any] | None = None
    rubric: Rubric | None = None
    prompt_set: Callable[[str], PromptSet] | None = None
    tests: Callable[[int, int], list[TestItem]] | None = None
    points: int = 7
    refuse_copies: bool = False
    perceiver: str = ""
    reader: str = ""
