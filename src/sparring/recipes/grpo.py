"""GRPO on a prompt set: the data-driven baseline of arXiv 2509.07414."""

from __future__ import annotations

from sparring.recipes.common import arena_run, on_one_card, paper_run, pick
from sparring.settings import RunConfig

ALPACA = "tatsu-lab/alpaca"


def grpo(preset: str = "arena") -> RunConfig:
    """GRPO: the data asks, the model answers, answers to one prompt are compared with each other.

    Presets:
        arena: on the arena's easy queries, the same mix of levels that the base was pretrained on.
        paper: the paper's models, N = 8, beta = 0.05, lr 1e-6, Alpaca's instructions (game.prompts takes a file or
            another hub id); ours G = 8 (TRL's default), k3, completions of 256 tokens, std scaling off as in LSP.
        paper-lora: the same with an adapter, for one card of 24 GB.
    """
    presets = {
        "arena": arena_run(steps=300, kind="grpo", prompts="arena:easy"),
        "paper": paper_run(1e-6, kind="grpo", prompts=ALPACA),
        "paper-lora": on_one_card(paper_run(1e-6, kind="grpo", prompts=ALPACA)),
    }
    return pick(presets, preset, "grpo")
