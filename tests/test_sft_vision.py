"""Rows with images, as the cold start of Vision-SR1 has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparring.images import Picture
from sparring.learner import Update
from sparring.lm.load import open_lm
from sparring.rendering import Renderer
from sparring.settings.sft import SFTDataConfig
from sparring.sft.formats import read_conversation
from sparring.sft.learner import SupervisedLearner
from sparring.sft.spans import Lesson, Speller
from tiny_vision import picture, tiny_qwen3vl, tiny_qwen25vl, tiny_store, vision_tokenizer

SEEN = "<description>A planet.</description><think>It is big.</think>\\boxed{Jupiter}"


def lessons_of(speller: Speller, *records: dict[str, Any]) -> list[Lesson]:
    settings = SFTDataConfig()
    return [
        lesson
        for record in records
        for lesson in speller.lessons(read_conversation(record, settings, lambda image: image))
    ]


@pytest.fixture
def speller() -> Speller:
    tokenizer = vision_tokenizer()
    return Speller(Renderer(tokenizer, images=tiny_store()), (tokenizer.eos_token_id,))


def record(image: Picture, answer: str = SEEN) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": "<image>Which planet?"}, {"from": "gpt", "value": answer}],
        "images": [image],
    }


def test_an_image_is_its_handle_once_a_token_and_only_the_answer_is_learned(speller: Speller) -> None:
    image = picture(32, 16)
    (lesson,) = lessons_of(speller, record(image))
    shown = [token for token in lesson.prompt_ids if token < 0]
    assert shown == [image.handle] * 8  # 8 x 8 pixels a token
    assert min(lesson.completion_ids) >= 0 and lesson.trained.all()
    written = speller.renderer.tokenizer.decode(list(lesson.completion_ids))
    assert written == f"{SEEN}<|im_end|>"
    assert lesson.length == len(lesson.prompt_ids) + len(lesson.completion_ids) > 8


def test_an_image_shown_later_begins_a_row_of_its_own(speller: Speller) -> None:
    first, second = picture(seed=1), picture(seed=2)
    asked = record(first)
    asked["conversations"] += [
        {"from": "human", "value": "And why?"}, {"from": "gpt", "value": "It is big."},
        {"from": "human", "value": "<image>And this?"}, {"from": "gpt", "value": "The fox."},
    ]  # fmt: skip
    asked["conversations"][1]["value"] = "Jupiter."
    asked["images"] = [first, second]
    one, other = lessons_of(speller, asked)
    assert not one.trained.all() and other.trained.all()
    assert {token for token in other.prompt_ids if token < 0} == {first.handle, second.handle}
    assert min(one.completion_ids) >= 0


def pixels_of(speller: Speller, lessons: Sequence[Lesson]) -> dict[str, torch.Tensor]:
    store = speller.renderer.images
    assert store is not None
    handles = [next(token for token in lesson.prompt_ids if token < 0) for lesson in lessons]
    patches = [store.patches(handle) for handle in handles]
    return {
        "pixel_values": torch.cat([patch.pixel_values for patch in patches]),
        "image_grid_thw": torch.tensor([patch.grid_thw for patch in patches]),
    }


@pytest.mark.parametrize("make", [tiny_qwen25vl, tiny_qwen3vl])
def test_the_likelihood_is_transformers_and_a_frozen_tower_stays(make: Any, speller: Speller) -> None:
    lessons = lessons_of(speller, record(picture(16, 16, 1), "Jupiter."), record(picture(32, 16, 2), "The lazy dog."))
    model = make()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("visual" not in name.split("."))
    store = speller.renderer.images
    policy = open_lm(model, torch.float32, trainable=True, images=store)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    learner = SupervisedLearner(model, policy, None, optimizer, Update(entropy=False))
    logs: list[float] = []
    for lesson in lessons:
        row = [*lesson.prompt_ids, *lesson.completion_ids]
        ids = torch.tensor([[model.config.image_token_id if token < 0 else token for token in row]])
        kinds = (ids == model.config.image_token_id).int()
        with torch.no_grad():
            out = model(input_ids=ids, mm_token_type_ids=kinds, **pixels_of(speller, [lesson]))
        logp_TV = out.logits[0].log_softmax(-1)
        logs += [float(logp_TV[at - 1, row[at]]) for at in range(len(lesson.prompt_ids), len(row))]
    before = learner.nll(lessons)
    assert before == pytest.approx(-np.mean(logs), abs=1e-5)
    tower = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    for _ in range(3):
        learner.teach(lessons, 1e-3)
    assert learner.nll(lessons) < before - 0.1
    assert tower and all(torch.equal(model.get_parameter(name), value) for name, value in tower.items())


def test_a_file_s_relative_paths_count_from_its_folder(speller: Speller, tmp_path: Path) -> None:
    picture(16, 16, 3).rgb().save(tmp_path / "planet.png")
    asked = {**record(picture()), "images": ["planet.png"]}
    messages = read_conversation(asked, SFTDataConfig(), Picture.open, tmp_path)
    (lesson,) = speller.lessons(messages)
    assert picture(16, 16, 3).handle in lesson.prompt_ids
