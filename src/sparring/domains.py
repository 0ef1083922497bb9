"""What a game is about: tasks to ask for, how a query is read, how an answer and an exchange are judged.

The arena (`sparring.arena.domain`), pictures (`sparring.pictures.domain`) and plain text (`sparring.text`) are the
domains shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sparring.data import PromptSet
from sparring.data_held import Held


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
    """One held-out question. `subset` is its path, widest first: ("hard", "reverse"); images: unopened."""

    __test__ = False  # no test for pytest to collect

    item_id: str
    subset: tuple[str, ...]
    query: str
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    images: tuple[Path | bytes | Held, ...] = ()


@dataclass(frozen=True)
class Described:
    """What a grader of perception is given: a question, what a model said of the picture, and the right answer."""

    question: str
    description: str
    gold: str
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


class SufficiencyGrader(Protocol):
    """Whether the right answer can be had from each description alone; None where no verdict could be read."""

    def __call__(self, asked: Sequence[Described]) -> list[bool | None]: ...


class Faithfulness(Protocol):
    """How true descriptions of held-out pictures are, as named figures; None where there is nothing to count."""

    def __call__(
        self, items: Sequence[TestItem], described: Sequence[str | None]
    ) -> Mapping[str, Mapping[str, float | None]]: ...


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Everything a game asks of its subject. What a domain has no use for is left empty.

    challenger, solver, grader: the roles' prompts (Jinja: task and template; query; query and answer).
    perceiver, reader: those of Vision-SR1 (query; query and description).
    parse_grade: a grader's reply → R_Q in [0, 1], None where it can't be read; points: what R_Q = 1 is worth in the
    paper's units.
    reward: R(q, a) where the domain can verify answers; rubric: R_Q by program; None where it has none.
    prompt_set: named prompt sets ("arena:easy"); tests: (seed, items a split) → held-out items.
    refuse_copies: whether a query that repeats another of its batch is invalid.
    sufficient, faithful: descriptions judged by program.
    """

    name: str
    solver: str
    challenger: str = ""
    grader: str = ""
    tasks: tuple[Task, ...] = ()
    read_query: QueryReader | None = None
    parse_grade: Callable[[str], float | None] | None = None
    reward: Callable[..., Any] | None = None
    rubric: Rubric | None = None
    prompt_set: Callable[[str], PromptSet] | None = None
    tests: Callable[[int, int], list[TestItem]] | None = None
    points: int = 7
    refuse_copies: bool = False
    perceiver: str = ""
    reader: str = ""
    sufficient: SufficiencyGrader | None = None
    faithful: Faithfulness | None = None
