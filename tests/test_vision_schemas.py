"""The data sets of Vision-SR1 as they are published, made tiny: 47K for RL, Cold-9K for the cold start; and what is
read of a data set of pictures before training."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from conftest import Recorder
from sparring.config import resolve
from sparring.data import load_prompts
from sparring.data_held import Cell, Spooled
from sparring.data_images import image_columns
from sparring.images import Picture
from sparring.recipes import recipe
from sparring.rendering import Renderer
from sparring.rewards.verifiable import by_type
from sparring.run import train
from sparring.runfolder import RunFolder
from sparring.settings.sft import SFTConfig, SFTDataConfig
from sparring.sft.lessons import Curriculum, curriculum, load_records
from sparring.sft.run import resume
from sparring.sft.run import train as teach
from sparring.sft.spans import Speller
from test_images import bomb
from tiny_vision import save_tiny_qwen25vl, tiny_store, vision_tokenizer

KINDS = ("multiple choice", "numerical", "regression")
SEE_THINK = "<description>A red cat.</description>\n<think>It is red.</think>\n\\boxed{A}"


def image(seed: int, width: int = 28, height: int = 28, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def held(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def rows_47k(count: int = 12) -> list[dict[str, Any]]:
    """Blocks by source, which are blocks by kind here."""
    return [
        {
            "problem": f"<image>Question {n}? A. cat B. dog",
            "answer": {"multiple choice": "A", "numerical": "1/2", "regression": "12.5"}[kind],
            "images": [held(image(n), f"{n}.png")],
            "problem_type": kind,
        }
        for n in range(count)
        for kind in [KINDS[3 * n // count]]
    ]


IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
SCHEMA_47K = pa.schema(
    [("problem", pa.string()), ("answer", pa.string()), ("images", IMAGES), ("problem_type", pa.string())]
)


def shards(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema, files: int = 2) -> Path:
    (folder / "data").mkdir(parents=True)
    for number in range(files):
        part = rows[len(rows) * number // files : len(rows) * (number + 1) // files]
        path = folder / f"data/train-{number:05}-of-{files:05}.parquet"
        parquet.write_table(pa.Table.from_pylist(part, schema), path)
    return folder


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets", reason="the datasets library (pip install 'sparring[data]') is absent")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_qwen25vl(tmp_path_factory.mktemp("model"))


# Vision-SR1-47K


def test_a_folder_of_parquet_as_the_47k(tmp_path: Path, library: Any) -> None:
    rows = rows_47k()
    prompts = load_prompts(str(shards(tmp_path / "47k", rows, SCHEMA_47K)))
    assert [row.query for row in prompts.rows] == [f"Question {n}? A. cat B. dog" for n in range(12)]
    assert prompts.rows[5].columns == {"answer": "1/2", "problem_type": "numerical"}
    for row, given in zip(prompts.rows, rows, strict=True):
        (cell,) = row.images
        assert isinstance(cell, Cell)
        assert cell.read() == given["images"][0]["bytes"]
    assert Picture.open(prompts.rows[6].images[0]).name == f"{tmp_path / '47k'}, row 7: its images"
    part = load_prompts(str(tmp_path / "47k"), split="train[5:7]")
    assert [image_.read() for row in part.rows for image_ in row.images if isinstance(image_, Cell)] == [
        image(5),
        image(6),
    ]


@pytest.mark.parametrize("column", ["images", "image"])
@pytest.mark.parametrize("plain", [False, True])
def test_images_of_other_forms(tmp_path: Path, library: Any, column: str, plain: bool) -> None:
    """One or a list, bare bytes or bytes with a path; bytes, a file beside the table, nothing."""
    (tmp_path / "beside.png").write_bytes(image(1))
    entries = [image(0), None] if plain else [held(image(0)), held(None, "beside.png"), None]
    values = [[entry] for entry in entries[:-1]] + [[], None] if column == "images" else entries
    rows = [{"problem": f"{n}?", column: value} for n, value in enumerate(values)]
    kind = pa.binary() if plain else IMAGES.value_type
    schema = pa.schema([("problem", pa.string()), (column, pa.list_(kind) if column == "images" else kind)])
    parquet.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "rows.parquet")
    library.Dataset.from_parquet(str(tmp_path / "rows.parquet")).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/beside.png").write_bytes(image(1))
    for source, form in ((tmp_path / "rows.parquet", Spooled), (tmp_path / "saved", Cell)):
        found = load_prompts(str(source)).rows
        assert [row.query for row in found] == [row["problem"] for row in rows]
        assert [len(row.images) for row in found] == [1] * (1 if plain else 2) + [0] * (
            len(found) - (1 if plain else 2)
        )
        assert isinstance(found[0].images[0], form)
        shown = [Picture.open(row.images[0]) for row in found if row.images]
        assert shown == [Picture.open(image(n)) for n in range(len(shown))]


def test_columns_that_hold_images() -> None:
    binary, text = pa.binary(), pa.string()
    entry = pa.struct([("path", text), ("bytes", pa.large_binary())])
    for kind in (binary, pa.large_binary(), entry, pa.list_(binary), pa.large_list(entry), pa.list_(entry, 2)):
        assert image_columns(pa.schema([("image", kind), ("thumb", kind), ("images", text)])) == ["image"]
    for kind in (text, pa.list_(text), pa.struct([("path", text)]), pa.struct([("bytes", pa.list_(binary))])):
        assert image_columns(pa.schema([("image", kind), ("images", pa.list_(entry))])) == ["images"]


def test_right_answers_of_every_kind_are_paid() -> None:
    answers = [r"\boxed{A. cat}", r"\boxed{0.5}", r"\boxed{12.6}", r"\boxed{B}", r"\boxed{0.6}", r"\boxed{90}"]
    scores = by_type(["?"] * 6, answers, answer=["A", "1/2", "12.5"] * 2, problem_type=list(KINDS) * 2)
    assert scores[:2] == [1.0, 1.0]
    assert scores[2] is not None and scores[2] > 0.9
    assert scores[3:5] == [0.0, 0.0]
    assert scores[5] is not None and scores[5] < 0.1


def test_rows_come_from_all_sources_at_once(tmp_path: Path, library: Any) -> None:
    prompts = load_prompts(str(shards(tmp_path / "47k", rows_47k(90), SCHEMA_47K)))
    orders: list[list[str]] = []
    for seed in (0, 0, 1):
        steps = [[str(row.columns["problem_type"]) for row in prompts.at(step, 15, seed)] for step in range(1, 7)]
        assert all(set(kinds) == set(KINDS) for kinds in steps)
        orders.append([row.query for step in range(1, 7) for row in prompts.at(step, 15, seed)])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(row.query for row in prompts.rows)


def test_it_trains(tmp_path: Path, library: Any, model: Path) -> None:
    given = (
        f"model.path={model}",
        f"game.prompts={shards(tmp_path / '47k', rows_47k(6), SCHEMA_47K)}",
        "model.dtype=float32",
        "model.device=cpu",
        "model.gradient_checkpointing=false",
        "model.vision.min_pixels=784",
        "model.vision.max_pixels=3136",
        "game.n_queries=6",
        "game.n_answers=2",
        "game.solver.max_new_tokens=4",
        "game.reader.max_new_tokens=4",
        "learner.minibatches=2",
        "learner.token_budget=256",
        "steps=1",
        "threads=1",
        "health.on_alarm=go_on",
    )
    seen = Recorder()
    train(resolve(recipe("vision-sr1", "paper"), None, given), tmp_path / "run", observer=seen)
    turns = [turn for turn in seen.steps[1][1] if turn.role.name == "perceiver"]
    assert {turn.info["problem_type"] for turn in turns} == set(KINDS)
    assert all(any(token < 0 for token in turn.prompt_ids) for turn in turns)
    assert "data/unreadable_pictures" not in RunFolder(tmp_path / "run").read_metrics()[1]


# What is read before training


def test_pictures_that_cannot_be_used_are_left_out_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [held(b"no image"), held(b""), held(None, "gone.png"), held(bomb(60_000, 60_000)), held(image(1, 2, 500))]
    second = enumerate([*bad, held(image(1, 60, 60))])
    rows = [{"problem": f"{n}?", "images": [held(image(0)), each]} for n, each in second]
    rows.append({"problem": "none?", "images": []})
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows, pa.schema([("problem", pa.string()), ("images", IMAGES)])), path)
    Image.init()
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("a picture was decoded"))
    with caplog.at_level(logging.WARNING):
        assert [row.query for row in load_prompts(str(path)).rows] == ["5?", "none?"]
    *named, last = [record.getMessage() for record in caplog.records]
    assert last == f"{path}: 5 of 7 rows are left out, as their pictures can't be used; 2 are left"
    assert [message.startswith(f"left out: {path}, row {n}: ") for n, message in enumerate(named, 1)] == [True] * 5
    reasons = ("can't be read as an image", "can't be read", "gone.png: no such file", "row 4", "2 x 500 pixels")
    assert all(reason in message for reason, message in zip(reasons, named, strict=True))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert [row.query for row in load_prompts(str(path), max_pixels=3000).rows] == ["none?"]
    assert len(caplog.records) == 6, "five are named, and all counted"
    assert "6 of 7 rows are left out" in caplog.text
    (tmp_path / "bad.jsonl").write_text(json.dumps({"problem": "?", "images": ["x" * 4000]}) + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl: none of its 1 rows has pictures that can be used \(.*row 1: "):
        load_prompts(str(tmp_path / "bad.jsonl"))


# Cold-9K


def asked(question: str, answer: str, *images: Any) -> dict[str, Any]:
    return {
        "messages": [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}],
        "images": list(images),
    }


def cold_9k(folder: Path, count: int = 3) -> str:
    """The three files of the data set, with the images that they name; and another that is no part of it."""
    (folder / "cold_start").mkdir(parents=True)
    for n in range(count):
        (folder / f"cold_start/{n}.jpg").write_bytes(image(n, 28, 56, "JPEG"))
    see = [asked(f"<image>What colour {n}?", SEE_THINK, f"cold_start/{n}.jpg") for n in range(count)]
    think = [
        asked(f"Question: What colour {n}?<image>", "<think>red</think>\n\\boxed{A}", f"cold_start/{n}.jpg")
        for n in range(count)
    ]
    question, answer = "Text description: A cat. Question: {}?", "<think>so</think>\n\\boxed{A}"
    read = [{"instruction": question.format(n), "input": "", "output": answer} for n in range(count)]
    files = {"A-vision_see_think": see, "A-vision_reasoner": think, "A-caption_reasoners(text)": read}
    for name, rows in {**files, "alpaca_en_demo": [{"instruction": "x", "output": "y"}]}.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=2))
    return str(folder / "A-*.json")


def lessons(source: str, **settings: Any) -> Curriculum:
    tokenizer = vision_tokenizer()
    speller = Speller(Renderer(tokenizer, images=tiny_store()), (tokenizer.eos_token_id,))
    data = SFTDataConfig(path=source, held_out=0.0, **settings)
    return curriculum(load_records(data), speller, data, limit=10_000, seed=0, open_image=Picture.open)


def written(ids: tuple[int, ...]) -> str:
    return vision_tokenizer().decode([token for token in ids if token >= 0], skip_special_tokens=False)


def test_the_three_views_of_the_cold_start(tmp_path: Path) -> None:
    made = lessons(cold_9k(tmp_path / "cold"))
    assert (len(made.taught), made.skipped) == (9, [])
    captions, think, see = made.taught[:3], made.taught[3:6], made.taught[6:]  # files come in order of their names
    pictures = [Picture.open(tmp_path / f"cold/cold_start/{n}.jpg") for n in range(3)]
    for view in (think, see):
        shown = [{token for token in lesson.prompt_ids if token < 0} for lesson in view]
        assert shown == [{each.handle} for each in pictures]
    assert all(min(lesson.prompt_ids) >= 0 for lesson in captions)
    assert written(see[1].prompt_ids).startswith("<|im_start|>user\n<|vision_start|><|vision_end|>What colour 1?")
    assert "What colour 1?<|vision_start|><|vision_end|><|im_end|>" in written(think[1].prompt_ids)
    assert written(see[0].completion_ids) == f"{SEE_THINK}<|im_end|>"
    assert written(captions[0].completion_ids) == "<think>so</think>\n\\boxed{A}<|im_end|>"
    order = [id(lesson) for step in (1, 2, 3) for lesson in made.at(step, 3, 9, seed=0)]
    assert sorted(order) == sorted(id(lesson) for lesson in made.taught)
    assert order[:3] != [id(lesson) for lesson in captions], "shuffled across the views"


def test_the_cold_start_as_parquet(tmp_path: Path, library: Any) -> None:
    message = pa.struct([("content", pa.string()), ("role", pa.string())])
    schema = pa.schema([("messages", pa.list_(message)), ("images", IMAGES)])
    rows = [asked("<image>see?", SEE_THINK, held(image(0))), asked("Question?<image>", "\\boxed{A}", held(image(1)))]
    rows += [{**asked("Text description: a cat", "\\boxed{A}"), "images": images} for images in (None, [])]
    rows += [asked("<image>broken?", "\\boxed{A}", held(image(2)[:200]))]
    folder = shards(tmp_path / "cold", rows, schema)
    for source in (str(folder), str(folder / "data/train-*.parquet")):
        made = lessons(source)
        shown = [{token for token in lesson.prompt_ids if token < 0} for lesson in made.taught]
        assert shown == [{Picture.open(image(0)).handle}, {Picture.open(image(1)).handle}, set(), set()]
        ((number, reason),) = made.skipped
        assert number == 5 and "its images: can't be read as an image" in reason


def test_answers_to_the_47k_can_be_learned(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows_47k(3), SCHEMA_47K), path)
    made = lessons(str(path), prompt="problem", completion="answer")
    assert [written(lesson.completion_ids)[:-10] for lesson in made.taught] == ["A", "1/2", "12.5"]
    assert all(min(lesson.prompt_ids) < 0 for lesson in made.taught)


def test_a_cold_start_runs_and_goes_on_from_elsewhere(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = cold_9k(tmp_path / "cold")
    monkeypatch.chdir(tmp_path)
    settings = resolve(
        SFTConfig(),
        None,
        (
            f"model.path={model}",
            f"data.path={Path(pattern).relative_to(tmp_path)}",
            "model.dtype=float32",
            "model.device=cpu",
            "learner.batch=3",
            "learner.lr=1e-3",
            "epochs=2",
            "threads=1",
            "trackers=none",
            "data.held_out=0.2",
        ),
    )
    assert teach(settings, tmp_path / "run") == 6  # 8 rows (1 of 9 is held out) twice, 3 a step
    metrics = RunFolder(tmp_path / "run").read_metrics()
    assert float(metrics[-1]["nll/train"] or 0) < float(metrics[1]["nll/train"] or 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(tmp_path / "run") == 6
