"""From a configuration to its objects, and what is refused on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import small_run
from sparring.arena.tokenizer import build_tokenizer
from sparring.build import build_game, build_learner, learning_rate
from sparring.lm.load import save_model
from sparring.models import build_models, locate, needs_reference
from sparring.run import train
from sparring.settings import LearnerConfig


@pytest.mark.parametrize(
    ("name", "overrides", "named"),
    [
        ("lsp", ("game.solver.max_new_tokens=256",), r"game\.solver\.max_new_tokens \(256\).*context of 128"),
        ("lsp", ("game.challenger.max_new_tokens=100",), r"game\.challenger\.max_new_tokens \(100\)"),
        ("lsp", ("game.grader.max_new_tokens=100",), r"game\.grader\.max_new_tokens \(100\)"),
        (
            "lsp",
            ("game.challenger.temperature=0.5",),
            r"game\.challenger\.temperature is 0\.5.*equal",
        ),
        ("lsp", ("model.path=/no/such/model",), "/no/such/model: no such folder"),
        ("lsp", ("game.domain=text",), r"game\.reward"),
        ("lsp", ("game.reward.function=/no/such.py:reward",), "no file /no/such.py"),
        ("lsp", ("game.challenge.tasks=/no/tasks.yaml",), r"game\.challenge\.tasks: can't read"),
        ("lsp", ("model.chat_template=/no/template",), r"model\.chat_template"),
        ("grpo", ("game.prompts=null",), r"game\.prompts must name"),
        ("grpo", ("game.prompts=/no/prompts.jsonl",), "no prompt file /no/prompts.jsonl"),
        ("grpo", ("game.prompts=arena:medium",), "arena:easy and arena:hard"),
        ("grpo", ("game.kind=custom",), r"game\.custom must name"),
        (
            "grpo",
            ("game.kind=custom", "game.custom=builtins:dict"),
            r"game\.custom: .* dict, not a",
        ),
        (
            "grpo",
            ("game.kind=custom", "game.custom=builtins:nothing"),
            "builtins has no 'nothing'",
        ),
        ("grpo", ("trackers=[tensorbord]",), "did you mean 'tensorboard'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_leaves_no_run(
    name: str, overrides: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    if overrides[-1] == "game.custom=builtins:dict":
        custom = tmp_path / "custom.py"
        custom.write_text("def build(parts):\n    return {}\n")
        overrides = (overrides[0], f"game.custom={custom}:build")
    with pytest.raises(ValueError, match=named):
        train(small_run(name, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_not_used_is_not_checked() -> None:
    models = build_models(small_run("lsp-zero", "game.grader.max_new_tokens=500", "learner.beta=0"))
    assert models.reference is None
    build_models(small_run("grpo", "game.challenger.max_new_tokens=500", "game.challenger.temperature=0.1"))


def test_an_unfinished_run_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="has not finished"):
        locate(str(tmp_path))


def test_a_reference_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    small = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    save_model(LlamaForCausalLM(small), build_tokenizer(), tmp_path / "other")
    with pytest.raises(ValueError, match=r"model\.reference .* vocabulary of 97 tokens"):
        build_models(small_run("lsp", f"model.reference={tmp_path / 'other'}"))


def test_the_reference_is_frozen_and_the_masters_are_fp32(random_model: Path) -> None:
    config = small_run("lsp", f"model.path={random_model}", "model.dtype=bfloat16")
    models = build_models(config)
    learner = build_learner(models, config, build_game(config))
    assert {p.dtype for p in models.model.parameters()} == {torch.float32}
    reference: Any = models.reference
    assert not any(leaf.requires_grad for layer in reference.layers for leaf in (layer.qkv.weight, layer.down.weight))
    before = [layer.qkv.weight.clone() for layer in reference.layers]
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.add_(1)
    models.policy.refresh()
    reference.refresh()
    assert all(torch.equal(a, layer.qkv.weight) for a, layer in zip(before, reference.layers, strict=True))
    assert [p for group in learner.optimizer.param_groups for p in group["params"]] == learner.parameters
    assert len(learner.parameters) == len(list(models.model.parameters()))


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("grpo", ("learner.beta=0",), False),
        ("grpo", (), True),
        ("lsp-zero", ("learner.beta=0",), False),
        ("lsp", ("learner.beta=0", "game.quality.source=reference", "game.challenge.frozen_share=0"), True),
        ("lsp", ("learner.beta=0", "game.quality.source=program", "game.challenge.frozen_share=0"), False),
        ("lsp", ("learner.beta=0", "game.quality.source=program", "game.challenge.frozen_share=0.5"), True),
    ],
)
def test_the_reference_is_held_only_where_something_asks_it(
    name: str, overrides: tuple[str, ...], expected: bool
) -> None:
    assert needs_reference(small_run(name, *overrides)) is expected


def test_learning_rate_schedules() -> None:
    constant = learning_rate(LearnerConfig(lr=1.0, warmup_steps=2), 6)
    assert [constant(step) for step in range(1, 7)] == [0.5, 1, 1, 1, 1, 1]
    linear = learning_rate(LearnerConfig(lr=1.0, schedule="linear"), 4)
    assert [linear(step) for step in range(1, 5)] == [1, 0.75, 0.5, 0.25]
    cosine = learning_rate(LearnerConfig(lr=1.0, schedule="cosine", warmup_steps=1), 5)
    assert [round(cosine(step), 6) for step in range(1, 6)] == [1, 1, 0.853553, 0.5, 0.146447]


def test_a_challenger_prompt_without_room_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(f"- {{task: Skip, template: 'skip:{{}}{'a' * 100}'}}\n")
    config = small_run("lsp", f"game.challenge.tasks={tmp_path / 'tasks.yaml'}", "game.challenger.max_new_tokens=30")
    with pytest.raises(ValueError, match=r"'Skip' has \d+ tokens and game\.challenger\.max_new_tokens is 30.*of 128"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [("Answer the query.", "no placeholder {{ query }}"), ("{{ query", "no valid template"), ("{{ query }}", None)],
)
def test_a_prompt_file_needs_its_placeholders(tmp_path: Path, text: str, named: str | None) -> None:
    (tmp_path / "ask.txt").write_text(text)
    config = small_run("grpo", f"game.solver.prompt={tmp_path / 'ask.txt'}")
    if named is None:
        assert build_game(config).roles[0].prompt(query="sort:bead").messages[-1]["content"] == "sort:bead"
    else:
        with pytest.raises(ValueError, match=rf"game\.solver\.prompt.*{named}"):
            build_game(config)
