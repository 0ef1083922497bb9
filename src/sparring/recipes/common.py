"""What the recipes share: the arena's optimiser settings and the paper's."""

from __future__ import annotations

from typing import Any

from sparring.config import (
    CheckpointConfig,
    ConfigError,
    EvaluationConfig,
    GameConfig,
    LearnerConfig,
    ModelConfig,
    RoleConfig,
    RunConfig,
)

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
    """The paper's settings: Llama-3.2-3B-Instruct, N 8, beta .05; what it leaves open is marked in the recipes."""
    return RunConfig(
        steps=500,
        # The model's chat template writes today's date into every prompt: fixed, so that a run can be repeated.
        model=ModelConfig(path="meta-llama/Llama-3.2-3B-Instruct", template_kwargs={"date_string": "26 Jul 2024"}),
        game=GameConfig(
            domain="text",
            n_queries=8,
            n_answers=8,
            challenger=RoleConfig(max_new_tokens=256),
            solver=RoleConfig(max_new_tokens=256),
            grader=RoleConfig(max_new_tokens=256, temperature=0.0),
            **game,
        ),
        learner=LearnerConfig(lr=lr, beta=0.05, kl="k3", aggregation="sum"),
        evaluation=EvaluationConfig(temperature=0.01),
    )
