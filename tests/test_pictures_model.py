"""The picture world's model: training, generation, and what the shipped weights can do."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch.nn.functional import log_softmax
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from sparring.pictures import model_path
from sparring.pictures.corpus import CAREFUL, SLOPPY
from sparring.pictures.domain import questions
from sparring.pictures.measure import Speaker, load, measure, summary
from sparring.pictures.network import build_image_processor, build_model, grids
from sparring.pictures.pretrain import REPLY_WEIGHT, Encoder, batches, sloppy_optimizers, train, weighted_loss
from sparring.pictures.response import render_reply, render_response
from sparring.pictures.tokenizer import NEVER_WRITTEN, VOCABULARY, build_tokenizer
from sparring.pictures.world import TEST_SEED

RECORD: dict[str, Any] = json.loads((model_path() / "pictures.json").read_text())
TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load(model_path())


def _agrees(right: int, n: int, recorded: float) -> bool:
    """Whether a count fits a recorded share; one false alarm in 10,000 tests."""
    share = min(max(recorded, 0.5 / n), 1 - 0.5 / n)
    return bool(binomtest(right, n, share).pvalue > 1e-4)


def test_batches_weigh_responses_alone_and_replies_most() -> None:
    looks, readings = next(batches(Encoder(TOKENIZER), CAREFUL, np.random.SeedSequence(1)))
    for batch, learnt in ((looks, {0.0, 1.0, REPLY_WEIGHT}), (readings, {0.0, REPLY_WEIGHT})):
        assert set(batch.weight_BT.unique().tolist()) == learnt
        for ids_T, weight_T in zip(batch.ids_BT.tolist(), batch.weight_BT.tolist(), strict=True):
            response = [token for token, weight in zip(ids_T, weight_T, strict=True) if weight]
            prompt = TOKENIZER.decode(ids_T).partition("assistant")[0]
            text = TOKENIZER.decode(response)
            assert text.endswith("}<|im_end|>")
            assert ("<description>" in text) is (batch is looks)
            assert ("<|image_pad|>" * 9 in prompt) is (batch is looks)
            heavy = TOKENIZER.decode([t for t, w in zip(ids_T, weight_T, strict=True) if w == REPLY_WEIGHT])
            assert heavy.startswith("<think>")
    assert looks.pixel_values is not None
    assert readings.pixel_values is None


def test_the_loss_is_what_transformers_own_positions_and_mask_give() -> None:
    model = build_model(TOKENIZER, seed=3)
    looks, readings = next(batches(Encoder(TOKENIZER), SLOPPY, np.random.SeedSequence(2)))
    for batch in (looks, readings):
        inputs: dict[str, Any] = {
            "input_ids": batch.ids_BT,
            "attention_mask": (batch.ids_BT != TOKENIZER.pad_token_id).int(),
        }
        if batch.pixel_values is not None:
            image_BT = (batch.ids_BT == model.config.image_token_id).int()
            inputs |= {"pixel_values": batch.pixel_values, "mm_token_type_ids": image_BT}
            inputs["image_grid_thw"] = grids(len(batch.ids_BT))
        with torch.no_grad():
            logprobs_BTV = log_softmax(model(**inputs).logits[:, :-1], -1)
            taken_BT = logprobs_BTV.gather(2, batch.ids_BT[:, 1:, None])[..., 0]
            weight_BT = batch.weight_BT[:, 1:]
            expected = -(taken_BT * weight_BT).sum() / weight_BT.sum()
            torch.testing.assert_close(weighted_loss(model, batch), expected)


def test_a_few_steps_lower_the_loss() -> None:
    model, lines = build_model(TOKENIZER, seed=1), list[str]()
    fixed = next(batches(Encoder(TOKENIZER), SLOPPY, np.random.SeedSequence(4)))
    before = [float(weighted_loss(model, batch).detach()) for batch in fixed]
    train(model, iter([fixed] * 6), sloppy_optimizers(model), 6, lines.append)
    after = [float(weighted_loss(model, batch).detach()) for batch in fixed]
    assert after[0] < before[0]
    assert after[1] < before[1]
    assert lines[-1].startswith("step 6/6  perceiver ")


def test_an_untrained_model_is_measured_and_never_writes_images() -> None:
    model = build_model(TOKENIZER, seed=0)
    figures = measure(model, TOKENIZER, build_image_processor(), n=6)
    assert figures["sampled"]["accuracy"] == figures["sampled"]["in_form"] == 0.0
    speaker = Speaker(model, TOKENIZER, build_image_processor(), sampling_seed=3)
    item = questions("held-out", 1, 1)[0]
    ids = TOKENIZER.encode(" ".join(speaker([item.question] * 8, [item.picture] * 8)))
    assert not set(ids) & {VOCABULARY.index(token) for token in NEVER_WRITTEN}


def test_figures_by_hand() -> None:
    """Four responses: sufficient and right, insufficient and right, sufficient and wrong, no form at all."""
    items = [item for item in questions("held-out", 7, 60) if item.kind in ("colour", "shape")][:4]
    full = [str(item.scene) for item in items]
    texts = [
        render_response(full[0], "so", items[0].answer),
        render_response("nothing", "usually", items[1].answer),
        render_response(full[2], "so", "wrong"),
        r"\boxed{wrong}",
    ]
    replies = [render_reply("", items[0].answer), render_reply("", "wrong"), "", render_reply("", items[3].answer)]
    found = summary(items, texts, replies)
    assert (found["accuracy"], found["lsr"], found["sufficient"]) == (0.5, 0.25, 0.5)
    assert (found["in_form"], found["usual"]) == (0.75, 0.25)
    assert found["reader"] == {"all": 0.25, "sufficient": 0.5, "insufficient": 0.0}
    assert found["description"]["asked"] == {"precision": 1.0, "recall": 0.5}
    assert sum(part["n"] for part in found["by_kind"].values()) == 4


def test_files_are_those_recorded_and_small() -> None:
    weights = (model_path() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == RECORD["sha256"]
    assert len(weights) <= 3_500_000
    assert sum(file.stat().st_size for file in model_path().iterdir()) <= 4_000_000
    assert str(RECORD["parameters"])[:3] in (model_path() / "README.md").read_text()


def test_transformers_loads_every_part(shipped: Any) -> None:
    model, tokenizer, processor = shipped
    automatic = AutoModelForImageTextToText.from_pretrained(model_path())
    assert type(automatic) is type(model)
    assert automatic.dtype == torch.float32
    assert automatic.num_parameters() == RECORD["parameters"] == model.num_parameters()
    assert automatic.generation_config.eos_token_id == tokenizer.eos_token_id
    assert type(AutoImageProcessor.from_pretrained(model_path(), backend="pil")) is type(processor)
    assert processor.to_dict() == build_image_processor().to_dict()
    loaded = AutoTokenizer.from_pretrained(model_path())
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded.chat_template == TOKENIZER.chat_template
    text = render_response("top-left:red-circle", "top-left", "1")
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert automatic.config.image_token_id == loaded.convert_tokens_to_ids("<|image_pad|>")


def test_it_is_as_good_as_recorded(shipped: Any) -> None:
    n = 120
    recorded = next(test for test in RECORD["tests"] if test["seed"] == TEST_SEED)["greedy"]
    items = questions("held-out", TEST_SEED, n)
    texts = Speaker(*shipped)([item.question for item in items], [item.picture for item in items])
    found = summary(items, texts, [""] * n)
    for name in ("accuracy", "lsr", "sufficient"):
        assert _agrees(round(found[name] * n), n, recorded[name])
    assert found["in_form"] > 0.97


def test_it_leaves_the_headroom_that_reinforcement_needs() -> None:
    assert RECORD["before_cold_start"]["accuracy"] > 0.97
    assert RECORD["before_cold_start"]["sufficient"] > 0.97
    for test in RECORD["tests"]:
        assert 0.70 < test["greedy"]["accuracy"] < 0.90
        assert 0.55 < test["greedy"]["sufficient"] < 0.78
        assert test["greedy"]["lsr"] > 0.10
        assert test["greedy"]["reader"]["sufficient"] > 0.9
        assert test["sampled"]["in_form"] > 0.97


@pytest.mark.slow
def test_pretraining_repeats_itself(tmp_path: Path) -> None:
    records = []
    for name in ("a", "b"):
        command = [sys.executable, "-m", "sparring.pictures.pretrain", "--out", str(tmp_path / name), "--seed", "7"]
        subprocess.run([*command, "--steps", "3", "2", "--tests", "8"], check=True, capture_output=True)
        records.append(json.loads((tmp_path / name / "pictures.json").read_text()))
    assert records[0]["sha256"] == records[1]["sha256"]
    assert (tmp_path / "a" / "README.md").read_text().count("| greedy, seed ") == 2
