"""What several test files share: a tiny model, runs of a few steps, and how two runs are compared."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from sparring.arena.tokenizer import build_tokenizer
from sparring.config import resolve
from sparring.lm.load import save_model
from sparring.recipes import recipe
from sparring.runfolder import RunFolder
from sparring.settings import RunConfig
from sparring.types import Payoffs, Turn

logging.disable_progress_bar()
os.environ["SPARRING_TRACKERS"] = "none"  # the same tests with trackio and without; children inherit it

SMALL = (
    "steps=6",
    "threads=1",
    "game.n_queries=6",
    "game.n_answers=3",
    "game.solver.max_new_tokens=24",
    "evaluation.every=3",
    "evaluation.n=3",
    "evaluation.final_n=3",
    "checkpoint.every=0",
    "health.match_every=0",
)
"""A run of about a second on the shipped model, with everything in it."""

LSP = (
    "game.quality.source=reference",
    "game.challenge.frozen_share=0.5",
    "game.challenge.repetition_weight=0.5",
    "game.challenge.repetition_archive=12",
    "game.challenge.payoff=adversarial",
)
"""The LSP with most to remember: a frozen reference that asks and grades, an archive of past queries."""

TIMES = ("seconds/", "tokens_per_second")


def small_run(name: str, *overrides: str) -> RunConfig:
    """A recipe on the arena, small."""
    return resolve(recipe(name), None, (*SMALL, *(LSP if name == "lsp" else ()), *overrides))


def untimed(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without what depends on the clock."""
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in records]


def assert_same_run(left: Path, right: Path) -> None:
    """Bit for bit: metrics, turns, exported weights, Adam's moments, final evaluation."""
    a, b = RunFolder(left), RunFolder(right)
    assert untimed(a.read_metrics()) == untimed(b.read_metrics())
    assert a.read_turns() == b.read_turns()
    assert (a.model / "model.safetensors").read_bytes() == (b.model / "model.safetensors").read_bytes()
    states = [load_file(sorted(run.checkpoints.glob("step-*"))[-1] / "optimizer.safetensors") for run in (a, b)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert json.loads(a.evaluation.read_text()) == json.loads(b.evaluation.read_text())


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.began: tuple[int, int] | None = None
        self.steps: dict[int, tuple[dict[str, float], list[Turn], Payoffs]] = {}

    def started(self, step: int, steps: int) -> None:
        self.began = (step, steps)

    def stepped(self, step: int, metrics: Mapping[str, float], turns: Sequence[Turn], payoffs: Payoffs) -> None:
        self.steps[step] = (dict(metrics), list(turns), payoffs)

    def said(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny untrained Llama that speaks the arena's tokens."""
    folder = tmp_path_factory.mktemp("random-model")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which then take no time."""
    asked: list[float] = []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return asked
