"""LSP-Zero: Language Self-Play without the quality reward, arXiv 2509.07414."""

from __future__ import annotations

from sparring.recipes.common import arena_run, on_one_card, paper_run, pick
from sparring.settings import ChallengeConfig, RunConfig


def lsp_zero(preset: str = "arena") -> RunConfig:
    """LSP-Zero: zero-sum; the Challenger is paid -V and nothing else. It drifts into queries nobody can answer.

    Presets:
        arena: the paper's payoffs with the arena's optimiser; shows the collapse in about 50 steps.
        paper: the paper's models, N = 8, beta = 0.05, lr 3e-6; ours the rest, as in the lsp recipe.
        paper-lora: the same with an adapter, for one card of 24 GB.
    """
    presets = {
        "arena": arena_run(steps=300, kind="lsp_zero", challenge=ChallengeConfig(invalid_payoff=0.0)),
        "paper": paper_run(3e-6, kind="lsp_zero"),
        "paper-lora": on_one_card(paper_run(3e-6, kind="lsp_zero")),
    }
    return pick(presets, preset, "lsp-zero")
