"""A run started with relative paths resumes from another working directory."""

from pathlib import Path

import pytest

from conftest import small_run
from sparring.paths import anchored
from sparring.run import resume, train
from sparring.runfolder import RunFolder

REWARD = "def score(queries, answers):\n    return [float(len(answer)) for answer in answers]\n"


def test_local_paths_become_absolute_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arena").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "ask.txt").write_text("{{ query }}")
    plain = small_run("lsp", "game.reward.function=math:sqrt", "game.custom=null")
    assert anchored(plain) == plain
    config = small_run(
        "lsp",
        "model.path=mine",
        "model.reference=some/hub-id",
        "game.reward.function=score.py:score",
        "game.solver.prompt=ask.txt",
        "game.prompts=arena:easy",
    )
    changed = anchored(config)
    assert changed.model.path == str(tmp_path / "mine")
    assert changed.model.reference == "some/hub-id"
    assert changed.game.reward.function == f"{tmp_path / 'score.py'}:score"
    assert changed.game.solver.prompt == str(tmp_path / "ask.txt")
    assert changed.game.prompts == "arena:easy"
    assert anchored(changed) == changed


def test_resume_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "score.py").write_text(REWARD)
    config = small_run("grpo", "game.reward.function=score.py:score", "steps=2")
    train(config, Path("run"))
    (tmp_path / "run" / "evaluation.json").unlink()
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert resume(tmp_path / "run") is not None
    assert len(RunFolder(tmp_path / "run").read_metrics()) == 3
