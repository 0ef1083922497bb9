"""Vision-SR1: a vision-language model that rewards its own perception, arXiv 2508.19652."""

from __future__ import annotations

from sparring.recipes.common import pick
from sparring.settings import (
    CheckpointConfig,
    EvaluationConfig,
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


def vision_sr1(preset: str = "pictures") -> RunConfig:
    """Vision-SR1: look, describe and answer; then answer again from the description alone.

    Presets:
        pictures: the tiny model that is shipped, on drawn pictures of coloured shapes; minutes on two cores.
        pictures-answer-only: the same without the second pass.
        paper: Qwen2.5-VL-3B on Vision-SR1-47K (the paper's start has had a cold start: `sparring sft`, then --init);
            n = 8, 512 questions a step in minibatches of 128, lr 1e-6, clip 0.2 / 0.3, k3 at 0.01, token means, one
            epoch (92 steps), the vision tower trained.
        paper-lora: the same with an adapter of rank 64 on the language part, lr 1e-5.
        paper-answer-only: paper without the second pass, the paper's Vision-R1 line.
    """
    full = _paper()
    presets = {
        "pictures": _pictures(),
        "pictures-answer-only": _without_a_reader(_pictures()),
        "paper": full,
        "paper-lora": _with_adapter(full),
        "paper-answer-only": _without_a_reader(full),
    }
    return pick(presets, preset, "vision-sr1")


def _pictures() -> RunConfig:
    """Ours, for a tiny model and short runs: lr 3e-4, up in five steps and linearly down; dead groups left out."""
    return RunConfig(
        steps=60,
        model=ModelConfig(path="pictures", dtype="float32"),
        game=GameConfig(
            kind="vision",
            domain="pictures",
            prompts="pictures:train",
            n_queries=32,
            n_answers=8,
            solver=RoleConfig(max_new_tokens=32),
            reader=RoleConfig(max_new_tokens=32, temperature=0.0),
        ),
        learner=LearnerConfig(
            lr=3e-4,
            schedule="linear",
            adam_beta2=0.95,
            warmup_steps=5,
            beta=0.01,
            kl="k3",
            aggregation="dapo",
            max_grad_norm=1.0,
            skip_dead_groups=True,
        ),
        evaluation=EvaluationConfig(every=20, n=200, final_n=1000),
        checkpoint=CheckpointConfig(every=20, keep=2, turns_every=1),
    )


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
