"""Vision-SR1 as a run: a tiny random vision model looks, reads, learns, is killed and goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import Recorder, untimed
from ranks import on_ranks
from sparring.config import ConfigError, resolve
from sparring.data import load_prompts
from sparring.data_held import Spooled
from sparring.games.vision import Decoupled, Vision
from sparring.recipes import recipe
from sparring.run import assemble, resume, train
from sparring.runfolder import RunFolder
from sparring.settings import RunConfig
from tiny_vision import save_tiny_qwen3vl, save_tiny_qwen25vl

REWARD = '''
def reward(queries, answers, answer):
    """Paid for letters: a random model's texts differ in them."""
    return [float(len(text) % 3 == 0) for text in answers]
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions: pictures of three sizes, two pictures, none."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a": (28, 28), "b": (56, 28), "c": (28, 84)}.items():
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "reward.py").write_text(REWARD)
    rows = [
        {"problem": "<image>what?", "answer": "A", "images": ["a.png"], "problem_type": "multiple choice"},
        {"problem": "which <image> is it?", "answer": "2", "image": "b.png", "problem_type": "numerical"},
        {"problem": "how far?", "answer": "2.5", "images": ["c.png"], "problem_type": "regression"},
        {"problem": "both?", "answer": "B", "images": ["a.png", "c.png"], "problem_type": "multiple choice"},
        {"problem": "no picture?", "answer": "4", "problem_type": "numerical"},
        {"problem": "again?", "answer": "7", "images": ["b.png"], "problem_type": "numerical"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"qwen2.5": save_tiny_qwen25vl(folder / "25"), "qwen3": save_tiny_qwen3vl(folder / "3")}


def config(model: Path, data: Path, *more: str) -> RunConfig:
    given = (
        f"model.path={model}",
        f"game.prompts={data / 'rows.jsonl'}",
        f"game.reward.function={data / 'reward.py'}:reward",
        "model.dtype=float32",
        "model.device=cpu",
        "model.gradient_checkpointing=false",
        "model.vision.min_pixels=784",
        "model.vision.max_pixels=3136",
        "game.n_queries=3",
        "game.n_answers=3",
        "game.solver.max_new_tokens=8",
        "game.solver.top_p=1",
        "game.reader.max_new_tokens=6",
        "learner.lr=0.003",
        "learner.minibatches=2",
        "learner.token_budget=256",
        "steps=4",
        "threads=1",
        "checkpoint.every=2",
        "health.on_alarm=go_on",
    )
    return resolve(recipe("vision-sr1", "paper"), None, (*given, *more))


def described(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model writes no tags: what it says counts as a description, so that the reader has something to read."""
    monkeypatch.setattr("sparring.games.vision.description_of", lambda text: text.strip() or None)


@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_it_looks_reads_and_learns(
    family: str, tuning: str, models: Mapping[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(monkeypatch)
    seen = Recorder()
    train(config(models[family], data, f"model.tuning={tuning}"), tmp_path / "run", observer=seen)
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(float(row["sampler_gap/perceiver"] or 0) < 1e-4 for row in rows[1:] if "sampler_gap/perceiver" in row)
    assert max(float(row.get("kl/perceiver") or 0) for row in rows) > 1e-7  # it moved
    assert any("vision/reader/all" in row for row in rows)
    _, turns, payoffs = seen.steps[1]
    readers = [turn for turn in turns if turn.role.name == "reader"]
    assert readers
    assert not any(token < 0 for turn in readers for token in turn.prompt_ids)  # no picture
    assert any(token < 0 for turn in turns if turn.role.name == "perceiver" for token in turn.prompt_ids)
    assert not any(turn in payoffs for turn in readers)
    saved = RunFolder(tmp_path / "run").read_turns([1])
    assert any(str(row["prompt"]).startswith("[image]\n") for row in saved)
    assert (tmp_path / "run/model/preprocessor_config.json").is_file()


def test_a_killed_run_goes_on_bit_for_bit(
    models: Mapping[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(monkeypatch)

    class Killed(Exception):  # noqa: N818 - a signal, not an error
        pass

    class Killer(Recorder):
        def stepped(self, step: int, *rest: Any) -> None:
            if step == 3:
                raise Killed

    settings = config(models["qwen2.5"], data)
    train(settings, tmp_path / "whole")
    with pytest.raises(Killed):
        train(settings, tmp_path / "killed", observer=Killer())
    resume(tmp_path / "killed")
    whole, killed = (RunFolder(tmp_path / name) for name in ("whole", "killed"))
    assert untimed(whole.read_metrics()) == untimed(killed.read_metrics())
    assert whole.read_turns() == killed.read_turns()
    left, right = (load_file(run.model / "model.safetensors") for run in (whole, killed))
    assert all(torch.equal(left[name], right[name]) for name in left)


def _on_a_rank(settings: RunConfig, out: Path) -> None:
    patch = pytest.MonkeyPatch()
    described(patch)
    train(settings, out)
    patch.undo()


def test_two_ranks_are_one_with_questions_without_pictures_among_them(
    models: Mapping[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described(monkeypatch)
    settings = config(models["qwen2.5"], data, "steps=2", "game.n_queries=6", "parallel.strategy=replicate")
    train(settings, tmp_path / "one")
    on_ranks(2, tmp_path, _on_a_rank, settings, tmp_path / "two")
    rows = [RunFolder(tmp_path / name).read_metrics() for name in ("one", "two")]
    assert any(not row["info"].count('"pictures": 1') for row in RunFolder(tmp_path / "one").read_turns([1]))
    for one, two in zip(*rows, strict=True):
        for name in ("loss", "grad_norm", "kl/perceiver"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), (one["step"], name)


def test_answers_alone(models: Mapping[str, Path], data: Path, tmp_path: Path) -> None:
    seen = Recorder()
    settings = config(models["qwen2.5"], data, "game.perception.visual_weight=0", "steps=1")
    train(settings, tmp_path / "run", observer=seen)
    assert {turn.role.name for turn in seen.steps[1][1]} == {"perceiver"}


def test_settings_make_the_game(models: Mapping[str, Path], data: Path, tmp_path: Path) -> None:
    settings = config(models["qwen2.5"], data, "game.perception.combine=decoupled", "game.perception.format_weight=0.2")
    with RunFolder(tmp_path / "run").create(settings.to_yaml(), {}) as folder:
        game = assemble(settings, folder).trainer.game
    assert isinstance(game, Vision)
    assert game.combine == Decoupled({"accuracy": 0.9, "visual": 1.0, "format": 0.2})
    assert (game.reader.weight, game.reader.sampling.temperature) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("game.perception.reader_weight=0.5",), "set reader.temperature to game.solver.temperature"),
        (("game.reader.temperature=1",), "set reader.temperature to 0"),
        (("game.perception.combine=product",), "game.perception.combine"),
    ],
)
def test_settings_that_can_not_be_are_refused(
    settings: tuple[str, ...], message: str, models: Mapping[str, Path], data: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(models["qwen2.5"], data, *settings)


def test_rows_with_images(data: Path, tmp_path: Path) -> None:
    rows = load_prompts(str(data / "rows.jsonl")).rows
    assert [len(row.images) for row in rows] == [1, 1, 1, 2, 0, 1]
    assert [row.query for row in rows[:2]] == ["what?", "which  is it?"]
    assert rows[0].images == (data / "a.png",)
    assert rows[0].columns == {"answer": "A", "problem_type": "multiple choice"}
    assert rows[0].where.endswith("rows.jsonl, row 1")
    held = {"problem": "x", "images": [{"bytes": (data / "a.png").read_bytes().hex(), "path": None}]}
    (tmp_path / "bad.jsonl").write_text(json.dumps({**held, "images": [3]}) + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, row 1: its images must be paths, bytes"):
        load_prompts(str(tmp_path / "bad.jsonl"))


def test_parquet_as_the_hub_has_it(data: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    held = {"bytes": (data / "a.png").read_bytes(), "path": "a.png"}
    rows = [{"problem": "<image>what?", "answer": "A", "images": [held], "problem_type": "multiple choice"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (row,) = load_prompts(str(tmp_path / "rows.parquet")).rows
    (image,) = row.images
    assert isinstance(image, Spooled)
    assert image.read() == held["bytes"]


def test_a_broken_picture_is_named_and_left_out(
    models: Mapping[str, Path], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (data / "a.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(whole[: len(whole) // 2])  # its header is good
    rows = [{"problem": "x?", "answer": "A", "images": ["broken.png"]}, {"problem": "y?", "answer": "A"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(models["qwen2.5"], data, f"game.prompts={tmp_path / 'rows.jsonl'}", "game.n_queries=2", "steps=1")
    with caplog.at_level(logging.WARNING):
        train(settings, tmp_path / "run")
    assert "broken.png" in caplog.text
    assert RunFolder(tmp_path / "run").read_metrics()[1]["data/unreadable_pictures"] == 1
