"""Language Self-Play, arXiv 2509.07414."""

from __future__ import annotations

from sparring.recipes.common import arena_run, on_one_card, paper_run, pick
from sparring.settings import ChallengeConfig, QualityConfig, RunConfig


def lsp(preset: str = "arena") -> RunConfig:
    """LSP: the Challenger asks, the Solver answers, the frozen start grades the exchange.

    Presets:
        arena: the demo's. Departs from the paper where longer runs on the arena went wrong (docs/experiments.md):
            the Challenger is paid for queries near half solved instead of -V, and half of the queries come from the
            frozen Challenger, so that easy queries stay in practice. R_Q comes from the rubric by program: the
            frozen start, asked for it, gives the same total in 97 % of exchanges (arena/model/arena.json), and asking
            it takes about a quarter of a step. game.quality.source=reference asks it.
        arena-paper: the paper's payoffs (-V + V_Q, every query by the trained Challenger, R_Q from the frozen start
            itself) with the arena's optimiser.
        paper: the paper's game and settings. From the paper: Llama-3.2-3B-Instruct, Skywork-Reward-V2-Llama-3.2-3B,
            N = 8, beta = 0.05, lr 3e-6, payoffs, mean-centred advantages, no clipping, R_Q in points (0 to 7), no task
            (the model's own judgement; game.challenge.tasks takes a file). Ours, where it says nothing: G = 8,
            alpha = 1, k3 as the KL's estimator in the loss, completions of 256 tokens, constant learning rate, greedy
            grading, raw reward scores, the worst valid query's payoff for an invalid one, 500 steps.
            From the GRPO model, as in the paper's second experiment: --init runs/grpo.
        paper-lora: the same with an adapter, for one card of 24 GB. Ours: rank 32, lr 3e-5.
    """
    presets = {
        "arena": arena_run(
            steps=300,
            kind="lsp",
            challenge=ChallengeConfig(payoff="frontier", frozen_share=0.5, invalid_payoff=0.0),
            quality=QualityConfig(source="program", scale="share"),
        ),
        "arena-paper": arena_run(
            steps=300,
            kind="lsp",
            challenge=ChallengeConfig(invalid_payoff=0.0),
            quality=QualityConfig(scale="share"),
        ),
        "paper": paper_run(3e-6, kind="lsp"),
        "paper-lora": on_one_card(paper_run(3e-6, kind="lsp")),
    }
    return pick(presets, preset, "lsp")
