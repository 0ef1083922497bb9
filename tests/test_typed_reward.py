"""One reward over kinds of answers, told by a column."""

from __future__ import annotations

import pytest

from sparring.rewards.base import load_reward
from sparring.rewards.verifiable import ByType, Majority, Verified, by_type
from sparring.verify import pool as pools
from sparring.verify.matching import Choice, Expression, Numeric

ROWS = [
    ("multiple choice", "A", r"\boxed{(A)}", 1.0),
    ("multiple_choice", "(B)", r"\boxed{B. cat}", 1.0),
    ("Multiple-Choice", "C", r"\boxed{D}", 0.0),
    ("regression", "10", r"\boxed{9}", 0.9),
    ("regression", 4, r"\boxed{9}", 0.0),
    ("numerical", "0.5", r"\boxed{\frac{1}{2}}", 1.0),
    ("numerical", "12", r"\boxed{12}", 1.0),
    ("free-form", "red", r"\boxed{red}", 1.0),
    (None, "7", "no box at all", 0.0),
]


def test_what_it_needs_is_missed_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sparring\[verify\]"):
        load_reward("sparring.rewards.verifiable:by_type")
    load_reward("sparring.rewards.verifiable:number").close()


def test_each_kind_is_matched_in_its_own_way() -> None:
    kinds, gold, answers, expected = zip(*ROWS, strict=True)
    scores = by_type(["q"] * len(ROWS), list(answers), answer=list(gold), problem_type=list(kinds))
    assert scores == pytest.approx(list(expected))


def test_without_the_column_all_are_of_the_other_kind() -> None:
    assert by_type(["q"], [r"\boxed{3}"], answer=["3"]) == [1.0]


def test_figures_are_by_kind_and_start_anew() -> None:
    reward = ByType({"choice": Verified(Choice())}, otherwise=Verified(Numeric()), column="kind")
    reward(["q", "q"], ["A", "none"], answer=["A", "1"], kind=["choice", "x"])
    assert reward.drain() == {"choice/no_result": 0.0, "other/no_result": 1.0}
    assert reward.drain() == {}


def test_a_missing_reference_is_named() -> None:
    with pytest.raises(ValueError, match="the row that asks 'which"):
        by_type(["which one?"], [r"\boxed{A}"], answer=[None], problem_type=["multiple choice"])


def test_a_reference_that_is_none_of_its_kind_is_compared_as_if_it_had_no_kind() -> None:
    kinds = ["multiple choice", "multiple choice", "multiple choice", "regression"]
    answers = [r"\boxed{cat}", r"\boxed{dog}", r"\boxed{B}", r"\boxed{red}"]
    assert by_type(["q"] * 4, answers, answer=["cat", "cat", "A", "red"], problem_type=kinds) == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("kind", [None, "", "free-form", "regression"])
def test_a_lone_letter_is_an_option_whatever_the_kind(kind: str | None) -> None:
    answers = [r"\boxed{A.}", "Option A", "A. cat", r"\boxed{A, B}"]
    assert by_type(["q"] * 4, answers, answer=["A"] * 4, problem_type=[kind] * 4) == [1.0, 1.0, 1.0, 0.0]


def test_what_it_needs_is_asked_for_before_any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "find_spec", lambda name: None)
    for reward in (ByType({}, otherwise=Verified(Expression())), Verified(Expression()), Majority(Expression())):
        with pytest.raises(ValueError, match=r"pip install 'sparring\[verify\]'"):
            reward.require()
    ByType({}, otherwise=Verified(Numeric())).require()
