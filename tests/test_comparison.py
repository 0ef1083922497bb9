"""Comparisons: hand-counted wins, the subsets, the JSON and the table."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sparring.evaluation.comparison import Evaluation, Outcome, compare, table
from sparring.evaluation.statistics import paired_bootstrap_ci

FIELDS = {"n", "wins", "ties", "losses", "win_rate", "ci95", "accuracy", "base_accuracy", "sign_test_p"}

SMALL = [
    Outcome("1", ("easy", "reverse"), 0, 1),
    Outcome("2", ("easy", "reverse"), 1, 1),
    Outcome("3", ("easy", "sort"), 1, 0),
    Outcome("4", ("hard", "reverse"), 0, 1),
    Outcome("5", ("hard", "reverse"), 0, 1),
    Outcome("6", ("hard", "sort"), 0, 0),
]


def test_counts_by_hand() -> None:
    overall = compare(SMALL).overall
    assert (overall.n, overall.wins, overall.ties, overall.losses) == (6, 3, 2, 1)
    assert overall.win_rate == pytest.approx(4 / 6)
    assert overall.accuracy == pytest.approx(4 / 6)
    assert overall.base_accuracy == pytest.approx(2 / 6)
    assert overall.sign_test_p == pytest.approx(2 * (1 + 4) / 2**4)
    assert overall.ci95 == paired_bootstrap_ci([1, 0.5, 0, 1, 1, 0.5])
    easy_reverse = compare(SMALL).subsets["easy/reverse"]
    assert (easy_reverse.n, easy_reverse.wins, easy_reverse.ties, easy_reverse.losses) == (2, 1, 1, 0)
    assert easy_reverse.win_rate == 0.75


def test_json_has_the_documented_form_and_returns() -> None:
    evaluation = compare(SMALL)
    data = json.loads(json.dumps(evaluation.to_json()))
    assert set(data) == {"schema", "overall", "subsets"}
    assert data["schema"] == 1
    assert set(data["subsets"]) == {"easy", "easy/reverse", "easy/sort", "hard", "hard/reverse", "hard/sort"}
    for entry in (data["overall"], *data["subsets"].values()):
        assert set(entry) == FIELDS
        low, high = entry["ci95"]
        assert 0 <= low <= entry["win_rate"] <= high <= 1
    assert Evaluation.from_json(data) == evaluation


scores = st.sampled_from([0.0, 0.25, 1.0])
paths = st.sampled_from([(), ("easy",), ("easy", "sort"), ("hard", "sort"), ("hard", "b", "deep")])


@settings(deadline=None)
@given(st.lists(st.tuples(paths, scores, scores), min_size=1, max_size=12))
def test_swapping_the_models_swaps_wins_and_losses(rows: list[tuple[tuple[str, ...], float, float]]) -> None:
    there = compare([Outcome(str(i), path, base, own) for i, (path, base, own) in enumerate(rows)])
    back = compare([Outcome(str(i), path, own, base) for i, (path, base, own) in enumerate(rows)])
    assert there.overall.n == len(rows)
    for (_, one), (_, other) in zip(there.rows(), back.rows(), strict=True):
        assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
        assert one.win_rate == pytest.approx(1 - other.win_rate)
        assert one.sign_test_p == other.sign_test_p
    tops = [row for path, row in there.rows() if len(path) == 1]
    assert sum(row.n for row in tops) == sum(bool(path) for path, _, _ in rows)


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([], "no items"),
        ([SMALL[0], SMALL[0]], "'1' is given twice"),
        ([Outcome("a", (), float("nan"), 1)], "'a': base_score is nan"),
        ([Outcome("a", ("easy/reverse",), 0, 1)], "free of '/'"),
        ([Outcome("a", ("",), 0, 1)], "non-empty"),
    ],
)
def test_bad_outcomes_are_refused(outcomes: list[Outcome], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(outcomes)


def _broken(**changes: Any) -> dict[str, Any]:
    data = compare(SMALL).to_json()
    data["subsets"]["easy"].update(changes)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "found 'list'"),
        ({"schema": 2}, "schema 1, found 2"),
        ({"schema": 1}, "overall must be an object"),
        ({"schema": 1, "subsets": []}, "subsets must be an object"),
        ({"schema": 1, "overall": {}}, "overall has no 'ci95'"),
        (_broken(ci95=[0.1]), "subsets.easy has a field of the wrong type"),
        (_broken(wins=None), "subsets.easy has a field of the wrong type"),
    ],
)
def test_bad_json_is_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluation.from_json(data)


def test_table_reads_at_100_columns_in_order() -> None:
    families = ("reverse", "sort", "balanced_parentheses")
    outcomes = [
        Outcome(f"{level}{family}{i}", (level, family), float(i % 3 == 0), 1.0)
        for level in ("hard", "easy")
        for family in families
        for i in range(1500)
    ]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(compare(outcomes)))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in capture.get()
    names = [line.split()[0] for line in lines if "/0" in line]
    assert names == ["overall", "easy", *sorted(families), "hard", *sorted(families)]
    overall = next(line for line in lines if "overall" in line)
    assert "6000/3000/0" in overall
    assert "33.3%" in overall
    assert "+66.7" in overall


def test_subset_names_are_no_markup() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table(compare([Outcome("1", ("[red]odd",), 0, 1)])))
    assert "[red]odd" in capture.get()
