"""The arena's language, verifier, rubric, split and corpus."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.arena.corpus import SLOPPY, examples, flawed_answer, malformed_query, sloppy_answer
from sparring.arena.language import (
    FAMILIES,
    KIND,
    MAX_LEVEL,
    MIN_LEVEL,
    SHOWS_WORKING,
    TASKS,
    Query,
    Split,
    answer,
    challenger_prompt,
    draw_query,
    draw_word,
    final,
    grader_prompt,
    parse_query,
    render_query,
    solver_prompt,
)
from sparring.arena.rubric import POINTS, RUBRIC, parse_grade, render_grade, score
from sparring.arena.split import DEV_SEED, TEST_SEED, held_out, test_set, train_set
from sparring.arena.tokenizer import VOCABULARY
from sparring.arena.verifier import verify


@st.composite
def queries(draw: st.DrawFn) -> Query:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    family = draw(st.sampled_from(FAMILIES))
    level = draw(st.integers(MIN_LEVEL + (family == "chain"), MAX_LEVEL))
    return Query(family, draw_word(rng, family, level), level)


token_text = st.lists(st.sampled_from(VOCABULARY)).map("".join)

ANSWERS = [
    ("skip:bdeac", "bec"),
    ("reverse:bead", "daeb"),
    ("sort:beadb", "abbde"),
    ("flip:bead", "daeb=ebfc"),
    ("flip:at", "ta=ab"),
    ("unique:babec", "baec"),
    ("swap:beadc", "ebdac"),
    ("swap:bead", "ebda"),
    ("fold:beadc", "bceda"),
    ("fold:bead", "bdea"),
    ("chain:RNbea", "RaebNbfc=bfc"),
    ("chain:SLbea", "SebaLbae=bae"),
]
WRONG = [
    ("skip:bdeac", "bea"),
    ("reverse:bead", "bead"),
    ("sort:beadb", "abde"),
    ("flip:bead", "ebfc"),
    ("flip:bead", "daab=ebfc"),
    ("unique:babec", "babec"),
    ("swap:beadc", "ebdca"),
    ("fold:bead", "bead"),
    ("chain:RNbea", "bfc"),
    ("chain:RNbea", "RbeaNbfc=bfc"),
    ("chain:RNbea", "RaebNbfc"),
    ("reverse:bead", ""),
    ("reverse:", ""),
    ("reverse:a", "a"),
    ("nonsense:bead", "daeb"),
]


@pytest.mark.parametrize(("text", "right"), ANSWERS)
def test_reference_answers(text: str, right: str) -> None:
    query = parse_query(text)
    assert query is not None
    assert answer(query) == right
    assert verify(text, right) == 1.0
    assert verify(text, f" {right}\n") == 1.0


@pytest.mark.parametrize(("text", "wrong"), WRONG)
def test_wrong_answers_earn_nothing(text: str, wrong: str) -> None:
    assert verify(text, wrong) == 0.0


def test_working_is_free_where_it_is_not_demanded() -> None:
    assert verify("reverse:bead", "bead=daeb") == 1.0
    assert verify("reverse:bead", "daeb=bead") == 0.0


@given(queries())
def test_queries_round_trip_and_answers_verify(query: Query) -> None:
    text = render_query(query)
    assert parse_query(text) == query
    assert verify(text, answer(query)) == 1.0
    assert score(text, answer(query))[2:] == (1, 1, 1, 1, 1)


@given(queries(), st.data())
def test_any_changed_symbol_of_a_result_is_wrong(query: Query, data: st.DataObject) -> None:
    right = answer(query)
    checked = right if query.family in SHOWS_WORKING else final(right)
    at = data.draw(st.integers(0, len(checked) - 1))
    other = data.draw(st.sampled_from([token for token in VOCABULARY if token not in ("=", checked[at])]))
    assert verify(render_query(query), checked[:at] + other + checked[at + 1 :]) == 0.0
    assert verify(render_query(query), checked[:-1]) == 0.0


@given(st.one_of(st.text(), token_text, queries().map(str)), st.one_of(st.text(), token_text))
def test_no_text_breaks_parser_verifier_or_rubric(text: str, given_answer: str) -> None:
    query = parse_query(text)
    if query is not None:
        assert render_query(query) == text
        assert MIN_LEVEL <= query.level <= MAX_LEVEL
    else:
        assert verify(text, given_answer) == 0.0
        assert score(text, given_answer) == (0,) * POINTS
    assert verify(text, given_answer) in (0.0, 1.0)
    assert set(score(text, given_answer)) <= {0, 1}
    assert parse_grade(given_answer) in (None, *range(POINTS + 1))


@pytest.mark.parametrize(
    "text",
    ["", "bead", "skip:", "skip:a", "skip: ab", "skip:ab ", "skip:ab\n", "Skip:ab", "skip:abz", "skip:ab=",
     "skip:a1", "skip:skip:ab", "skip:" + "a" * 13, "skip:Rabc", "chain:abc", "chain:Rab", "chain:RabcR",
     "chain:" + "R" * 11 + "abc", "count:ab", "swap:áb"],
)  # fmt: skip
def test_malformed_queries(text: str) -> None:
    assert parse_query(text) is None


@pytest.mark.parametrize(
    ("text", "given_answer", "points"),
    [
        ("reverse:bead", "daeb", (1, 1, 1, 1, 1, 1, 1)),
        ("reverse:bead", "beda", (1, 1, 1, 1, 1, 1, 1)),  # wrong, but well formed: not the rubric's part
        ("reverse:bead", "", (1, 1, 0, 0, 0, 1, 0)),
        ("reverse:bead", "d", (1, 1, 1, 0, 0, 1, 1)),
        ("reverse:bead", "da", (1, 1, 1, 1, 0, 1, 1)),
        ("reverse:bead", "d3eb", (1, 1, 0, 1, 1, 1, 1)),
        ("reverse:bead", "bead=daeb", (1, 1, 1, 1, 1, 0, 0)),
        ("reverse:aaaab", "baaaa", (1, 0, 1, 1, 1, 1, 1)),
        ("flip:bead", "daeb=ebfc", (1, 1, 1, 1, 1, 1, 1)),
        ("flip:bead", "ebfc", (1, 1, 1, 1, 1, 1, 0)),
        ("chain:RNbea", "RaebNbfc=bfc", (1, 1, 1, 1, 1, 1, 1)),
        ("chain:RNbea", "NaebRbfc=bfc", (1, 1, 1, 1, 1, 1, 0)),
        ("chain:RRRRbea", "bea", (1, 0, 1, 1, 1, 1, 0)),
        ("swap:bead", "3624", (1, 1, 0, 1, 1, 1, 1)),
        ("fold:bead", "bdeaa", (1, 1, 1, 1, 0, 1, 1)),
        ("unique:babec", "baec", (1, 1, 1, 1, 1, 1, 1)),
        ("reverse:", "", (0, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_rubric_by_hand(text: str, given_answer: str, points: tuple[int, ...]) -> None:
    assert score(text, given_answer) == points
    assert len(RUBRIC) == POINTS == len(points)


@given(st.lists(st.integers(0, 1), min_size=POINTS, max_size=POINTS))
def test_grades_round_trip(points: list[int]) -> None:
    assert parse_grade(render_grade(points)) == sum(points)


@pytest.mark.parametrize(
    "text", ["", "1110111", "1110111=7", "111011=5", "11101111=7", "1120111=8", "1110111=6=6", "x1110111=6"]
)
def test_inconsistent_grades_are_none(text: str) -> None:
    assert parse_grade(text) is None


def test_an_impossible_grade_is_refused() -> None:
    with pytest.raises(ValueError, match="7 points"):
        render_grade([1, 1])


@given(st.integers(0, 50), st.sampled_from(["easy", "hard"]))
def test_training_and_test_sets_never_meet(seed: int, split: str) -> None:
    testing, training = test_set(split, seed, 8), train_set(split, seed, 8)  # pyright: ignore[reportArgumentType]
    assert all(held_out(render_query(query)) for query in testing)
    assert not any(held_out(render_query(query)) for query in training)


def test_test_sets_are_stable_balanced_and_nearly_without_repeats() -> None:
    ranges: tuple[tuple[Split, int, int], ...] = (("easy", 3, 10), ("hard", 6, 10))
    for split, low, high in ranges:
        drawn = test_set(split, DEV_SEED, 600)
        assert drawn == test_set(split, DEV_SEED, 600) != test_set(split, TEST_SEED, 600)
        assert drawn[:100] == test_set(split, DEV_SEED, 100)
        assert len(set(drawn)) > 590
        assert {query.level for query in drawn} == set(range(low, high + 1))
        counts = [sum(query.family == family for query in drawn) for family in FAMILIES]
        assert min(counts) > 45  # 75 expected, sd 8
    assert 0.05 < np.mean([held_out(str(q)) for q in _many(3000)]) < 0.075  # 1/16, sd .0044


def _many(n: int) -> list[Query]:
    rng = np.random.default_rng(7)
    return [draw_query(rng, "hard") for _ in range(n)]


def test_prompts() -> None:
    assert [challenger_prompt(*pair) for pair in TASKS[:1]] == ["Challenger:Skip>skip:{}"]
    assert challenger_prompt(None, None) == challenger_prompt("", "") == "Challenger:"
    assert solver_prompt("skip:abc") == "Solver:skip:abc"
    assert grader_prompt("skip:abc", "ac") == "Grader:skip:abc|ac"
    with pytest.raises(ValueError, match="Skip"):
        challenger_prompt("Essay", "essay:{}")
    with pytest.raises(ValueError, match="easy"):
        draw_query(np.random.default_rng(0), "medium")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="skip"):
        draw_query(np.random.default_rng(0), "easy", "essay")


def test_slips_are_systematic_and_wrong_at_high_levels() -> None:
    rng = np.random.default_rng(0)
    latent = [query for query in _many(400) if KIND[query.family] == "latent"]
    wrong = [verify(str(query), sloppy_answer(query)) == 0.0 for query in latent]
    assert np.mean(wrong) > 0.9
    assert all(len(final(sloppy_answer(query))) == len(final(answer(query))) for query in latent)
    assert list(SLOPPY.values()) == sorted(SLOPPY.values())
    assert {parse_query(malformed_query(rng)) for _ in range(400)} == {None}
    assert all(isinstance(flawed_answer(rng, query), str) for query in latent)


def test_the_corpus_holds_every_role_and_no_test_query() -> None:
    drawn = list(islice(examples(np.random.default_rng(3)), 3000))
    solved = [(p.removeprefix("Solver:"), a) for p, a in drawn if p.startswith("Solver:")]
    asked = [a for p, a in drawn if p.startswith("Challenger:")]
    graded = [(*p.removeprefix("Grader:").split("|", 1), a) for p, a in drawn if p.startswith("Grader:")]
    assert min(len(solved), len(asked), len(graded)) > 300
    assert not any(held_out(text) for text in [*asked, *(q for q, _ in solved), *(q for q, *_ in graded)])
    assert all(render_grade(score(q, a)) == grade for q, a, grade in graded if "|" not in a and parse_query(q))
    skill = [verify(q, a) for q, a in solved if KIND[q.split(":")[0]] == "skill"]
    latent = [verify(q, a) for q, a in solved if KIND[q.split(":")[0]] == "latent"]
    assert min(skill) == 1.0
    assert 0.4 < np.mean(latent) < 0.9
