"""Prompt sets: formats, columns, empty rows, and an order that any step can find again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.data import PromptSet, Row, load_prompts
from sparring.report.run import read_run

ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}, {"prompt": " ", "answer": 3}]


def write(folder: Path, ending: str, rows: list[Any]) -> Path:
    path = folder / f"prompts.{ending}"
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_formats_columns_and_empty_rows(tmp_path: Path, ending: str) -> None:
    prompts = load_prompts(write(tmp_path, ending, ROWS))
    assert [(row.query, dict(row.columns)) for row in prompts.rows] == [
        ("one", {"answer": 1}),
        ("two", {"answer": 2}),
    ]
    assert (len(prompts), prompts.skipped, prompts.name) == (2, 1, f"prompts.{ending}")


def test_alpaca_columns(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add these.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hello.", "input": "", "output": "hello"},
        {"instruction": "Ciao è", "output": None},
    ]
    prompts = load_prompts(write(tmp_path, "jsonl", rows))
    assert [row.query for row in prompts.rows] == ["Add these.\n\n1 and 2", "Say hello.", "Ciao è"]
    assert prompts.rows[0].columns == {"output": "3"}


def test_messages_end_where_the_model_speaks(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "second"},
    ]
    answered = [*talk, {"role": "assistant", "content": "the data set's answer"}]
    prompts = load_prompts(write(tmp_path, "json", [{"messages": talk, "id": 7}, {"messages": answered}]))
    for row in prompts.rows:
        assert row.query == "second"
        assert row.messages == tuple(talk)
    assert prompts.rows[0].columns == {"id": 7}
    only_assistant = [{"messages": [{"role": "assistant", "content": "x"}]}, {"prompt": "p"}]
    assert load_prompts(write(tmp_path, "json", only_assistant)).skipped == 1


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_trls_conversational_prompt_is_messages(tmp_path: Path, ending: str) -> None:
    talk = [{"role": "system", "content": "brief"}, {"role": "user", "content": "how much?"}]
    answered = [*talk, {"role": "assistant", "content": "7"}]
    rows = [{"prompt": talk, "id": 1}, {"prompt": answered, "id": 2}, {"prompt": [], "id": 3}]
    prompts = load_prompts(write(tmp_path, ending, rows))
    assert prompts.rows == [Row("how much?", tuple(talk), {"id": 1}), Row("how much?", tuple(talk), {"id": 2})]
    assert prompts.skipped == 1
    assert load_prompts(write(tmp_path, ending, ROWS)).rows[0].messages is None


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_a_newline_ends_a_line_of_jsonl(tmp_path: Path, separator: str) -> None:
    text = f"one{separator}two"
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": text, "step": step}, ensure_ascii=False) for step in (1, 2)]
    path.write_bytes("\r\n".join(lines).encode())
    assert [row.query for row in load_prompts(path).rows] == [text, text]
    path.rename(tmp_path / "metrics.jsonl")
    assert [row["prompt"] for row in read_run(tmp_path).rows] == [text, text]


@pytest.mark.parametrize(
    ("ending", "text", "message"),
    [
        ("jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ("json", '{"prompt": "a"}', "expected a JSON list"),
        ("json", '[{"prompt": "a"}, 3]', "row 2 is no object"),
        (
            "json",
            '[{"question": "a"}]',
            "row 1 has none of the columns prompt, messages, instruction; it has: question",
        ),
        ("json", '[{"prompt": ""}]', "holds no prompt \\(1 empty rows\\)"),
        ("json", "[", "is not JSON"),
        ("csv", "prompt", "ends in .jsonl, .json or .parquet"),
        ("parquet", "no table", "is not Parquet"),
        ("json", '[{"messages": [{"content": "no role"}]}]', "row 1: each of its messages"),
        ("json", '[{"messages": ["text"]}]', "row 1: each of its messages"),
        ("json", '[{"prompt": "a"}, {"prompt": ["text"]}]', "row 2: each of its messages"),
        ("json", '[{"prompt": "a"}, {"prompt": {"role": "user", "content": "a"}}]', "row 2: its prompt .* not dict"),
        ("jsonl", '{"prompt": 5}', "row 1: its prompt must be text or a list of messages, not int"),
        ("jsonl", '{"prompt": 7}', "row 1: its prompt must be text or a list of messages, not int"),
        ("jsonl", '{"prompt": null}', r"holds no prompt \(1 empty rows\)"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, ending: str, text: str, message: str) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as raised:
        load_prompts(path)
    assert f"rows.{ending}" in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no prompt file .*none.json"):
        load_prompts(tmp_path / "none.json")


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5), st.integers(1, 3))
def test_every_epoch_covers_every_row_exactly_once(size: int, n: int, seed: int, epochs: int) -> None:
    prompts = PromptSet([Row(str(i)) for i in range(size)], "rows")
    steps = -(-size * epochs // n)
    drawn = [row.query for step in range(1, steps + 1) for row in prompts.at(step, n, seed)]
    for epoch in range(epochs):
        assert sorted(drawn[epoch * size : (epoch + 1) * size], key=int) == [str(i) for i in range(size)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_a_step_is_the_same_whenever_it_is_asked(steps: list[int]) -> None:
    rows = [Row(str(i)) for i in range(7)]
    straight = PromptSet(rows, "rows")
    history = {step: straight.at(step, 3, 0) for step in range(1, 41)}
    resumed = PromptSet(rows, "rows")
    for step in steps:
        assert resumed.at(step, 3, 0) == history[step]


def test_orders_differ_by_epoch_and_seed() -> None:
    prompts = PromptSet([Row(str(i)) for i in range(50)], "rows")
    orders = {tuple(row.query for row in prompts.at(step, 50, seed)) for step, seed in ((1, 0), (2, 0), (1, 1), (2, 1))}
    assert len(orders) == 4
