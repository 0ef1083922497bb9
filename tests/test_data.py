"""Prompt sets: formats, folders, hub ids, columns, empty rows, and an order that any step can find again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from real_data import real_data
from sparring.data import PromptSet, Row
from sparring.data import load_prompts as load
from sparring.data_images import images_of
from sparring.report.run import read_run
from sparring.rewards.base import RESERVED

ROWS = [{"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}, {"prompt": " ", "answer": 3}]


def load_prompts(path: Path, **keywords: Any) -> PromptSet:
    return load(str(path), **keywords)


def write(folder: Path, ending: str, rows: list[Any], name: str = "prompts") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.{ending}"
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
        {"instruction": " ", "input": "", "output": "nothing"},
    ]
    prompts = load_prompts(write(tmp_path, "jsonl", rows))
    assert [row.query for row in prompts.rows] == ["Add these.\n\n1 and 2", "Say hello.", "Ciao è"]
    assert prompts.rows[0].columns == {"output": "3"}
    assert prompts.skipped == 1


@pytest.mark.parametrize("name", ["question", "problem", "query"])
def test_other_usual_names_of_the_prompt_column(tmp_path: Path, name: str) -> None:
    prompts = load_prompts(write(tmp_path, "jsonl", [{"answer": "4", name: "2 + 2?"}]))
    assert prompts.rows == [Row("2 + 2?", None, {"answer": "4"})]


def test_the_prompt_column_may_have_any_name(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hello"}]
    rows = [{"prompt": "not this", "text": "this", "chat": talk}, {"prompt": "nor this", "text": "that", "chat": talk}]
    path = write(tmp_path, "jsonl", rows)
    assert [row.query for row in load_prompts(path, column="text").rows] == ["this", "that"]
    assert load_prompts(path, column="text").rows[0].columns == {"prompt": "not this", "chat": talk}
    assert [row.messages for row in load_prompts(path, column="chat").rows] == [tuple(talk)] * 2
    with pytest.raises(ValueError, match=r"game.prompt_column: .*row 1 has no column 'txt'; did you mean 'text'\?"):
        load_prompts(path, column="txt")
    with pytest.raises(ValueError, match=r"no column 'xyz'; it has: prompt, text, chat"):
        load_prompts(path, column="xyz")


def test_rows_of_several_forms_make_one_table(tmp_path: Path) -> None:
    """In a table every row and every message has every key: null where it has none."""
    talk = [{"role": "user", "content": "hello", "name": "ann"}, {"role": "user", "content": "anyone?"}]
    rows = [{"prompt": "plain"}, {"instruction": "do"}, {"messages": talk}]
    wide = {"prompt": None, "instruction": None, "messages": None}
    prompts = load_prompts(write(tmp_path, "parquet", [{**wide, **row} for row in rows]))
    assert [row.query for row in prompts.rows] == ["plain", "do", "anyone?"]
    assert prompts.rows[2].messages == tuple(talk)


def test_columns_named_as_the_rewards_own_arguments_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "a", "answers": ["x"], "answer": "x", "completions": "y"}] * 3
    prompts = load_prompts(write(tmp_path, "jsonl", rows))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "named answers, completions" in caplog.text
    assert "answer" in prompts.rows[0].columns
    assert {"answers", "completions"} <= RESERVED
    caplog.clear()
    load_prompts(write(tmp_path, "jsonl", [{"prompt": "a", "answer": "x"}]))
    assert caplog.text == ""


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


@pytest.mark.parametrize("as_messages", [False, True])
def test_half_a_character_is_left_out_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, as_messages: bool
) -> None:
    texts = ["one", "half \ud800", "two"]
    rows = [{"prompt": [{"role": "user", "content": text}] if as_messages else text} for text in texts]
    path = write(tmp_path, "jsonl", rows)
    with caplog.at_level("WARNING"):
        assert [row.query for row in load_prompts(path).rows] == ["one", "two"]
    assert [record.getMessage() for record in caplog.records] == [
        f"left out: {path}, row 2: its prompt holds half a character (a lone surrogate)",
        f"{path}: 1 of 3 rows are left out, as their prompts hold half a character",
    ]
    with pytest.raises(ValueError, match="the prompts of all its 1 rows hold half a character"):
        load_prompts(write(tmp_path, "jsonl", rows[1:2]))


def test_a_row_of_the_hub_names_no_file_of_this_machine(tmp_path: Path) -> None:
    entry = str(tmp_path / "secret.png")
    for given_image in (entry, {"bytes": None, "path": "../secret.png"}):
        with pytest.raises(ValueError, match=r"row 1: its images are named by a path .* must hold the images"):
            images_of({"images": [given_image]}, None, "owner/name, row 1")
    assert images_of({"images": [b"png"]}, None, "owner/name, row 1") == (b"png",)
    assert images_of({"images": [entry, "../b.png"]}, tmp_path, "mine") == (Path(entry), tmp_path / "../b.png")


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
            '[{"task": "a", "output": "b"}]',
            "row 1 has none of the columns messages, prompt, .*: set game.prompt_column to one of .*: task, output",
        ),
        ("json", '[{"messages": "text"}]', "row 1: its messages must be a list of messages, not str"),
        ("json", '[{"messages": [{"role": "user", "content": [1]}]}]', "row 1: the role and content .* must be text"),
        ("json", '[{"messages": [{"role": 1, "content": ""}]}]', "row 1: the role and content .* must be text"),
        ("jsonl", '{"instruction": 5}', "row 1: its instruction must be text or a list of messages, not int"),
        ("json", '[{"prompt": ""}]', "holds no prompt \\(1 empty rows\\)"),
        ("json", "[", "is not JSON"),
        ("csv", "prompt", "ends in .jsonl, .json or .parquet"),
        ("parquet", "no table", "is not Parquet"),
        ("json", '[{"messages": [{"content": "no role"}]}]', "row 1: each message of its messages"),
        ("json", '[{"messages": ["text"]}]', "row 1: each message of its messages"),
        ("json", '[{"prompt": "a"}, {"prompt": ["text"]}]', "row 2: each message of its prompt"),
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


def test_parquet_that_is_damaged_inside_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", [{"prompt": f"question {n}"} for n in range(500)])
    data = bytearray(path.read_bytes())
    data[4:1000] = bytes(996)
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"prompts\.parquet is not Parquet: "):
        load_prompts(path)


NAMES = st.sampled_from(["messages", "prompt", "instruction", "input", "question", "role", "content", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES | st.dictionaries(NAMES, VALUES, min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_row_is_read_or_named(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([record, {"prompt": "a"}]))
    try:
        prompts = load_prompts(path)
    except ValueError as error:
        assert "rows.json, row 1" in str(error)
    else:
        assert prompts.rows[-1].query == "a"
        assert all(isinstance(row.query, str) for row in prompts.rows)


@pytest.mark.parametrize("ending", ["json", "jsonl", "txt"])
def test_what_is_no_text_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(b'{"prompt": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"rows\.(jsonl? is no UTF-8 text|txt: a prompt file ends in)"):
        load_prompts(path)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert load_prompts(path).rows[0].query == "a"


def test_a_pattern_names_several_files(tmp_path: Path) -> None:
    for name, ending in (("b-2", "jsonl"), ("b-1", "parquet"), ("c", "jsonl"), ("b[3]", "json")):
        write(tmp_path / "data", ending, [{"prompt": name, "answer": 1}], name)
    assert [row.query for row in load(str(tmp_path / "data/b-*")).rows] == ["b-1", "b-2"]
    assert [row.query for row in load(str(tmp_path / "data/?.jsonl")).rows] == ["c"]
    assert [row.query for row in load(str(tmp_path / "data/b[3].json")).rows] == ["b[3]"], "a file that is there"
    assert load(str(tmp_path / "data/b-*")).name.endswith("data/b-*")
    for nothing in ("data/x-*.json", "none/*.json"):
        with pytest.raises(ValueError, match=r"game\.prompts: there is no prompt file"):
            load(str(tmp_path / nothing))
    with pytest.raises(ValueError, match=r"game\.prompt_split=test does nothing for a pattern of files"):
        load(str(tmp_path / "data/b-*"), split="test")


class NotAsked:
    """In place of the datasets library: a test that reaches it has failed."""

    __version__ = "5.0"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"datasets.{name} was asked")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("none.json", "reads owner/name"),
        ("owner/alpaca.jsonl", "reads owner/name"),
        ("data/alpaca", "did you mean 'alpaca.jsonl'"),
        ("data/sub/alpaca", "reads owner/name"),
        ("./owner/name", "reads owner/name"),
        ("../owner/name", "reads owner/name"),
        ("/owner/name", "reads owner/name"),
        ("~/owner", "reads owner/name"),
        ("alpaca", "reads owner/name"),
        ("arena:esay", "reads owner/name"),
        ("", "reads owner/name"),
    ],
)
def test_a_mistyped_path_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, hint: str
) -> None:
    write(tmp_path / "data", "jsonl", ROWS, "alpaca")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", NotAsked())
    with pytest.raises(ValueError, match=f"game.prompts: there is no prompt file .*{hint}"):
        load(source)


def test_the_library_is_asked_for_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in ("owner/name", str(tmp_path)):
        with pytest.raises(ValueError, match=r"pip install 'sparring\[data\]'"):
            load(source)
    assert len(load_prompts(write(tmp_path, "jsonl", ROWS))) == 2


def test_a_library_that_runs_a_data_sets_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = NotAsked()
    old.__version__ = "3.6.0"
    monkeypatch.setitem(sys.modules, "datasets", old)
    with pytest.raises(ValueError, match=r"datasets 3.6.0 can run code .* pip install 'datasets>=4'"):
        load_prompts(tmp_path)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real library, with a cache of its own and without network."""
    datasets = pytest.importorskip("datasets", reason="the datasets library (pip install 'sparring[data]') is absent")
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_folder_of_files_has_splits(tmp_path: Path, library: Any, ending: str) -> None:
    folder = tmp_path / "folder"
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    write(folder, ending, [{"prompt": talk, "answer": 1}, {"prompt": talk, "answer": 2}], "train")
    write(folder, ending, [{"prompt": talk, "answer": 3}], "test")
    prompts = load_prompts(folder)
    assert prompts.rows == [Row("hello", ({"role": "user", "content": "hello"},), {"answer": n}) for n in (1, 2)]
    assert prompts.name == "folder"
    assert [row.columns["answer"] for row in load_prompts(folder, split="test").rows] == [3]
    assert [row.columns["answer"] for row in load_prompts(folder, split="train[1:]").rows] == [2]
    with pytest.raises(
        ValueError, match=r"prompt_split: .* no split 'tset'; did you mean 'test'\?; it has: train, test"
    ):
        load_prompts(folder, split="tset")
    with pytest.raises(ValueError, match=r"game.prompt_subset=main: .*not found. Available: \['default'\]"):
        load_prompts(folder, subset="main")


def test_a_saved_data_set(tmp_path: Path, library: Any) -> None:
    rows = library.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    library.DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "both")
    assert [row.query for row in load_prompts(tmp_path / "one").rows] == ["one", "two"]
    assert [row.query for row in load_prompts(tmp_path / "both", split="test").rows] == ["two"]
    with pytest.raises(ValueError, match=r"game.prompt_split: .* no split 'dev'; it has: train, test"):
        load_prompts(tmp_path / "both", split="dev")
    with pytest.raises(ValueError, match=r"game.prompt_subset=main does nothing for a saved data set"):
        load_prompts(tmp_path / "both", subset="main")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"game.prompts: .*one can't be read"):
        load_prompts(tmp_path / "one")


@pytest.mark.parametrize(
    ("given_settings", "name"),
    [({"split": "test"}, "split=test"), ({"subset": "main"}, "subset=main"), ({"revision": "v1"}, "revision=v1")],
)
def test_a_setting_that_does_nothing_is_refused(tmp_path: Path, given_settings: dict[str, str], name: str) -> None:
    with pytest.raises(ValueError, match=f"game.prompt_{name} does nothing for one file"):
        load_prompts(write(tmp_path, "jsonl", ROWS), **given_settings)
    if "revision" in given_settings:
        with pytest.raises(ValueError, match=f"game.prompt_{name} does nothing for a folder"):
            load_prompts(tmp_path, **given_settings)


def test_a_folder_without_rows_or_with_damaged_ones_is_named(tmp_path: Path, library: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"game.prompts: .*empty can't be loaded: .*doesn't contain any data files"):
        load_prompts(tmp_path / "empty")
    write(tmp_path / "damaged", "jsonl", ["text"], "rows")
    (tmp_path / "damaged" / "rows.jsonl").write_text('{"prompt": \n')
    with pytest.raises(ValueError, match=r"game.prompts: .*damaged can't be read: .*JSON parse error"):
        load_prompts(tmp_path / "damaged")


def test_code_that_a_data_set_brings_is_never_run(tmp_path: Path, library: Any) -> None:
    folder = tmp_path / "scripted"
    write(folder, "jsonl", ROWS, "train")
    ran = tmp_path / "ran"
    (folder / "scripted.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"can't be loaded: Dataset scripts are no longer supported"):
        load_prompts(folder)
    assert not ran.exists()


def test_a_hub_that_cannot_be_reached_is_said(library: Any) -> None:
    with pytest.raises(ValueError, match=r"prompts: nobody/no-such-set at game.prompt_revision=v1 can't be loaded"):
        load("nobody/no-such-set", revision="v1")


def test_what_the_hub_refuses_names_the_setting(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    asked: list[tuple[Any, ...]] = []

    def builder(source: str, *, name: str | None, revision: str | None) -> Any:
        asked.append((source, name, revision))
        if name is None:
            raise ValueError("Config name is missing.\nPlease pick one among: ['main', 'socratic']")
        raise library.exceptions.DatasetNotFoundError(f"Dataset '{source}' doesn't exist on the Hub")

    monkeypatch.setattr(library, "load_dataset_builder", builder)
    with pytest.raises(ValueError, match=r"game.prompt_subset=None: Config name is missing. Please.*'socratic'"):
        load("openai/gsm8k")
    with pytest.raises(ValueError, match=r"game.prompts: openai/gsm8k can't be loaded: .* doesn't exist on the Hub"):
        load("openai/gsm8k", subset="main")
    assert asked == [("openai/gsm8k", None, None), ("openai/gsm8k", "main", None)]


def test_the_real_alpaca_file() -> None:
    path = real_data("alpaca", "alpaca_subset.jsonl")
    prompts = load_prompts(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line.strip()]
    assert len(prompts) + prompts.skipped == len(records)
    assert prompts.skipped < len(records) / 100
    with_input = [record for record in records if record["input"].strip()]
    assert sum("\n\n" in row.query for row in prompts.rows) >= len(with_input) > 1000
    kept = [record for record in records if record["instruction"].strip() or record["input"].strip()]
    for row, record in zip(prompts.rows, kept, strict=True):
        assert row.query.startswith(record["instruction"])
        assert row.query.endswith(record["input"].strip())
        assert set(row.columns) == set(record) - {"instruction", "input"}
    assert len({id(row) for row in prompts.at(1, len(prompts), 0)}) == len(prompts)


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


def test_blocks_of_a_source_are_dealt_out_over_the_epoch() -> None:
    """Each of ten steps has rows of each of three sources, about as many as there are."""
    sources = [source for source in "abc" for _ in range(100)]
    prompts = PromptSet([Row(str(i), None, {"source": source}) for i, source in enumerate(sources)], "blocks")
    for seed in range(3):
        drawn = [[row.columns["source"] for row in prompts.at(step, 30, seed)] for step in range(1, 11)]
        assert all(3 <= step.count(source) <= 20 for step in drawn for source in "abc")


def test_orders_differ_by_epoch_and_seed() -> None:
    prompts = PromptSet([Row(str(i)) for i in range(50)], "rows")
    orders = {tuple(row.query for row in prompts.at(step, 50, seed)) for step, seed in ((1, 0), (2, 0), (1, 1), (2, 1))}
    assert len(orders) == 4
