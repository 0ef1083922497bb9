"""Figures of health by hand: sketches, clusters, languages, code, scores; and that no text breaks them."""

from __future__ import annotations

import json
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted import turn_of
from sparring.domains import Query
from sparring.health.figures import Exchange, FirstSteps, Past, Said, against, code_share, of_batch, said
from sparring.health.language import LANGUAGES, SCRIPTS, asks_for_code, distance, has_code, profile
from sparring.health.sketch import GRAM, SHOWN, clusters, levelled, sketched
from sparring.lm.base import SamplingParams
from sparring.roles import Role
from sparring.types import Payoff, Turn

CHALLENGER = Role("challenger", "ask", SamplingParams(8))
SOLVER = Role("solver", "{{ query }}", SamplingParams(8))
GRADER = Role("grader", "{{ query }}", SamplingParams(8), weight=0.0)
ENGLISH = "The river runs to the sea, and it is the longest of all that are in this country."
GERMAN = "Der Fluss ist der längste von allen, die in diesem Land sind, und er fließt in das Meer."
TEXTS = st.lists(st.text(st.characters(), max_size=300), max_size=8)  # lone surrogates too


# --- sketches ------------------------------------------------------------------------------------


def test_case_and_blank_space_are_levelled_and_long_texts_keep_both_ends() -> None:
    assert levelled(" A\tB\n\nc ") == "a b c"
    long = "x" * 5000 + " end"
    assert levelled(long) == "x" * SHOWN + "x" * (SHOWN - 4) + " end"
    assert levelled("a\ud800b") == "a?b"


def test_a_short_text_has_as_many_grams_as_letters() -> None:
    # "abcab" and "abcab": abcab, bcab., cab.., ab..., b....: five, all different; a second copy adds none.
    sketch = sketched(["abcab", "ABCAB "])
    assert [len(grams) for grams in sketch.grams] == [5, 5]
    assert of_batch(sketch) == {"queries/distinct": 0.5, "queries/ngrams": 0.5, "queries/cluster": 1.0}


def test_digits_are_alike_to_grams_but_not_to_equality() -> None:
    sketch = sketched(["add 12 to 34", "add 98 to 70"])
    assert of_batch(sketch) == {"queries/distinct": 1.0, "queries/ngrams": 0.5, "queries/cluster": 1.0}


def test_clusters_are_of_near_texts() -> None:
    near = [f"Explain in two short sentences why the {color} sky is so far away." for color in ("blue", "red", "grey")]
    far = ["How do bees find their hive?", "Name three rivers of Asia."]
    assert clusters(sketched([*near, *far])).tolist() == [3, 1, 1]
    assert of_batch(sketched([*near, *far]))["queries/cluster"] == pytest.approx(0.6)
    assert clusters(sketched([])).tolist() == []


def test_against_the_past_by_hand() -> None:
    past = sketched(["What is rain?", "Who was Bach?"])
    figures = against(sketched(["what is  rain?", "zzzzzzzz"]), past)
    assert figures["queries/seen"] == 0.5
    assert figures["queries/seen_near"] == 0.5
    grams = len("what is rain?") + len("zzzzzzzz")
    assert figures["queries/seen_ngrams"] == pytest.approx(len("what is rain?") / grams)
    assert against(sketched([]), past) == {} == against(past, sketched([]))


@given(TEXTS)
@settings(max_examples=50)
def test_sketches_take_any_text_and_do_not_depend_on_company(texts: list[str]) -> None:
    together = sketched(texts)
    for index, text in enumerate(texts):
        alone = sketched([text])
        assert together.texts[index] == alone.texts[0]
        assert (together.bands[index] == alone.bands[0]).all()
        assert (together.grams[index] == alone.grams[0]).all()
        assert len(alone.grams[0]) == max(1, len(alone.texts[0])) <= 2 * SHOWN
    assert int(clusters(together).sum()) == len(texts)
    assert GRAM > 1


# --- language and code ---------------------------------------------------------------------------


def test_a_profile_counts_scripts_and_function_words() -> None:
    counted = profile(["the cat", "привет 1!"])
    scripts = dict(zip(SCRIPTS, counted[: len(SCRIPTS)], strict=True))
    words = dict(zip(LANGUAGES, counted[len(SCRIPTS) :], strict=True))
    # thecatпривет1!: 6 Latin, 6 Cyrillic letters, a digit, a sign; three words, one of them of a list.
    assert {name: share for name, share in scripts.items() if share} == pytest.approx(
        {"latin": 6 / 14, "cyrillic": 6 / 14, "digit": 1 / 14, "sign": 1 / 14}
    )
    assert {name: share for name, share in words.items() if share} == pytest.approx({"english": 1 / 3, "none": 2 / 3})


def test_a_word_of_several_languages_counts_in_parts() -> None:
    counted = profile(["para"])[len(SCRIPTS) :]
    shares = {name: share for name, share in zip(LANGUAGES, counted, strict=True) if share}
    assert shares == {"spanish": 0.5, "portuguese": 0.5}


def test_another_language_or_script_is_far_and_the_same_near() -> None:
    english, more = profile([ENGLISH]), profile(["What is the name of the king that was in this town?"])
    assert distance(english, english) == 0
    assert distance(english, more) < 0.2
    assert distance(english, profile([GERMAN])) > 0.4
    assert distance(english, profile(["河流是这个国家最长的"])) > 0.8
    assert not profile([]).any()


@pytest.mark.parametrize(
    "query",
    [
        "Write a PYTHON script.",
        "Fix this:\n```\nx\n```",
        "in C++ please",
        "写一个程序",
        "Programmiere das",
        "Напиши код",
    ],
)
def test_queries_that_ask_for_code(query: str) -> None:
    assert asks_for_code(query)


@pytest.mark.parametrize("query", ["Why is the sky blue?", "Describe a classic car.", "Who scripted the fall of Rome?"])
def test_queries_that_do_not(query: str) -> None:
    assert not asks_for_code(query)


@pytest.mark.parametrize(
    "answer",
    ["def f(x):\n  return x", "Here:\n\n    print('hi')", "~~~\na\n~~~", "import numpy as np", "#include <a.h>"],
)
def test_answers_with_code(answer: str) -> None:
    assert has_code(answer)


@pytest.mark.parametrize("answer", ["They import goods from Peru.", "import taxes are high\n", "Let me see.", ""])
def test_answers_without(answer: str) -> None:
    assert not has_code(answer)


def test_code_counts_where_none_was_asked_for() -> None:
    exchanges = [
        Exchange("Why?", "```\nx\n```"),
        Exchange("Why?", "Because."),
        Exchange("Who?", "Bach."),
        Exchange("What?", "print(1)"),
        Exchange("Write Python.", "```\nx\n```"),
    ]
    assert code_share(exchanges) == {"answers/code": 0.5}
    assert code_share(exchanges[-1:]) == {}


@given(TEXTS)
@settings(max_examples=50)
def test_profiles_and_code_take_any_text(texts: list[str]) -> None:
    counted = profile(texts)
    assert 0 <= distance(counted, profile([ENGLISH])) <= 1 + 1e-9
    for text in texts:
        assert isinstance(asks_for_code(text), bool) and isinstance(has_code(text), bool)


# --- scores --------------------------------------------------------------------------------------


def scored(rewards: list[float], judged: list[float | None]) -> list[Exchange]:
    return [Exchange("q", "a", reward, score) for reward, score in zip(rewards, judged, strict=True)]


def test_divergence_is_the_rewards_rise_over_the_judges_in_standard_deviations() -> None:
    first = FirstSteps(2)
    assert first.scores(scored([0.0, 2.0], [1.0, 3.0])) == {}
    assert first.scores(scored([0.0, 2.0], [1.0, 5.0])) == {}
    # Rewards: mean 1, σ 1. Judge: 1, 3, 1, 5: mean 2.5, variance 9 − 6.25 = 2.75.
    figures = first.scores(scored([4.0, 2.0], [1.0, 2.0]))
    assert figures["answers/reward"] == pytest.approx(2.0)
    assert figures["answers/divergence"] == pytest.approx(2.0 - (1.5 - 2.5) / sqrt(2.75))


def test_scores_without_a_spread_or_a_judge_say_nothing() -> None:
    first = FirstSteps(1)
    assert first.scores(scored([7.3, 7.3, 7.3], [0.1, 0.2, None])) == {}
    assert first.scores(scored([9.0], [0.5])) == {}
    alone = FirstSteps(1)
    alone.scores(scored([0.0, 1.0], [None, None]))
    assert alone.scores(scored([1.0], [None])) == {"answers/reward": 1.0}
    assert alone.scores([]) == {}


# --- a step --------------------------------------------------------------------------------------


def asked(text: str, model: str = "policy", problem: str | None = None) -> Turn:
    turn = turn_of(
        CHALLENGER, CHALLENGER.prompt(), f"<input>{text}</input>", "policy" if model == "policy" else "reference"
    )
    return turn.noting(query=Query(text, problem))


def test_what_was_said_is_the_policys() -> None:
    query, invalid, frozen = asked("Why?"), asked("???", problem="malformed"), asked("Who?", "reference")
    answer = turn_of(SOLVER, SOLVER.prompt(query="Why?", parent=query, info={"query_text": "Why?"}), "Because.")
    unpaid = turn_of(SOLVER, SOLVER.prompt(query="Who?", parent=frozen), "Bach.")
    grade = turn_of(GRADER, GRADER.prompt(query="Because.", parent=answer), "1", "reference")
    payoffs = {answer: Payoff(1.5, {"reward": 1.0, "quality": 0.5}), query: Payoff(0.0)}
    found = said([query, invalid, frozen, answer, unpaid, grade], payoffs)
    assert found == Said(("Why?", "???"), (Exchange("Why?", "Because.", 1.0, 0.5), Exchange("Who?", "Bach.")))


def test_a_step_joins_the_past() -> None:
    past = Past(archive=3, first_steps=1)
    one = past.figures(Said(("one two", "three four"), (Exchange("q", ENGLISH, 1.0, 1.0),)))
    assert one == {
        "health/queries/distinct": 1.0,
        "health/queries/ngrams": 1.0,
        "health/queries/cluster": 0.5,
        "health/answers/code": 0.0,
    }
    two = past.figures(Said(("three four", "five six"), (Exchange("q", GERMAN, 1.0, 1.0),)))
    assert two["health/queries/seen"] == 0.5
    assert two["health/answers/language"] > 0.4
    assert past.state()["archive"] == ["three four", "three four", "five six"]
    assert past.figures(Said()) == {}


def test_the_archive_survives_texts_that_were_cut_between_words() -> None:
    text = "a" * (SHOWN - 1) + " " + "middle " * 200 + "b" * (SHOWN - 1)
    past, again = Past(archive=5, first_steps=1), Past(archive=5, first_steps=1)
    past.figures(Said((text,)))
    again.restore(json.loads(json.dumps(past.state())))
    assert again.figures(Said((text,)))["health/queries/seen"] == 1.0


def test_without_an_archive_nothing_is_seen() -> None:
    past = Past(archive=0, first_steps=1)
    past.figures(Said(("one",)))
    assert "health/queries/seen" not in past.figures(Said(("one",)))


STEPS = st.lists(
    st.builds(
        Said,
        st.lists(st.text(st.characters(), max_size=600), max_size=5).map(tuple),
        st.lists(
            st.builds(
                Exchange, st.text(max_size=9), st.text(max_size=40), st.none() | st.floats(-9, 9), st.floats(0, 1)
            ),
            max_size=5,
        ).map(tuple),
    ),
    min_size=1,
    max_size=6,
)


@given(STEPS, st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_any_steps_give_finite_figures_and_the_past_survives_json(steps: list[Said], cut: int) -> None:
    whole, first = Past(7, 2), Past(7, 2)
    told = [whole.figures(step) for step in steps]
    assert all(np.isfinite(value) for figures in told for value in figures.values())
    for step in steps[:cut]:
        first.figures(step)
    again = Past(7, 2)
    again.restore(json.loads(json.dumps(first.state())))
    assert [again.figures(step) for step in steps[cut:]] == told[cut:]
    assert again.state() == whole.state()
