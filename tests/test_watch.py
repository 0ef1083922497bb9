"""What is said while a run goes on, and that it is said once."""

from __future__ import annotations

from scripted import turn_of
from sparring.lm.base import SamplingParams
from sparring.roles import Role
from sparring.types import Turn
from sparring.watch import Watch

SOLVER = Role("solver", "{{ query }}", SamplingParams(8))
GRADER = Role("grader", "{{ query }}", SamplingParams(8), weight=0.0)
GRADED = [turn_of(GRADER, GRADER.prompt(query="q"), "a grade")]


def asked(role: Role, *too_long: bool, n: int = 2) -> list[Turn]:
    """n turns for each prompt, the prompt too long for the context or not."""
    prompts = [role.prompt(query=str(index)) for index in range(len(too_long))]
    return [
        turn_of(role, prompt, "").noting(too_long=long)
        for prompt, long in zip(prompts, too_long, strict=True)
        for _ in range(n)
    ]


def heard(rates: list[float | None], turns: list[Turn]) -> list[str]:
    said: list[str] = []
    watch = Watch(said.append)
    for step, rate in enumerate(rates, 1):
        watch.played(step, turns, {} if rate is None else {"quality/parse_rate": rate})
    return said


def test_grades_that_cannot_be_read_are_said_once_from_the_first_step_on() -> None:
    said = heard([0.75, 0.0, 0.0], GRADED)
    assert len(said) == 1
    for part in ("steps 1 to 1", "75%", "game.grader.prompt", "game.grader.max_new_tokens"):
        assert part in said[0]


def test_the_rate_is_the_mean_of_ten_steps() -> None:
    assert heard([1.0] * 8 + [0.0] * 2, GRADED) == []  # .8 is enough
    said = heard([0.9] * 20 + [0.0] * 2, GRADED)
    assert len(said) == 1
    assert "steps 13 to 22: only 72%" in said[0]


def test_without_a_grader_nothing_is_said_of_grades() -> None:
    assert heard([None] * 20, []) == []
    assert heard([0.1], asked(SOLVER, False)) == []  # a program's rubric has no prompt to look at


def test_prompts_without_room_are_said_once_a_role_with_their_count() -> None:
    said: list[str] = []
    watch = Watch(said.append)
    watch.played(1, asked(SOLVER, False, False), {})
    assert said == []
    watch.played(2, [*asked(SOLVER, True, False, True), *asked(GRADER, True, n=1)], {})
    watch.played(3, asked(SOLVER, True), {})
    assert len(said) == 2
    assert "step 2: 2 of 3 prompts of the solver" in said[0] and "game.solver.max_new_tokens" in said[0]
    assert "shorter prompts" in said[0]
    assert "1 of 1 prompts of the grader" in said[1] and "game.grader.max_new_tokens" in said[1]
