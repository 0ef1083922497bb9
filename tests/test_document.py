"""evaluation.json: what every kind has in common is read back; anything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.evaluation.accuracy import harness_document
from sparring.evaluation.comparison import Outcome, compare
from sparring.evaluation.document import Figure, document, is_own, read_document, slug
from sparring.evaluation.harness import HarnessRecord
from sparring.evaluation.winrate import BothOrders, win_rates
from sparring.files import write_json_atomic

RATE = {"n": 4, "win_rate": 0.5, "ci95": [0.25, 0.75]}
MINIMAL: dict[str, Any] = {"schema": 1, "metric": "win_rate", "overall": RATE, "subsets": {}}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_each_kind_is_read_back(tmp_path: Path) -> None:
    compared = compare([Outcome("1", ("easy", "fold"), 0, 1), Outcome("2", ("hard",), 1, 1)])
    judged = win_rates([BothOrders("1", ("koala",), 1, 0.5), BothOrders("2", (), 0.0, None)])
    bodies = [
        ("held-out", "arena", "win_rate", compared.to_json(), {"easy": (1, 1.0), "easy/fold": (1, 1.0)}),
        ("win-rate", "mine", "win_rate", judged.to_json(), {"koala": (1, 0.75)}),
        ("accuracy", "gsm8k", "accuracy", {"overall": {"n": 3, "accuracy": 0.5, "ci95": None}, "subsets": {}}, {}),
    ]
    for kind, name, metric, body, subsets in bodies:
        content = document(kind, name, metric, model="m", base="b", body=body, settings={"seed": 1})
        assert content["schema"] == 1 and list(content)[:6] == ["schema", "kind", "name", "metric", "model", "base"]
        path = tmp_path / f"{kind}.json"
        write_json_atomic(path, content)
        found = read_document(path)
        assert (found.kind, found.name, found.metric, found.model, found.base) == (kind, name, metric, "m", "b")
        assert found.settings == {"seed": 1}
        assert subsets.items() <= {key: (one.n, one.value) for key, one in found.subsets.items()}.items()
        assert found.overall.value == body["overall"][metric]
    assert found.overall == Figure(3, 0.5, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as an evaluation"),
        ("[" * 100_000, "can't be read as an evaluation"),
        ([MINIMAL], "is no evaluation of schema 1"),
        ({**MINIMAL, "schema": 2}, "is no evaluation of schema 1"),
        ({**MINIMAL, "overall": {"n": 4}}, r"overall: needs n, win_rate and ci95 \(KeyError: 'ci95'\)"),
        ({**MINIMAL, "overall": None}, "overall: needs n, win_rate and ci95"),
        ({**MINIMAL, "metric": "accuracy"}, r"overall: needs n, accuracy and ci95 \(KeyError: 'accuracy'\)"),
        ({**MINIMAL, "subsets": {"koala": {**RATE, "ci95": [1]}}}, r"subsets\.koala: needs"),
        ({**MINIMAL, "subsets": {"koala": {**RATE, "win_rate": float("nan")}}}, r"subsets\.koala: win_rate and ci95"),
        ({**MINIMAL, "overall": {**RATE, "n": float("inf")}}, "overall: needs"),
        ({**MINIMAL, "subsets": [RATE]}, "subsets and settings must be objects"),
        ({**MINIMAL, "settings": 3}, "subsets and settings must be objects"),
    ],
)
def test_what_is_no_evaluation_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path / "some.json", content)
    with pytest.raises(ValueError, match=message) as refused:
        read_document(path)
    assert str(path) in str(refused.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be read as an evaluation"):
        read_document(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.sampled_from(["metric", "overall", "subsets", "settings", "base", "n", "win_rate", "ci95"]), JSON)
def test_any_content_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    content = {**MINIMAL, key: value} if key not in RATE else {**MINIMAL, "overall": {**RATE, key: value}}
    path = written(tmp_path_factory.getbasetemp() / "any.json", content)
    try:
        read_document(path)
    except ValueError as error:
        assert str(path) in str(error)


@settings(deadline=None)
@given(st.text(max_size=100))
def test_a_slug_names_a_file(name: str) -> None:
    made = slug(name)
    assert 0 < len(made) <= 60 and made == slug(made)
    assert "/" not in made and made[0] not in "-."


# --- the harness's figures ---------------------------------------------------------------------------


def record(task: str, metric: str, value: float, stderr: float | None = None, items: int | None = 10) -> HarnessRecord:
    return HarnessRecord(task, metric, "none", value, stderr, items, 0, "1")


def test_a_task_of_the_harness_is_a_subset() -> None:
    records = [
        record("arc", "acc", 0.25, 0.1),
        record("arc", "acc_norm", 0.5, 0.1),
        record("wiki", "word_perplexity", 23.0),
        record("group", "acc", 0.75, items=None),
        record("group/part", "other", 0.125),
    ]
    made = harness_document(records, "m", {"tasks": ["arc", "group", "wiki"]})
    assert made["subsets"]["arc"] == {
        "n": 10,
        "accuracy": 0.5,
        "ci95": [pytest.approx(0.304), pytest.approx(0.696)],
        "figure": "acc_norm,none",
    }
    assert made["subsets"].keys() == {"arc", "group", "group-part"}
    assert made["overall"] == {"n": 10, "accuracy": 0.625, "ci95": None}
    assert len(made["records"]) == 5
    tagged = harness_document(records, "m", {"tasks": ["a_tag"]})
    assert tagged["overall"]["accuracy"] == pytest.approx((0.5 + 0.75 + 0.125) / 3)
    with pytest.raises(ValueError, match=r"--tasks: .* no accuracy"):
        harness_document([record("wiki", "word_perplexity", 23.0)], "m", {"tasks": ["wiki"]})


@pytest.mark.parametrize(
    ("where", "given", "written"),
    [
        (".", "runs/sr1", "runs/sr1"),
        (".", "./runs/sr1/model", "./runs/sr1/model"),
        ("runs", "sr1", "sr1"),
        ("runs/sr1", ".", "runs/sr1"),
        ("runs/sr1/model", ".", "sr1/model"),
        ("runs/sr1", "model", "sr1/model"),
        ("runs/other", "../sr1", "runs/sr1"),
        ("runs/other", "../sr1/model", "sr1/model"),
        (".", "latest", "runs/sr1"),
        (".", "latest/model", "sr1/model"),
        (".", "runs/../latest", "runs/sr1"),
        (".", "llama", "llama"),  # a link to a model that is no run's
        ("runs", "../start", "store/start"),
        (".", "org/not-here", "org/not-here"),
    ],
)
def test_a_model_is_known_again_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, given: str, written: str
) -> None:
    home = tmp_path / "store"
    for name in ("sr1", "other"):
        (home / "runs" / name / "model").mkdir(parents=True)
        (home / "runs" / name / "config.yaml").touch()
    (home / "start").mkdir()
    (home / "llama").symlink_to("start")
    (home / "latest").symlink_to("runs/sr1")
    monkeypatch.chdir(home / where)
    content = document("lsr", "lsr", "lsr", model=given, base=None, body={"overall": {}, "subsets": {}}, settings={})
    assert content["model"] == written
    monkeypatch.chdir(tmp_path)
    assert is_own(content["model"], home / "latest") is ("sr1" in written)
    assert not is_own(content["model"], home / "runs" / "other")
