"""What the recipes share: the arena's optimiser settings and the paper's."""

from __future__ import annotations

from typing import Any

from sparring.config import ConfigError
from sparring.settings import (
    CheckpointConfig,
    EvaluationConfig,
    GameConfig,
    LearnerConfig,
    ModelConfig,
    RewardConfig,
    RoleConfig,
    RunConfig,
)

# Llama 3.2's chat template writes today's date into every prompt: fixed, so that a run can be repeated.
DATE = {"date_string": "26 Jul 2024"}
ARENA_ROLES = {
    "challenger": RoleConfig(max_new_tokens=40),
    "solver": RoleConfig(max_new_tokens=64),
    "grader": RoleConfig(max_new_tokens=16, temperature=0.0),
}


def pick(presets: dict[str, RunConfig], name: str, recipe: str) -> RunConfig:
    """A preset by name."""
    if name not in presets:
        raise ConfigError(f"recipe {recipe!r} has no preset {name!r}; it has: {', '.join(presets)}")
    return presets[name].model_copy(update={"recipe": recipe, "preset": name})


def arena_run(steps: int, **game: Any) -> RunConfig:
    """A run on the shipped arena, every recipe with the same optimiser, so that only the game differs between them.

    Chosen for a tiny model and short runs, not the paper's: N 40, G 8, AdamW 3e-4, standardised advantages, token
    means, exact KL .02, turns without advantage left out, α .3. An invalid query is paid 0, as under the paper's game:
    the verifier finds every answer to it wrong, so V = 0.
    """
    return RunConfig(
        steps=steps,
        model=ModelConfig(path="arena", dtype="float32"),
        game=GameConfig(
            domain="arena",
            n_queries=40,
            n_answers=8,
            advantage="standardised",
            **{"alpha": 0.3, **ARENA_ROLES, **game},
        ),
        learner=LearnerConfig(
            lr=3e-4,
            adam_beta2=0.95,
            warmup_steps=5,
            beta=0.02,
            kl="exact",
            aggregation="dapo",
            skip_dead_groups=True,
        ),
        evaluation=EvaluationConfig(every=10),
        checkpoint=CheckpointConfig(every=25, keep=2, turns_every=1),
    )


def paper_run(lr: float, **game: Any) -> RunConfig:
    """The paper's models and settings: Llama-3.2-3B-Instruct, Skywork's reward model, N 8, beta .05.

    What the paper leaves open is ours, and marked in the recipes: G 8 and completions of 256 (TRL's defaults), k3 as
    the KL's estimator, a constant learning rate, greedy grading, R and R_Q in their own units, 500 steps. Its batch of
    4 and gradient accumulation of 2 make one update of N = 8: here a step is one update, however little fits into
    memory at once.
    """
    return RunConfig(
        steps=500,
        model=ModelConfig(
            path="meta-llama/Llama-3.2-3B-Instruct",
            template_kwargs=DATE,
            gradient_checkpointing=True,
            cache_tokens=65_536,
        ),
        game=GameConfig(
            domain="text",
            n_queries=8,
            n_answers=8,
            reward=RewardConfig(model="Skywork/Skywork-Reward-V2-Llama-3.2-3B", template_kwargs=DATE),
            challenger=RoleConfig(max_new_tokens=256),
            solver=RoleConfig(max_new_tokens=256),
            grader=RoleConfig(max_new_tokens=256, temperature=0.0),
            **game,
        ),
        learner=LearnerConfig(lr=lr, beta=0.05, kl="k3", aggregation="sum", token_budget=8_192),
        evaluation=EvaluationConfig(temperature=0.01),
    )


def on_one_card(run: RunConfig) -> RunConfig:
    """The same on one card of 24 GB: an adapter in place of every weight, at ten times the learning rate.

    Ours: rank 32 on every linear layer, as in "LoRA Without Regret" (Thinking Machines, 2025), which found full
    fine-tuning's results there at ten times its rate.
    """
    return run.model_copy(
        update={
            "model": run.model.model_copy(update={"tuning": "lora", "cache_tokens": 32_768}),
            "game": run.game.model_copy(
                update={"reward": run.game.reward.model_copy(update={"token_budget": 16_384})},
            ),
            "learner": run.learner.model_copy(update={"lr": 10 * run.learner.lr}),
        }
    )
