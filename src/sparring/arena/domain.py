"""The arena as a domain: what the games ask of the toy language."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.arena import rubric
from sparring.arena.language import TASKS, answer, parse_query
from sparring.arena.rubric import POINTS, parse_grade
from sparring.arena.split import held_out, test_set, train_set
from sparring.arena.verifier import verify
from sparring.data import PromptSet, Row
from sparring.domains import Domain, Query, Task, TestItem

TRAIN_SEED, TRAIN_ROWS = 7, 20_000


def read_query(text: str, task: Task, complete: bool) -> Query:
    """Strict: malformed, cut off or (where a family was asked for) of another family is invalid."""
    query = parse_query(text)
    if query is None:
        return Query(text, problem="malformed")
    known = {"family": query.family, "level": float(query.level)}
    if not complete:
        return Query(text, problem="cut off", **known)
    if task.task and task.task.lower() != query.family:
        return Query(text, problem="another family", **known)
    return Query(text, reserved=held_out(text), columns={"answer": answer(query)}, **known)


def reward(queries: Sequence[str], answers: Sequence[str]) -> list[float]:
    """R: 1 for a right answer, 0 for anything else."""
    return [verify(query, answer) for query, answer in zip(queries, answers, strict=True)]


def quality(queries: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    """R_Q by program: the rubric's points over seven."""
    return [sum(rubric.score(query, answer)) / POINTS for query, answer in zip(queries, answers, strict=True)]


def read_grade(text: str) -> float | None:
    """R_Q from the grader's reply."""
    total = parse_grade(text)
    return None if total is None else total / POINTS


def prompt_set(name: str) -> PromptSet:
    """`easy` or `hard`: queries for GRPO on data, none of them held out."""
    if name not in ("easy", "hard"):
        raise ValueError(f"the arena has the prompt sets arena:easy and arena:hard, not arena:{name}")
    drawn = train_set(name, TRAIN_SEED, TRAIN_ROWS)
    rows = [Row(str(query), None, {"family": query.family, "answer": answer(query)}) for query in drawn]
    return PromptSet(rows, f"arena:{name}")


def tests(seed: int, n: int) -> list[TestItem]:
    """n held-out queries of each split."""
    return [
        TestItem(f"{split}-{index}", (split, query.family), str(query), {"family": query.family})
        for split in ("easy", "hard")
        for index, query in enumerate(test_set(split, seed, n))
    ]


ARENA = Domain(
    name="arena",
    challenger="Challenger:{% if task %}{{ task }}>{{ template }}{% endif %}",
    solver="Solver:{{ query }}",
    grader="Grader:{{ query }}|{{ answer }}",
    tasks=tuple(Task(task, template, task.lower() or "own judgement") for task, template in TASKS),
    read_query=read_query,
    parse_grade=read_grade,
    reward=reward,
    rubric=quality,
    prompt_set=prompt_set,
    tests=tests,
    points=POINTS,
)
