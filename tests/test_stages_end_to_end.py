"""The paper's experiment from the command line on tiny models: GRPO on data, then LSP, then LSP-Zero, export, load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import untimed
from sparring.runfolder import RunFolder
from tiny_models import save_tiny_reward
from tiny_speaker import save_tiny_speaker

pytestmark = pytest.mark.slow

SMALL = (
    "model.dtype=float32",
    "threads=1",
    "game.n_queries=4",
    "game.n_answers=3",
    "game.challenger.max_new_tokens=24",
    "game.solver.max_new_tokens=24",
    "game.grader.max_new_tokens=64",
)
# Few steps: as fast as the speaker still writes queries that can be read.
LR = {"paper": "learner.lr=0.0001", "paper-lora": "learner.lr=0.0003"}
INSTRUCTIONS = (
    ("Name the largest planet.", ""),
    ("Sum up the text.", "The quick brown fox jumps over the lazy dog."),
    ("", ""),  # an empty row: counted and skipped
    ("Describe a map.", ""),
    ("Write about the fox.", ""),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `speaker`, `reward` and `alpaca.jsonl`."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_speaker(folder / "speaker")
    save_tiny_reward(folder / "reward", spread=20.0)
    rows = [{"instruction": text, "input": given, "output": ""} for text, given in INSTRUCTIONS]
    (folder / "alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("sparring")), *map(str, arguments)]


def sparring(*arguments: object) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def grpo(models: Path, out: Path, preset: str) -> None:
    reward, prompts = models / "reward", models / "alpaca.jsonl"
    text = sparring(
        "train", "grpo", "--preset", preset, "--init", models / "speaker", "--reward", reward, "--out", out,
        *SMALL, LR[preset], f"game.prompts={prompts}", "steps=3",
    )  # fmt: skip
    assert "1 empty prompts skipped, 4 are left" in text


def lsp_arguments(models: Path, start: Path, out: Path, preset: str) -> list[str]:
    return command(
        "train", "lsp", "--preset", preset, "--init", start, "--reward", models / "reward", "--out", out,
        *SMALL, LR[preset], "steps=6", "checkpoint.every=2", "game.reward.scale=standardised",
        "game.challenge.repetition_weight=0.5", "game.challenge.repetition_archive=8",
    )[1:]  # fmt: skip


@pytest.mark.parametrize("preset", ["paper-lora", "paper"])
def test_three_stages_tell_their_story_and_load_anywhere(preset: str, models: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    grpo(models, runs / "grpo", preset)
    sparring(*lsp_arguments(models, runs / "grpo", runs / "lsp", preset))
    sparring(
        "train", "lsp-zero", "--preset", preset, "--init", runs / "lsp", "--reward", models / "reward",
        "--out", runs / "zero", *SMALL, LR[preset], "steps=2",
    )  # fmt: skip

    records = RunFolder(runs / "lsp").read_metrics()
    assert len(records) == 7
    assert sum("payoff/solver/reward" in row for row in records[1:]) >= 3  # a step may have no valid query
    assert all("kl/challenger" in row for row in records[1:])
    graded = [row["quality/parse_rate"] for row in records[1:]]
    assert 0 < sum(float(rate or 0) for rate in graded) / len(graded) <= 1
    learned = [float(row["grad_norm"] or 0) for row in records[1:]]
    assert max(learned) > 0

    stages = json.loads((runs / "zero" / "lineage.json").read_text())["stages"]
    assert [stage["recipe"] for stage in stages] == ["grpo", "lsp", "lsp-zero"]
    assert [stage["results"]["steps"] for stage in stages] == [3, 6, 2]
    assert [stage["settings"]["model"]["tuning"] for stage in stages] == ["lora" if "lora" in preset else "full"] * 3
    card = (runs / "zero" / "model" / "README.md").read_text()
    page = (runs / "zero" / "report.html").read_text()
    for text in (card, page):
        assert all(name in text for name in ("grpo", "lsp-zero"))
    assert str(tmp_path) not in card
    assert_loads(runs / "zero" / "model", models / "speaker")


def assert_loads(folder: Path, base: Path) -> None:
    """A plain transformers folder: no adapter left, another model than the base, and it speaks."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not (folder / "adapter_config.json").exists()
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name the largest planet."}], add_generation_prompt=True, return_tensors="pt"
    )
    reply = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert reply.shape[1] > prompt["input_ids"].shape[1]


@pytest.mark.parametrize("preset", ["paper-lora", "paper"])
def test_kill_9_in_the_lsp_stage_changes_nothing(preset: str, models: Path, tmp_path: Path) -> None:
    grpo(models, tmp_path / "grpo", preset)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    sparring(*lsp_arguments(models, tmp_path / "grpo", whole, preset))
    process = subprocess.Popen(
        command(*lsp_arguments(models, tmp_path / "grpo", out, preset)),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(RunFolder(out).read_metrics()) < 4:  # step 3 is done, the checkpoint of step 2 lies there
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "model").exists()
    sparring("train", "--resume", out)
    one, other = RunFolder(whole), RunFolder(out)
    assert untimed(one.read_metrics()) == untimed(other.read_metrics())
    assert one.read_turns() == other.read_turns()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (one.model / name).read_bytes() == (other.model / name).read_bytes()
