"""Answers against references: matchers, the processes that compare expressions, and the rewards made of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from real_data import real_data
from scripted import turn_of
from sparring.lm.base import SamplingParams
from sparring.rewards import verifiable
from sparring.rewards.base import Reward, RewardError, load_reward
from sparring.rewards.verifiable import Verified
from sparring.roles import Role
from sparring.types import Prompt, Turn
from sparring.verify import pool as pools
from sparring.verify.matching import (
    ByFunction,
    Choice,
    Exact,
    Expression,
    Matcher,
    Normalised,
    Numeric,
    Regression,
    UnusableReferenceError,
)
from sparring.verify.pool import Pool

SCRIPT = """
import json, os, sys, time
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    if "hang" in question:
        time.sleep(600)
    if "die" in question:
        os._exit(3)
    print(json.dumps([os.getpid(), question]), flush=True)
"""
SOLVER = Role("solver", "{{ query }}", SamplingParams(8))


def answered(query: str, text: str, /, **columns: Any) -> Turn:
    info = {**columns, "query_text": query}
    return turn_of(SOLVER, Prompt(({"role": "user", "content": query},), None, info), text)


def scores(matcher: Matcher, reference: Any, *answers: str) -> list[float | None]:
    wanted = matcher.reference(reference)
    return matcher.compare([wanted] * len(answers), [matcher.extract(answer) for answer in answers])


# --- matchers without algebra ------------------------------------------------------------------------


def test_exact_takes_a_box_a_statement_or_the_whole_text() -> None:
    assert scores(
        Exact(), "Paris", r"\boxed{Paris}", "The answer is Paris.", " Paris ", "paris", "It is Paris", ""
    ) == [
        1.0,
        1.0,
        1.0,
        0.0,
        0.0,
        0.0,
    ]


def test_normalised_takes_case_articles_and_punctuation_away() -> None:
    assert scores(Normalised(), "The Nile", "nile", "Answer: the NILE!", "Amazon") == [1.0, 1.0, 0.0]


def test_choices_by_letter_or_number() -> None:
    assert scores(Choice(), "B", "The answer is (B).", "b", "C", "no idea") == [1.0, 1.0, 0.0, 0.0]
    assert scores(Choice(), 1, "B", "A") == [1.0, 0.0]


def test_numbers_within_tolerances() -> None:
    assert scores(Numeric(), "1,000", "#### 1000", "$1000 a day", "1001", "a lot") == [1.0, 1.0, 0.0, 0.0]
    assert scores(Numeric(relative=0.01), 200, "202", "202.5", "198") == [1.0, 0.0, 1.0]
    assert scores(Numeric(absolute=0.5), "3", "3.5", "2.4") == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"numbers from 0, not -1"):
        Numeric(absolute=-1)
    with pytest.raises(ValueError, match="numbers from 0"):
        Numeric(relative=float("inf"))


def test_a_boxed_answer_decides_even_where_it_is_no_number() -> None:
    assert scores(Numeric(), "3", r"3, or \boxed{x}", "The answer is not known, perhaps 3") == [0.0, 1.0]


def test_regression_pays_for_nearness() -> None:
    assert scores(Regression(), "10", "10", "9", "15", "-10", "no") == pytest.approx([1.0, 0.9, 0.5, 0.0, 0.0])
    assert scores(Regression(), "0", "0", "0.001") == [1.0, 0.0]


def test_a_function_of_ones_own() -> None:
    longest = ByFunction(lambda reference, given: len(given) / len(reference), read=lambda text: text or None)
    assert scores(longest, "four", "ab", "") == [0.5, 0.0]


@pytest.mark.parametrize(
    ("matcher", "value", "why"),
    [
        (Exact(), None, "None is no answer"),
        (Exact(), "  ", "is no answer"),
        (Normalised(), ["a"], "is no answer"),
        (Numeric(), True, "True is no answer"),
        (Numeric(), "many", "'many' is no number"),
        (Choice(), "cat", "'cat' names no option"),
        (Choice(), 10, "10 names no option"),
        (Choice(), True, "True names no option"),
    ],
)
def test_a_reference_that_is_none_is_an_error(matcher: Matcher, value: Any, why: str) -> None:
    with pytest.raises(UnusableReferenceError, match=why):
        matcher.reference(value)


# --- processes with a time limit ---------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(seconds=1.0, workers=2, command=(sys.executable, "-c", SCRIPT))
    yield made
    made.close()


def test_questions_are_answered_in_order_by_several_processes(pool: Pool) -> None:
    replies = pool.ask([f"q{index}" for index in range(20)])
    assert [question for _, question in replies] == [f"q{index}" for index in range(20)]
    assert 1 <= len({pid for pid, _ in replies}) <= 2
    assert pool.drain() == {"timeouts": 0.0, "crashes": 0.0}


def test_a_process_that_hangs_is_killed_and_replaced(pool: Pool) -> None:
    [(before, _)] = pool.ask(["first"])
    assert [reply and reply[1] for reply in pool.ask(["hang", "a", "hang", "b", "c"])] == [None, "a", None, "b", "c"]
    assert pool.drain() == {"timeouts": 2.0, "crashes": 0.0}
    assert pool.drain() == {"timeouts": 0.0, "crashes": 0.0}
    assert before not in {reply[0] for reply in pool.ask([str(index) for index in range(10)])}
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)


def test_a_process_that_dies_is_replaced(pool: Pool) -> None:
    assert [reply and reply[1] for reply in pool.ask(["die", "a", "b"])] == [None, "a", "b"]
    assert pool.drain() == {"timeouts": 0.0, "crashes": 1.0}


def test_closing_ends_the_processes_and_the_next_question_starts_new_ones(pool: Pool) -> None:
    pids = {pid for pid, _ in pool.ask(["a", "b", "c"])}
    pool.close()
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert pool.ask([]) == []
    assert [question for _, question in pool.ask(["again"])] == ["again"]


def test_a_process_that_cannot_start_says_why() -> None:
    broken = Pool(command=(sys.executable, "-c", "raise SystemExit('no luck')"))
    with pytest.raises(RuntimeError, match=r"can't start .*no luck"):
        broken.ask(["a"])
    broken.close()


def test_limits_of_a_pool() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Pool(seconds=0)
    with pytest.raises(ValueError, match="at least 1"):
        Pool(workers=0)


def test_without_math_verify_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "find_spec", lambda name: None)
    assert Expression().grade([("1", "1"), ("2", "3"), ("1/2", "0.5")]) == [1.0, 0.0, 1.0]  # needs no algebra
    with pytest.raises(ValueError, match=r"pip install 'sparring\[verify\]'"):
        Expression().grade([("x + x", "2x")])


# --- algebra -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expression() -> Iterator[Expression]:
    pytest.importorskip("math_verify", reason="math-verify is not installed (the extra `verify`)")
    matcher = Expression(Pool(seconds=20.0))
    yield matcher
    matcher.close()


@pytest.mark.parametrize(
    ("reference", "given", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{1}{2}", "1/2", True),
        (r"(x+1)^2", "x^2 + 2x + 1", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", "(3, pi/2)", True),
        (r"\{1, 2\}", "2, 1", True),
        (r"\text{Evelyn}", "evelyn", True),
        ("x=5", "5", True),
        ("5", "x = 5", True),
        (r"90^\circ", "90", True),
        (r"\$32,\!348", "32348", True),
        (r"1\frac{4}{5}", "9/5", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", True),
        ("50", r"50\%", True),
        ("2x", "2y", False),
        ("(1, 2)", "(2, 1)", False),
        ("3", "3, 4", False),
        ("1 1/2", "11/2", False),
        (r"\text{east}", "west", False),
        ("2", "\ud800", False),
        ("2", "\0", False),
        ("2", "}{" * 20, False),
        ("2", "__import__('os').system('true')", False),
        ("ABC", "CBA", False),
        ("A, B, C", "B, A, C", False),
        ("BD", "DB", False),
        ("east", "seat", False),
        ("east", r"\text{seat}", False),
        ("on", "**no**", False),
        ("Paris", "paris!", True),
        ("north-east", "taes-htron", False),
        ("(B, A, C)", "(A, B, C)", False),
        ("n!", "n", False),
        ("x", "-x", False),
        ("ab", r"b \cdot a", True),
        ("1+2x", "2x+1", True),
        (r"\infty", "infinity", True),
        ("10 km", "10 m", False),
        ("10 km", r"10\text{ m}", False),
        ("10 km", "10 km", True),
        ("10 km", "10km", True),
        ("10 km", "10", True),
        ("3 feet", "3 ft", True),
    ],
)
def test_expressions(expression: Expression, reference: str, given: str, same: bool) -> None:
    assert expression.grade([(reference, given)]) == [float(same)]


def test_an_expression_that_never_ends_is_cut_off() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed (the extra `verify`)")
    matcher = Expression(Pool(seconds=3.0, workers=1))
    try:
        assert matcher.grade([("1", "10^{10^{10}}"), ("y + y", "2y")]) == [None, 1.0]
        assert matcher.drain() == {"timeouts": 1.0, "crashes": 0.0}
    finally:
        matcher.close()


# --- rewards -----------------------------------------------------------------------------------------


def test_a_reward_of_a_run_takes_the_rows_column() -> None:
    reward = load_reward("sparring.rewards.verifiable:number")
    turns = [
        answered("2+2", "It is 4.", answer="#### 4"),
        answered("3+3", "5", answer=6),
        answered("?", "no", answer=1),
    ]
    assert reward([str(turn.info["query_text"]) for turn in turns], turns) == [1.0, 0.0, 0.0]
    assert reward.drain() == {"no_result": pytest.approx(1 / 3)}
    assert reward.drain() == {}
    reward.close()


@pytest.mark.parametrize(
    ("name", "reference", "right", "wrong"),
    [
        ("choice", "C", "Answer: C", "Answer: D"),
        ("exact", "Rome", "Rome", "rome"),
        ("normalised", "Rome", "rome.", "Milan"),
        ("number", "2.50", "$2.5", "2.51"),
        ("regression", "2", "2", "4"),
        ("math", r"\frac{1}{2}", r"\boxed{ \frac{1}{2} }", "7"),
    ],
)
def test_every_reward_by_name(name: str, reference: str, right: str, wrong: str) -> None:
    if name == "math":
        pytest.importorskip("math_verify", reason="math-verify is not installed (the extra `verify`)")
    reward = Reward(getattr(verifiable, name))
    turns = [answered("q", text, answer=reference) for text in (right, wrong, "")]
    assert reward(["q"] * 3, turns) == [1.0, 0.0, 0.0]
    reward.close()


def test_a_column_of_another_name() -> None:
    reward = Reward(Verified(Numeric(), column="target"))
    assert reward(["q"], [answered("q", "3", target="3", answer="4")]) == [1.0]
    with pytest.raises(RewardError, match=r"no row has a column 'target' .* the rows have: answer"):
        reward(["q"], [answered("q", "3", answer="4")])


def test_a_row_without_a_usable_reference_is_named() -> None:
    reward = Reward(verifiable.number)
    turns = [answered("good", "3", answer="3"), answered("How many?", "3", answer=None)]
    with pytest.raises(RewardError, match=r"column 'answer' of the row that asks 'How many\?': None is no answer"):
        reward(["good", "How many?"], turns)


def test_a_comparison_that_is_cut_off_is_not_paid() -> None:
    slow = Verified(Expression(Pool(seconds=0.5, workers=1, command=(sys.executable, "-c", SCRIPT))))
    assert slow(["q"], ["the answer is x + hang"], answer=["y"]) == [0.0]  # the script's reply is no verdict of true
    slow.close()
    stuck = SCRIPT.replace('if "hang" in question', "if True")
    reward = Reward(Verified(Expression(Pool(seconds=0.5, workers=1, command=(sys.executable, "-c", stuck)))))
    assert reward(["q"], [answered("q", "the answer is x", answer="y")]) == [None]
    assert reward.drain() == {"no_result": 0.0, "timeouts": 1.0, "crashes": 0.0}
    reward.close()


def test_ifeval_pays_the_share_of_instructions() -> None:
    reward = Reward(verifiable.ifeval)
    rules = {
        "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"],
        "kwargs": [{}, {"num_words": None}],
    }
    turns = [answered("q", text, **rules) for text in ("<<A title>> no", "no title", "a, b", "")]
    assert reward(["q"] * 4, turns) == [1.0, 0.5, 0.0, 0.0]
    with pytest.raises(RewardError, match=r"the row that asks 'q': unknown instruction 'punctuation:no_coma'; did you"):
        reward(["q"], [answered("q", "a", instruction_id_list=["punctuation:no_coma"], kwargs=[{}])])


# --- real data ---------------------------------------------------------------------------------------


def benchmark_rows(name: str) -> list[dict[str, Any]]:
    path = real_data("benchmarks", name)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def test_all_of_gsm8ks_own_solutions_are_right_and_no_corrupted_one() -> None:
    rows = benchmark_rows("gsm8k_train.jsonl")
    solutions = [row["answer"] for row in rows]
    corrupted = [f"{text.rpartition('#### ')[0]}#### 1{text.rpartition('#### ')[2].lstrip('-')}" for text in solutions]
    number = verifiable.number
    assert number([""] * len(rows), solutions, answer=solutions) == [1.0] * len(rows)
    assert number([""] * len(rows), corrupted, answer=solutions) == [0.0] * len(rows)
