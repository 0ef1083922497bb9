"""The majority of a query's answers as its label: who votes, ties, and groups by prompt and never by text."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripted import ScriptedSampler, turn_of
from sparring.data import PromptSet, Row
from sparring.games.dataset import Dataset
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward
from sparring.rewards.verifiable import Majority
from sparring.roles import Role
from sparring.types import Prompt
from sparring.verify.matching import Choice, Expression, Numeric
from sparring.verify.pool import Pool
from sparring.verify.vote import majority_label

SOLVER = Role("solver", "{{ query }}", SamplingParams(8))


@pytest.mark.parametrize(
    ("results", "label"),
    [
        (["1", "1", "2"], "1"),
        (["0.5", "1/2", "2"], "0.5"),
        (["2", "1", "1.0", "1/1"], "1"),
        (["1", "1", "2", "2"], None),
        (["1", "1", "2", "2", "3"], None),
        (["1", "2", "3"], None),
        (["1"], None),
        (["1", None, None, None], None),
        (["1", "1", None, None, None], "1"),
        ([None, None], None),
        ([], None),
    ],
)
def test_labels(results: list[str | None], label: str | None) -> None:
    assert majority_label(results, Numeric()) == label


@given(st.lists(st.integers(0, 3).map(str), max_size=12), st.randoms())
def test_the_order_of_the_answers_does_not_matter(results: list[str], random: object) -> None:
    shuffled = list(results)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert majority_label(results, Numeric()) == majority_label(shuffled, Numeric())


def test_answers_are_paid_for_agreeing_with_their_siblings() -> None:
    reward = Majority(Numeric())
    answers = ["it is 4", "no idea", r"\boxed{4.0}", "5", "1", "2"]
    assert reward(["a"] * 4 + ["b"] * 2, answers, siblings=[0, 0, 0, 0, 1, 1]) == [1.0, 0.0, 1.0, 0.0, None, None]
    assert reward.drain() == {"labelled": 0.5, "no_result": pytest.approx(1 / 6)}
    assert reward.drain() == {}


def test_groups_are_by_query_and_not_by_its_text() -> None:
    reward = Majority(Choice())
    same_text = ["what?"] * 4
    assert reward(same_text, ["A", "A", "B", "B"], siblings=[0, 0, 1, 1]) == [1.0] * 4
    assert reward(same_text, ["A", "B", "A", "B"], siblings=[0, 0, 1, 1]) == [None] * 4
    assert reward(same_text, ["A", "B", "A", "B"], siblings=[0, 1, 0, 1]) == [1.0] * 4


def test_expressions_vote_by_equality() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed (the extra `verify`)")
    reward = Majority(Expression())
    answers = [r"\boxed{x + x}", r"\boxed{2x}", r"\boxed{3x}", "nothing"]
    assert reward(["q"] * 4, answers, siblings=[0] * 4) == [1.0, 1.0, 0.0, 0.0]
    reward.close()


def test_a_comparison_that_is_cut_off_agrees_with_nobody() -> None:
    stuck = "import time; print('true', flush=True); time.sleep(600)"
    reward = Majority(Expression(Pool(seconds=0.3, workers=1, command=(sys.executable, "-c", stuck))))
    assert reward(["q"] * 2, [r"\boxed{x}", r"\boxed{y}"], siblings=[0, 0]) == [None, None]
    assert reward.drain()["timeouts"] == 1.0
    reward.close()


def test_a_run_tells_the_reward_which_answers_are_siblings() -> None:
    reward = Reward(Majority(Numeric()))
    one, other = (Prompt(({"role": "user", "content": "how many?"},), None, {"query_text": "how many?"}) for _ in "ab")
    turns = [turn_of(SOLVER, prompt, text) for prompt, text in ((one, "1"), (other, "2"), (one, "1"), (other, "3"))]
    assert reward(["how many?"] * 4, turns) == [1.0, None, 1.0, None]


def test_grpo_on_questions_without_answers() -> None:
    rows = PromptSet([Row("how many?"), Row("how many?")], "two of one text")
    game = Dataset(SOLVER, rows, Reward(Majority(Numeric())), n_queries=2, n_answers=3)
    turns = game.play(ScriptedSampler({"solver": ["1", "1", "2", "3", "4", "5"]}))
    payoffs = game.payoffs(turns)
    assert [payoffs[turn].total if turn in payoffs else None for turn in turns] == [1.0, 1.0, 0.0, None, None, None]
    assert game.metrics(turns, payoffs)["reward/labelled"] == 0.5
