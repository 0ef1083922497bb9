"""Loss and gradient of supervised fine-tuning: by hand, against transformers' labels and TRL, however it is packed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparring.batching import pack
from sparring.dealing import IDLE
from sparring.learner import Update
from sparring.lm.load import load_model, load_tokenizer, open_lm
from sparring.lm.lora import LoraSettings, add_lora
from sparring.rendering import Renderer
from sparring.sft.learner import SupervisedLearner, taught
from sparring.sft.spans import Lesson, Speller
from tiny_models import save_tiny_llama, save_tiny_qwen3

ROWS = (
    ("Which planet is the largest?", "Jupiter."),
    ("Name a planet.", "The quick brown fox jumps over the lazy dog. 0 1 2 3 4"),
    ("Which planet is the largest?", "The lazy dog."),
    ("9 8 7", "6 5"),
)


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


TALKS = [talk(ROWS[0], ROWS[1], ROWS[3]), *(talk(row) for row in ROWS), talk(ROWS[2], ROWS[0])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def lessons_of(folder: Path, talks: Sequence[Any] = TALKS) -> list[Lesson]:
    tokenizer = load_tokenizer(folder)
    speller = Speller(Renderer(tokenizer), (tokenizer.eos_token_id,))
    return [lesson for messages in talks for lesson in speller.lessons(messages)]


def learner_of(model: PreTrainedModel, *, budget: int = 4096, path: Any = "auto") -> SupervisedLearner:
    """Plain descent at rate 1, so that a step shows the gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = Update(max_grad_norm=None, token_budget=budget, entropy=False)
    policy = open_lm(model, torch.float32, trainable=True, path=path)
    return SupervisedLearner(model, policy, None, torch.optim.SGD(trained, lr=1.0), settings)


def gradient(model: PreTrainedModel, lessons: Sequence[Lesson], **how: Any) -> tuple[float, Tensor]:
    """Loss and gradient of one update."""
    learner = learner_of(model, **how)
    before = torch.cat([p.detach().flatten().clone() for p in learner.parameters])
    loss = learner.teach(lessons, 1.0)["loss"]
    return loss, before - torch.cat([p.detach().flatten() for p in learner.parameters])


def labelled(model: PreTrainedModel, lessons: Sequence[Lesson]) -> Tensor:
    """transformers' own loss on a padded batch: labels -100 where nothing is learned, mean over the rest."""
    longest = max(lesson.length for lesson in lessons)
    ids, labels, mask = [], [], []
    for lesson in lessons:
        row = [*lesson.prompt_ids, *lesson.completion_ids]
        learned = [False] * len(lesson.prompt_ids) + lesson.trained.tolist()
        fill = longest - len(row)
        ids.append(row + [0] * fill)
        labels.append([t if on else -100 for t, on in zip(row, learned, strict=True)] + [-100] * fill)
        mask.append([1] * len(row) + [0] * fill)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return model(**{name: torch.tensor(value) for name, value in batch.items()}).loss


@pytest.mark.parametrize("save", [save_tiny_llama, save_tiny_qwen3])
@pytest.mark.parametrize("path", ["auto", "generic"])
def test_loss_and_gradient_are_transformers(path: str, save: Any, tmp_path: Path) -> None:
    save(tmp_path)
    lessons = lessons_of(tmp_path)
    assert any(not lesson.trained.all() for lesson in lessons)
    oracle = load_model(tmp_path)
    expected = labelled(oracle, lessons)
    expected.backward()
    wanted = torch.cat([p.grad.flatten() for p in oracle.parameters() if p.grad is not None])
    loss, found = gradient(load_model(tmp_path), lessons, path=path)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert wanted.abs().max() > 0.01


def test_the_loss_by_hand(folder: Path) -> None:
    """Minus the mean log-probability of the learned tokens, each read off one plain forward pass a row."""
    model, lessons = load_model(folder), lessons_of(folder)
    logs: list[float] = []
    for lesson in lessons:
        ids = torch.tensor([[*lesson.prompt_ids, *lesson.completion_ids]])
        with torch.no_grad():
            logp_TV = model(input_ids=ids).logits[0].log_softmax(-1)
        for at in np.flatnonzero(lesson.trained) + len(lesson.prompt_ids):
            logs.append(float(logp_TV[at - 1, ids[0, at]]))
    assert learner_of(model).nll(lessons) == pytest.approx(-sum(logs) / len(logs), abs=1e-6)


@pytest.mark.parametrize("path", ["auto", "generic"])
@pytest.mark.parametrize("budget", [1, 60, 200])
def test_however_a_batch_is_packed_its_gradient_is_the_same(folder: Path, budget: int, path: str) -> None:
    lessons = lessons_of(folder)
    whole, cut = ({"budget": tokens, "path": path} for tokens in (4096, budget))
    policy = open_lm(load_model(folder), torch.float32, trainable=True, path=path)  # pyright: ignore[reportArgumentType]
    passes = [len(pack(taught(lessons), b, shared_prompts=policy.shares_prompts)) for b in (4096, budget)]
    assert passes[0] < passes[1]
    loss, wanted = gradient(load_model(folder), lessons, **whole)
    again, found = gradient(load_model(folder), lessons, **cut)
    assert again == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_the_mean_is_over_tokens_not_rows(folder: Path) -> None:
    lessons = lessons_of(folder, [talk(ROWS[1]), talk(ROWS[3])])
    learner = learner_of(load_model(folder))
    each = [learner.nll([lesson]) for lesson in lessons]
    counts = [int(lesson.trained.sum()) for lesson in lessons]
    assert counts[0] > 2 * counts[1]
    assert learner.nll(lessons) == pytest.approx(np.average(each, weights=counts), abs=1e-6)


def test_lora_learns_by_the_same_loss(folder: Path) -> None:
    pytest.importorskip("peft")
    model, lessons = load_model(folder), lessons_of(folder)
    add_lora(model, LoraSettings(4, 4.0), seed=0)
    learner = learner_of(model)
    before = learner.nll(lessons)
    assert before == pytest.approx(labelled(load_model(folder), lessons).item(), abs=1e-5)
    learner.optimizer = torch.optim.AdamW(learner.parameters, lr=1e-2)
    for _ in range(10):
        learner.teach(lessons, 1e-2)
    assert learner.nll(lessons) < before - 0.1


def test_an_idle_rank_s_pass_weighs_nothing(folder: Path) -> None:
    learner = learner_of(load_model(folder))
    (batch,) = learner.pack([IDLE])
    assert learner._nll(batch).item() == 0


def test_trl_computes_the_same_loss(folder: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is the oracle here: pip install 'sparring[oracle]'")
    datasets = pytest.importorskip("datasets")
    talks = [talk(row) for row in ROWS]
    rows = [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in talks]
    model = load_model(folder)
    trainer = trl.SFTTrainer(
        model=model,
        processing_class=load_tokenizer(folder),
        train_dataset=datasets.Dataset.from_list(json.loads(json.dumps(rows))),
        args=trl.SFTConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=len(rows), completion_only_loss=True, bf16=False,
            gradient_checkpointing=False, use_cpu=True, report_to=[], disable_tqdm=True, max_length=None,
        ),
    )  # fmt: skip
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(model, batch)
    lessons = lessons_of(folder, talks)
    assert int((batch["labels"] != -100).sum()) == sum(int(lesson.trained.sum()) for lesson in lessons)
    assert learner_of(load_model(folder)).nll(lessons) == pytest.approx(loss.item(), abs=1e-5)
