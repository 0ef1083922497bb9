"""A vision model in a run: built by its settings, saved, restored, exported, and sharded over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from ranks import on_ranks
from sparring.config import resolve
from sparring.lm.base import PromptGroup, SamplingParams
from sparring.lm.vision import VisionLM
from sparring.models import Models, build_models
from sparring.parallel.launch import connected
from sparring.parallel.ranks import ALONE, Ranks
from sparring.recipes import recipe
from sparring.roles import Role
from sparring.settings import RunConfig
from tiny_vision import picture, save_tiny_qwen3vl, save_tiny_qwen25vl

ROLE = Role("perceiver", "{{ query }}", SamplingParams(4))
SAVED = [save_tiny_qwen25vl, save_tiny_qwen3vl]


def settings(folder: Path, *more: str) -> RunConfig:
    given = (f"model.path={folder}", "model.dtype=float32", "model.device=cpu", "model.vision.max_pixels=1024")
    return resolve(recipe("grpo"), None, (*given, "game.solver.max_new_tokens=16", *more))


def seen(models: Models) -> PromptGroup:
    ids = models.renderer.encode(ROLE.prompt(query="What?", images=(picture(56, 56),)).messages)
    assert sum(token < 0 for token in ids) == 16, "max_pixels holds"
    return PromptGroup(ids, ((5, 6, 7), (8, 9)))


@pytest.mark.parametrize("save", SAVED)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_holds_a_vision_model(tmp_path: Path, save: Any, tuning: str) -> None:
    config = settings(
        save(tmp_path / "it"), f"model.tuning={tuning}", "model.vision.train_tower=false", "learner.beta=0.1"
    )
    models = build_models(config)
    assert isinstance(models.policy, VisionLM) and isinstance(models.reference, VisionLM)
    names = models.weights.parameters().keys()
    towers = [name for name in names if name.startswith("model.visual.")]
    assert bool(towers) is (tuning == "full") and all("merger" in name for name in towers)
    group = seen(models)
    before = models.policy.score([group], reference=models.reference)
    assert before.kl_S is not None and before.kl_S.abs().max() < 1e-6
    with torch.no_grad():
        for parameter in models.weights.parameters().values():
            parameter.add_(0.01)
    models.policy.refresh()
    moved = models.policy.score([group]).logprobs_S.detach()
    assert (moved - before.logprobs_S.detach()).abs().max() > 1e-4
    (tmp_path / "saved").mkdir()
    models.weights.save(tmp_path / "saved")
    models.weights.export(tmp_path / "saved", tmp_path / "out")
    again = build_models(settings(tmp_path / "out"), trainable=False)
    torch.testing.assert_close(again.policy.score([seen(again)]).logprobs_S, moved, atol=1e-4, rtol=0)
    assert dict(AutoImageProcessor.from_pretrained(tmp_path / "out").size)["longest_edge"] == 1024
    if tuning == "full" or config.export.adapter == "merged":
        AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        for parameter in models.weights.parameters().values():
            parameter.zero_()
    models.weights.restore(tmp_path / "saved")
    models.policy.refresh()
    torch.testing.assert_close(models.policy.score([group]).logprobs_S, moved, atol=1e-5, rtol=0, check_device=False)


def sharded(folders: list[Path], out: Path) -> list[np.ndarray]:
    found = []
    with connected() as ranks:
        ranks.prepare("cpu", 60)
        for index, folder in enumerate(folders):
            found.append(scored(folder, ranks, "parallel.strategy=shard"))
            models = build_models(settings(folder, "parallel.strategy=shard"), ranks=ranks)
            models.weights.save(out / str(index))
    return found


def scored(folder: Path, ranks: Ranks, *more: str) -> np.ndarray:
    models = build_models(settings(folder, *more), ranks=ranks)
    return models.policy.score([seen(models)]).logprobs_S.detach().numpy()


def test_a_vision_model_is_read_into_shards(tmp_path: Path) -> None:
    folders = [save(tmp_path / save.__name__) for save in SAVED]
    both = on_ranks(2, tmp_path, sharded, folders, tmp_path)
    for index, folder in enumerate(folders):
        want = scored(folder, ALONE)
        for got in (both[0][index], both[1][index], scored(tmp_path / str(index), ALONE)):
            np.testing.assert_allclose(got, want, atol=1e-5)
