"""AlpacaEval's files, verdicts and figures, on made-up rows."""

import json
import random
from math import isnan, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.evaluation.alpaca_eval.data import (
    HUB_FILES,
    HUB_ID,
    SUBSETS,
    Annotation,
    Instruction,
    ModelOutput,
    load_instructions,
    read_annotations,
    read_outputs,
    write_annotations,
    write_outputs,
)
from sparring.evaluation.alpaca_eval.figures import figures, figures_by_subset
from sparring.evaluation.alpaca_eval.verdicts import Verdict, Verdicts, is_switched, read_verdicts, weighted_preference

INSTRUCTIONS = [
    Instruction(0, "koala", "Name a bird."),
    Instruction(1, "oasst", "Count to 3."),
    Instruction(2, "koala", "é"),
]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def compact(item_id: int, preference: float | None, **more: Any) -> dict[str, Any]:
    return {"id": item_id, "row": item_id, "preference": preference, **more}


def annotated(text: str, preference: float | None, **more: Any) -> Annotation:
    names = {"generator_1": "old", "generator_2": "new", "annotator": "judge"}
    return Annotation(text, "short", "a longer one", preference, **{**names, **more})


# --- figures -----------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    # Shares 1, 0, ½, .75, ½ (a draw as 0): mean .55; squared deviations .2025 + .3025 + .0025 + .04 + .0025 = .55.
    found = figures([2, 1, 1.5, 1.75, 0, None])
    assert found.win_rate == pytest.approx(55)
    assert found.standard_error == pytest.approx(100 * sqrt(0.55 / 4 / 5))
    assert found.discrete_win_rate == pytest.approx(100 * (2 + 1) / 5)
    assert (found.n_total, found.n_wins, found.n_wins_base, found.n_draws, found.unparsed) == (5, 2, 1, 2, 1)


def test_one_verdict_has_no_standard_error() -> None:
    found = figures([1.25])
    assert isnan(found.standard_error)
    assert found.to_json() == {
        "win_rate": 25.0,
        "standard_error": None,
        "discrete_win_rate": 0.0,
        "n_total": 1,
        "n_wins": 0,
        "n_wins_base": 1,
        "n_draws": 0,
        "unparsed": 0,
    }


preferences = st.lists(
    st.none() | st.sampled_from([0, 1, 1.5, 2]) | st.floats(1, 2).map(lambda value: round(value, 10)), max_size=30
)


@given(preferences)
def test_figures_against_their_definition(values: list[float | None]) -> None:
    shares = [0.5 if value == 0 else value - 1 for value in values if value is not None]
    if not shares:
        with pytest.raises(ValueError, match="none of the"):
            figures(values)
        return
    found = figures(values)
    assert found.n_total + found.unparsed == len(values)
    assert found.n_wins + found.n_draws + found.n_wins_base == found.n_total == len(shares)
    assert found.win_rate == pytest.approx(100 * np.mean(shares))
    # Rounding to even puts ½ apart: AlpacaEval takes it as a draw before it rounds.
    rounded = [share if share == 0.5 else round(share) for share in shares]
    assert found.discrete_win_rate == pytest.approx(100 * np.mean(rounded))
    turned = figures([None if value is None else 3 - value if value else 0 for value in values])
    assert turned.win_rate == pytest.approx(100 - found.win_rate)
    assert (turned.n_wins, turned.n_wins_base) == (found.n_wins_base, found.n_wins)


@pytest.mark.parametrize("wrong", [0.5, 2.1, -1, float("nan")])
def test_figures_refuse_what_is_no_preference(wrong: float) -> None:
    with pytest.raises(ValueError, match="preference 1 is"):
        figures([1, wrong])


def test_subsets_have_their_own_figures() -> None:
    each = [
        Verdict(0, 2.0, dataset="koala"),
        Verdict(1, 1.0, dataset="koala"),
        Verdict(2, 1.0, dataset="oasst"),
        Verdict(3, None, dataset="vicuna"),
        Verdict(4, 2.0),
    ]
    found = figures_by_subset(Verdicts("m", None, each))
    assert {name: (row.n_total, row.win_rate) for name, row in found.items()} == {"koala": (2, 50), "oasst": (1, 0)}


# --- a weighted judge --------------------------------------------------------------------------------


def test_weighted_preference_by_hand() -> None:
    m, big_m = log(0.6), log(0.2)
    assert weighted_preference(m, big_m, switched=False) == pytest.approx(1.25)  # 2 − .6 / .8
    assert weighted_preference(m, big_m, switched=True) == pytest.approx(1.75)
    assert weighted_preference(m, None, switched=False) == 1
    assert weighted_preference(m, None, switched=True) == 2
    assert weighted_preference(None, big_m, switched=False) == 2
    assert weighted_preference(None, None, switched=False) is None
    assert weighted_preference(-9999.0, 0.0, switched=False) == 2
    assert weighted_preference(-1e8, -1e9, switched=False) == 1


@given(st.floats(-700, 0), st.floats(-700, 0))
def test_weighted_preference_against_its_definition(lp_m: float, lp_M: float) -> None:
    expected = 2 - np.exp(lp_m - np.logaddexp(lp_m, lp_M))
    assert weighted_preference(lp_m, lp_M, switched=False) == pytest.approx(expected, abs=1e-12)
    assert weighted_preference(lp_m, lp_M, switched=True) == pytest.approx(3 - expected, abs=1e-12)


def test_order_of_showing_is_drawn_from_the_instruction() -> None:
    texts = [f"Instruction {number}" for number in range(400)]
    drawn = [is_switched(text) for text in texts]
    assert drawn == [random.Random(f"is_switched_outputs{text}0").random() >= 0.5 for text in texts]
    assert 150 < sum(drawn) < 250
    assert is_switched("a") == is_switched("a")


# --- verdict files -----------------------------------------------------------------------------------


def test_compact_verdicts(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "my-model.jsonl",
        compact(0, 1.25, len_ref=4, len_model=7, switched=True, lp_m=-0.25, lp_M=None),
        "",
        {"id": 2, "preference": None},
    )
    found = read_verdicts(path)
    assert (found.model, found.baseline, found.preferences) == ("my-model", None, [1.25, None])
    assert found.each[0] == Verdict(0, 1.25, 0, None, 4, 7, True, -0.25, None)
    assert found.each[1] == Verdict(1, None, 2)  # without a row its place counts
    known = read_verdicts(path, INSTRUCTIONS)
    assert [verdict.dataset for verdict in known.each] == ["koala", "koala"]


def test_annotations_are_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    write_annotations(path, [annotated("Count to 3.", 1.5, dataset="x"), annotated("é", None)])
    found = read_verdicts(path)
    assert (found.model, found.baseline) == ("new", "old")
    assert found.each[0] == Verdict(0, 1.5, None, "x", 5, 12)
    assert found.each[1].preference is None
    known = read_verdicts(path, INSTRUCTIONS)
    assert [(verdict.item_id, verdict.dataset, verdict.position) for verdict in known.each] == [
        (1, "oasst", 0),
        (2, "koala", 1),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], r"a\.jsonl, line 1 is not JSON"),
        ([compact(0, 1), "[1]"], r"line 2: expected an object, found list"),
        ([compact(0, 1), "[" * 100_000], r"line 2 is not JSON"),
        ([compact(0, 1), '{"id": ' + "9" * 5000 + "}"], r"line 2 is not JSON"),
        ([], "is empty: expected one object"),
        (["", "  "], "is empty"),
        ([compact(0, 1), {"id": 1, "verdict": 2}], r"line 2 has no 'preference'; it has 'id', 'verdict'"),
        ([{}], "line 1 has no 'id'; it has no field"),
        ([compact(0, 3)], r"line 1: 'preference' must be a number from 1 .* not 3"),
        ([compact(0, 0.5)], "must be a number from 1"),
        ([compact(0, True)], "not true"),  # type: ignore[list-item]
        ([{"id": 0, "preference": "2"}], "'preference' must be a number"),
        (['{"id": 0, "preference": NaN}'], "'preference' must be a number"),
        (['{"id": 0, "preference": 1e999}'], "'preference' must be a number"),
        ([{"id": None, "preference": 1}], "'id' must be the instruction's id"),
        ([{"id": -1, "preference": 1}], "'id' must be a whole number"),
        ([compact(0, 1, len_ref="4")], "'len_ref' must be a whole number from 0"),
        ([compact(0, 1, switched=1)], "'switched' must be true or false"),
        ([compact(0, 1, lp_m=0.5)], "'lp_m' must be a log-probability"),
        ([compact(0, 1, lp_M=-(10**400))], "'lp_M' must be a log-probability"),
        ([compact(0, 1), compact(0, 2)], "line 2: id 0 was judged before"),
        ([compact(0, 1), compact(7, 2)], "line 2: id 7 is not among the instructions"),
        ([{"output_1": "a", "preference": 1}], "line 1 has no 'instruction'"),
        ([{"instruction": "é", "output_1": 3, "output_2": "b", "preference": 1}], "'output_1' must be text, not 3"),
        ([{"instruction": "o", "output_1": "a", "output_2": "b", "preference": 1}], "not among the instructions"),
    ],
)
def test_damaged_verdicts_are_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_verdicts(jsonl(tmp_path / "a.jsonl", *rows), INSTRUCTIONS)


def test_annotations_of_several_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    write_annotations(path, [annotated("a", 1), annotated("b", 1, generator_2="newer")])
    with pytest.raises(ValueError, match=r"annotations\.json, item 2: another generator_1 or generator_2"):
        read_verdicts(path)
    write_annotations(path, [annotated("a", 1), annotated("a", 1)])
    with pytest.raises(ValueError, match="item 2: its instruction was judged before"):
        read_verdicts(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*gone\.json"):
        read_verdicts(tmp_path / "gone.json")
    with pytest.raises(ValueError, match=r"a\.csv: expected a \.json file .* or a \.jsonl file"):
        read_verdicts(jsonl(tmp_path / "a.csv"))
    (tmp_path / "b.json").write_bytes(b'[{"id": "\xff"}]')
    with pytest.raises(ValueError, match="no UTF-8"):
        read_verdicts(tmp_path / "b.json")
    with pytest.raises(ValueError, match="expected a JSON list"):
        read_verdicts(jsonl(tmp_path / "c.json", {"id": 0}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["id", "row", "preference", "len_ref", "switched", "lp_m", "output_1", "output_2", "instruction"]
)


@settings(deadline=None)
@given(rows=st.lists(st.dictionaries(names, json_values | st.just(1)) | json_values, max_size=4))
def test_any_json_is_read_or_refused_with_its_file(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    try:
        assert len(read_verdicts(path).each) == len(rows)
    except ValueError as error:
        assert "fuzz.json" in str(error)


# --- AlpacaEval's own files --------------------------------------------------------------------------


def test_outputs_return(tmp_path: Path) -> None:
    outputs = [ModelOutput("a", "x\u2028y", "m", "koala"), ModelOutput("b", "", "m")]
    path = tmp_path / "model_outputs.json"
    write_outputs(path, outputs)
    assert read_outputs(path) == outputs
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"dataset": "koala", "instruction": "a", "output": "x\u2028y", "generator": "m"},
        {"instruction": "b", "output": "", "generator": "m"},
    ]
    with pytest.raises(ValueError, match=r"line 1 has no 'generator'"):
        read_outputs(jsonl(tmp_path / "o.jsonl", {"instruction": "a", "output": "b"}))


def test_annotations_return(tmp_path: Path) -> None:
    rows = [
        annotated("a", 1.25, dataset="koala", raw_completion={"text": "m"}, more={"price_per_example": 0.5}),
        annotated("b", None),
    ]
    path = tmp_path / "annotations.json"
    write_annotations(path, rows)
    assert read_annotations(path) == rows
    first, second = json.loads(path.read_text(encoding="utf-8"))
    assert list(first) == [
        *("dataset", "instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator", "preference"),
        *("raw_completion", "price_per_example"),
    ]
    assert second["preference"] is None
    assert "dataset" not in second


def test_pandas_reads_what_alpaca_eval_reads_with_it(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "annotations.json"
    write_annotations(path, [annotated("a", 1.25), annotated("b", None), annotated("c", 2)])
    table = pd.read_json(path)
    assert table["preference"].mean() * 100 - 100 == figures(read_verdicts(path).preferences).win_rate
    assert 100 * table["preference"].sem() == pytest.approx(figures([1.25, 2]).standard_error)
    assert table["generator_2"].unique().tolist() == ["new"]


# --- instructions ------------------------------------------------------------------------------------


def test_instructions_of_a_file(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "set.jsonl",
        {"id": 4, "dataset": "koala", "instruction": "a", "ref_big": "x", "other": 1},
        {"dataset": "mine", "instruction": "b", "output": "y", "generator": "old"},
    )
    assert load_instructions(path) == [
        Instruction(4, "koala", "a", {"big": "x"}),
        Instruction(1, "mine", "b", {"old": "y"}),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a"}, "line 2 has no 'dataset'"),
        ({"dataset": "d"}, "line 2 has no 'instruction'"),
        ({"dataset": 1, "instruction": "a"}, "line 2: 'dataset' must be text, not 1"),
        ({"dataset": "d", "instruction": "first"}, "line 2: its instruction was given before"),
        ({"dataset": "d", "instruction": "a", "id": 0}, "line 2: id 0 was given before"),
        ({"dataset": "d", "instruction": "a", "ref_x": None}, "line 2: 'ref_x' must be text, not null"),
        ({"dataset": "d", "instruction": "a", "output": "o"}, "line 2 has no 'generator'"),
        ({"dataset": "d", "instruction": "a", "output": {"deep": "x" * 90}, "generator": "g"}, r"not \{.*\.\.\."),
    ],
)
def test_damaged_instructions_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path / "set.jsonl", {"dataset": "d", "instruction": "first"}, row)
    with pytest.raises(ValueError, match=message):
        load_instructions(path)


def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, *, drop: int = 0) -> list[tuple[str, str]]:
    """The hub's two files, made up; what was asked of the hub is noted."""
    rows = [{"dataset": name, "instruction": f"{name} {i}"} for name, size in SUBSETS.items() for i in range(size)]
    for file, generator in zip(HUB_FILES, ("text_davinci_003", "gpt4_1106_preview"), strict=True):
        filled = [{**row, "output": f"{generator} on {row['instruction']}", "generator": generator} for row in rows]
        (folder / file).write_text(json.dumps(filled[drop:]))
    asked: list[tuple[str, str]] = []

    def download(repository: str, name: str, *, repo_type: str) -> str:
        assert repo_type == "dataset"
        asked.append((repository, name))
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_instructions_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(tmp_path, monkeypatch)
    found = load_instructions()
    assert asked == [(HUB_ID, name) for name in HUB_FILES]
    assert len(found) == 805
    assert [item.item_id for item in found] == list(range(805))
    assert found[0] == Instruction(
        0,
        "selfinstruct",
        "selfinstruct 0",
        {
            "text_davinci_003": "text_davinci_003 on selfinstruct 0",
            "gpt4_1106_preview": "gpt4_1106_preview on selfinstruct 0",
        },
    )


def test_a_hub_that_changed_or_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(tmp_path, monkeypatch, drop=1)
    with pytest.raises(ValueError, match=r"expected the subsets .*'selfinstruct': 252.* found .*'selfinstruct': 251"):
        load_instructions()
    rows = json.loads((tmp_path / HUB_FILES[1]).read_text())
    (tmp_path / HUB_FILES[1]).write_text(json.dumps(rows[1:]))
    with pytest.raises(ValueError, match="hold different instructions"):
        load_instructions()

    def away(*_: Any, **__: Any) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", away)
    with pytest.raises(ValueError, match=r"alpaca_eval\.json can't be fetched from the hub \(no route\)"):
        load_instructions()
