"""A run as its caller sees it: stages, games of one's own, what the folder says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Recorder, assert_same_run, small_run
from sparring.build import build_game
from sparring.games.dataset import Dataset
from sparring.run import read_config, resume, train
from sparring.runfolder import RunFolder


@pytest.fixture(scope="module")
def grpo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grpo") / "run"
    train(small_run("grpo", "learner.lr=3e-3", "learner.warmup_steps=0"), out)
    return out


def test_lsp_after_grpo_starts_from_its_model_and_is_held_to_it(
    grpo_run: Path, tmp_path: Path, recorder: Recorder
) -> None:
    out = tmp_path / "run"
    train(small_run("lsp", f"model.path={grpo_run}", "steps=2"), out, observer=recorder)
    stages = RunFolder(out).read_lineage()["stages"]
    assert [(stage["recipe"], stage["game"]) for stage in stages] == [("grpo", "grpo"), ("lsp", "lsp")]
    assert [stage["start"] for stage in stages] == ["arena", str(grpo_run)]
    assert stages[1]["reference"] == str(grpo_run)
    # At its first step the policy is the reference: no KL. Held to the shipped start there would be some.
    first = recorder.steps[1][0]
    assert all(abs(first[f"kl/{role}"]) < 1e-6 for role in ("challenger", "solver"))
    assert recorder.steps[2][0]["kl/solver"] > 1e-7
    held = Recorder()
    settings = (f"model.path={grpo_run}", "model.reference=arena", "steps=1")
    train(small_run("lsp", *settings), tmp_path / "held", observer=held)
    assert held.steps[1][0]["kl/solver"] > 1e-4
    record = json.loads((tmp_path / "held" / "evaluation.json").read_text())
    assert record["base"] == str(grpo_run)  # compared with its start, not with what holds it
    before = json.loads((out / "evaluation.json").read_text())
    assert record["overall"]["base_accuracy"] == before["overall"]["base_accuracy"]


def test_the_folder_repeats_the_run(grpo_run: Path, tmp_path: Path) -> None:
    config = read_config(RunFolder(grpo_run))
    assert config.model.dtype == "float32"
    assert config.threads == 1
    train(config, tmp_path / "again")
    assert_same_run(grpo_run, tmp_path / "again")


def _own(**changes: Any) -> Dataset:
    built = build_game(small_run("grpo"))
    assert isinstance(built, Dataset)

    class Own(Dataset):
        """The data set's game under another name."""

    return Own(built.solver, built.prompts, built.reward, built.n_queries, built.n_answers)


def test_a_game_of_ones_own_must_be_given_again(tmp_path: Path, recorder: Recorder) -> None:
    out = tmp_path / "run"
    train(small_run("lsp", "steps=2"), out, game=_own())
    with pytest.raises(ValueError, match=r"started with the game .*Own: resume it with that one, not lsp"):
        resume(out)
    resume(out, game=_own(), observer=recorder)
    assert recorder.began == (2, 2)
    assert len(RunFolder(out).read_metrics()) == 3


def test_a_run_without_reference_is_compared_with_its_start(tmp_path: Path) -> None:
    settings = ("learner.beta=0", "steps=1")
    with_it = train(small_run("grpo", "steps=1"), tmp_path / "with")
    without = train(small_run("grpo", *settings), tmp_path / "without")
    assert with_it is not None
    assert without is not None
    assert without.overall.base_accuracy == with_it.overall.base_accuracy
