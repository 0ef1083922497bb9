"""Vision-SR1: a vision-language model that rewards its own perception, arXiv 2508.19652."""

from __future__ import annotations

from sparring.recipes.common import pick
from sparring.settings import (
    CheckpointConfig,
    GameConfig,
    LearnerConfig,
    LoraConfig,
    ModelConfig,
    PerceptionConfig,
    RewardConfig,
    RoleConfig,
    RunConfig,
    VisionConfig,
)

START = "Qwen/Qwen2.5-VL-3B-Instruct"
DATA = "LMMs-Lab-Turtle/Vision-SR1-47K"


def vision_sr1(preset: str = "paper") -> RunConfig:
    """Vision-SR1: look, describe and answer; then answer again from the description alone.

    Presets:
        paper: Qwen2.5-VL-3B on Vision-SR1-47K (the paper's start has had a cold start: `sparring sft`, then --init);
            n = 8, 512 questions a step in minibatches of 128, lr 1e-6, clip 0.2 / 0.3, k3 at 0.01, token means, one
            epoch (92 steps), the vision tower trained.
        paper-lora: the same with an adapter of rank 64 on the language part, lr 1e-5.
        answer-only: paper without the second pass, the paper's Vision-R1 line.
    """
    full = _paper()
    presets = {
        "paper": full,
        "paper-lora": _with_adapter(full),
        "answer-only": _without_a_reader(full),
    }
    return pick(presets, preset, "vision-sr1")


def _paper() -> RunConfig:
    """The paper's settings. Ours: no dual clip (the sampler's weights are the trainer's), 2048 tokens of response."""
    return RunConfig(
        steps=92,
        model=ModelConfig(
            path=START,
            gradient_checkpointing=True,
            vision=VisionConfig(min_pixels=262_144, max_pixels=4_194_304, train_tower=True, train_projector=True),
        ),
        game=GameConfig(
            kind="vision",
            domain="text",
            prompts=DATA,
            n_queries=512,
            n_answers=8,
            solver=RoleConfig(max_new_tokens=2048, top_p=0.99),
            reader=RoleConfig(max_new_tokens=2048, temperature=0.0),
            reward=RewardConfig(function="sparring.rewards.verifiable:by_type"),
        ),
        learner=LearnerConfig(
            lr=1e-6,
            weight_decay=0.01,
            beta=0.01,
            kl="k3",
            aggregation="dapo",
            minibatches=4,
            clip_low=0.2,
            clip_high=0.3,
            max_grad_norm=1.0,
            token_budget=32_768,
        ),
        checkpoint=CheckpointConfig(every=10),
    )


def _with_adapter(run: RunConfig) -> RunConfig:
    frozen = run.model.vision.model_copy(update={"train_tower": False, "train_projector": False})
    model = run.model.model_copy(update={"tuning": "lora", "lora": LoraConfig(rank=64, alpha=64), "vision": frozen})
    return run.model_copy(update={"model": model, "learner": run.learner.model_copy(update={"lr": 1e-5})})


def _without_a_reader(run: RunConfig) -> RunConfig:
    blind = PerceptionConfig(visual_weight=0.0)
    return run.model_copy(update={"game": run.game.model_copy(update={"perception": blind})})
