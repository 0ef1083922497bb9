"""GRPO on a prompt set: the data-driven baseline of arXiv 2509.07414."""

from __future__ import annotations

from sparring.config import RunConfig
from sparring.recipes.common import arena_run, paper_run, pick


def grpo(preset: str = "arena") -> RunConfig:
    """GRPO: the data asks, the model answers, answers to one prompt are compared with each other.

    Presets:
        arena: on the arena's easy queries, the same mix of levels that the base was pretrained on.
        paper: from the paper N = 8, beta = 0.05, lr 1e-6; ours G = 8 (TRL's default), k3, completions of 256 tokens.
            Give the prompts: game.prompts=alpaca.jsonl.
    """
    presets = {
        "arena": arena_run(steps=300, kind="grpo", prompts="arena:easy"),
        "paper": paper_run(1e-6, kind="grpo"),
    }
    return pick(presets, preset, "grpo")
