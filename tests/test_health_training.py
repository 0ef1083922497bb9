"""What an alarm does to a run: told, stopped, sent back; and interrupted and resumed at any of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Recorder, assert_same_run, small_run, untimed
from ranks import on_ranks
from ringing import ring
from sparring.config import read_yaml, validated
from sparring.health.guard import UnhealthyRun
from sparring.health.monitor import Monitor
from sparring.health.replay import replayed
from sparring.health.rules import Level
from sparring.run import resume, train
from sparring.runfolder import RunFolder

SOON = ("health.first_steps=1", "health.warning_period=2", "health.match_every=2", "health.match_n=4")
ALWAYS = ("health.rules.longer.patience=1", "health.rules.longer.warning=0.01", "health.rules.longer.alarm=0.02")
"""A rule that rings at every step after its warning period: turns are longer than a fiftieth of their first length."""
BACK = (
    "health.on_alarm=roll_back",
    "checkpoint.every=2",
    "checkpoint.keep=1",
    "health.alpha_factor=0.5",
    "health.lookback=1",
)


def test_each_step_is_measured_and_matches_are_played(tmp_path: Path, recorder: Recorder) -> None:
    train(small_run("lsp", *SOON), tmp_path / "run", observer=recorder)
    rows = RunFolder(tmp_path / "run").read_metrics()
    assert [row["step"] for row in rows if "health/anchor/win_rate" in row] == [2, 4, 6]
    assert all({"health/level", "health/queries/distinct", "health/answers/code"} <= set(row) for row in rows[1:])
    assert not any(name.startswith("health/") for name in rows[0])
    for row in rows[1:]:
        if "health/anchor/low" in row:
            assert 0 <= row["health/anchor/low"] <= row["health/anchor/win_rate"] <= row["health/anchor/high"] <= 1


def test_a_replay_from_the_folder_gives_what_the_run_recorded(tmp_path: Path) -> None:
    config = small_run("lsp", *SOON, "health.on_alarm=go_on", *ALWAYS)
    train(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    levels = {step: int(status.level) for step, _, status in replayed(folder, Monitor(config.health))}
    recorded = {row["step"]: row["health/level"] for row in folder.read_metrics() if "health/level" in row}
    assert levels == recorded
    assert set(recorded.values()) == {0, 1, 2} or set(recorded.values()) == {1, 2}


def test_an_alarm_stops_a_run_which_then_goes_on_where_it_was_told_to(tmp_path: Path, recorder: Recorder) -> None:
    whole = tmp_path / "whole"
    train(small_run("lsp", *SOON, *ALWAYS, "health.on_alarm=go_on"), whole)
    run = tmp_path / "run"
    with pytest.raises(UnhealthyRun, match=r"stopped after step \d, and everything is saved: health alarm 'longer'"):
        train(small_run("lsp", *SOON, *ALWAYS), run, observer=recorder)
    stopped = int(RunFolder(run).read_metrics()[-1]["step"])
    assert 1 < stopped < 6
    assert (run / "checkpoints" / f"step-{stopped:06d}").is_dir()
    assert any("health warning 'longer'" in message for message in recorder.messages)
    with pytest.raises(UnhealthyRun):  # the same settings: the next step rings again
        resume(run)
    assert RunFolder(run).read_metrics()[-1]["step"] == stopped + 1
    settings = read_yaml(run / "config.yaml")
    settings["health"]["on_alarm"] = "go_on"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    resume(run)
    assert_same_run(whole, run)


def test_a_roll_back_goes_on_from_the_last_healthy_checkpoint(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = {3: Level.WARNING, 4: Level.WARNING, 5: Level.ALARM}
    ring(monkeypatch, warned)
    train(small_run("lsp-zero", *SOON, *BACK), tmp_path / "run", observer=recorder)
    folder = RunFolder(tmp_path / "run")
    assert "step 5: back to step 2, with learner.beta times 2 and game.alpha times 0.5" in recorder.messages
    rows = folder.read_metrics()
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["health/rollbacks"] for row in rows[1:]] == [0, 0, 1, 1, 1, 1]
    left = [json.loads(line) for line in folder.rolled_back.read_text().splitlines()]
    assert [row["step"] for row in left] == [3, 4, 5]
    # Step 3 was played again from the same weights with the same draws, and learned otherwise.
    again = next(row for row in rows if row["step"] == 3)
    assert again["game/V"] == left[0]["game/V"]
    assert again["grad_norm"] != left[0]["grad_norm"]
    assert folder.turn_steps() == [1, 2, 3, 4, 5, 6]


def test_what_goes_back_is_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With factors of (nearly) 1 a run that went back ends as one that never left."""
    same = ("health.on_alarm=roll_back", "health.lookback=1", "checkpoint.every=2", f"health.beta_factor={1 + 1e-12}")
    train(small_run("lsp", *SOON, *same), tmp_path / "straight")
    ring(monkeypatch, {4: Level.WARNING, 5: Level.ALARM})
    train(small_run("lsp", *SOON, *same), tmp_path / "back")
    straight, back = RunFolder(tmp_path / "straight"), RunFolder(tmp_path / "back")
    assert back.rolled_back.is_file()
    for row, other in zip(untimed(straight.read_metrics()), untimed(back.read_metrics()), strict=True):
        for name in row.keys() - {"health/rollbacks", "health/level"}:
            assert other[name] == pytest.approx(row[name], rel=1e-5, abs=1e-6), (row["step"], name)
    assert [row["text"] for row in straight.read_turns()] == [row["text"] for row in back.read_turns()]


@pytest.mark.parametrize("killed_after", [2, 4, 5])
def test_a_run_that_went_back_resumes_bit_for_bit(
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the alarm, after going back, and later."""
    ring(monkeypatch, {3: Level.WARNING, 4: Level.ALARM})
    config = small_run("lsp", *SOON, *BACK)
    train(config, tmp_path / "whole")

    class Killed(Exception):  # noqa: N818 - a signal, not an error
        pass

    class Killer(Recorder):
        def stepped(self, step: int, metrics: Mapping[str, float], *rest: Any) -> None:
            if step == killed_after and (killed_after == 2 or metrics["health/rollbacks"]):
                raise Killed

    with pytest.raises(Killed):
        train(config, tmp_path / "killed", observer=Killer())
    resume(tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_healthy_checkpoint_outlives_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring(monkeypatch, dict.fromkeys(range(3, 7), Level.WARNING))
    train(small_run("lsp-zero", *SOON, *BACK), tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").iterdir())] == ["step-000002", "step-000006"]


def test_without_a_healthy_checkpoint_the_run_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring(monkeypatch, {1: Level.WARNING, 2: Level.WARNING, 3: Level.ALARM})
    with pytest.raises(UnhealthyRun):
        train(small_run("lsp-zero", *SOON, *BACK), tmp_path / "run")
    assert not RunFolder(tmp_path / "run").rolled_back.exists()
    assert RunFolder(tmp_path / "run").read_metrics()[-1]["step"] == 3


def _on_a_rank(out: Path) -> list[str]:
    patch = pytest.MonkeyPatch()
    ring(patch, {3: Level.WARNING, 4: Level.ALARM})
    seen = Recorder()
    train(small_run("lsp-zero", *SOON, *BACK), out, observer=seen)
    patch.undo()
    return seen.messages


def test_two_ranks_go_back_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = on_ranks(2, tmp_path, _on_a_rank, tmp_path / "two")
    assert "step 4: back to step 2, with learner.beta times 2 and game.alpha times 0.5" in told[0]
    ring(monkeypatch, {3: Level.WARNING, 4: Level.ALARM})
    train(small_run("lsp-zero", *SOON, *BACK), tmp_path / "one")
    two, one = (RunFolder(tmp_path / name).read_metrics() for name in ("two", "one"))
    for row, other in zip(untimed(two), untimed(one), strict=True):
        for name in ("game/V", "kl/solver", "health/rollbacks"):
            assert (name in row) == (name in other)
            if row.get(name) is not None:
                assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), (row["step"], name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("learner.beta=0",), "would change nothing: learner.beta is 0"),
        (("learner.beta=0", "game.alpha=0", "health.alpha_factor=0.5"), "would change nothing"),
        (("game.kind=grpo", "game.prompts=arena:easy", "learner.beta=0", "health.alpha_factor=0.5"), "would change"),
        (("checkpoint.every=0",), "checkpoint.every above 0"),
        (("health.beta_factor=1",), "raise beta_factor above 1 or lower alpha_factor"),
        (("health.rules.nonsense.alarm=1",), "nonsense"),
        (("health.rules.kl.patience=1e30",), "patience"),
    ],
)
def test_settings_that_can_not_be_are_refused(settings: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_run("lsp", "checkpoint.every=2", "health.on_alarm=roll_back", *settings)


def test_an_old_runs_settings_have_health_by_default(tmp_path: Path) -> None:
    settings = small_run("lsp").model_dump(mode="json")
    del settings["health"]
    assert validated(settings).health.on_alarm == "stop"


def edited(run: Path, **health: Any) -> None:
    """The settings of a run's health, changed by its user; two steps more."""
    settings = read_yaml(run / "config.yaml")
    settings["steps"] += 2
    settings["health"].update(health)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def test_other_questions_for_the_match_are_refused_before_a_step_is_lost(tmp_path: Path, recorder: Recorder) -> None:
    run = tmp_path / "run"
    train(small_run("lsp-zero", "steps=2", "health.match_every=2", "health.match_n=4"), run)
    edited(run, match_n=3)
    with pytest.raises(ValueError, match=r"health\.match_n is 3, but the run began with 4"):
        resume(run)
    edited(run, match_every=0)
    resume(run)
    assert RunFolder(run).read_metrics()[-1]["step"] == 6


def test_a_match_that_can_not_be_played_is_said_once(tmp_path: Path, recorder: Recorder) -> None:
    run = tmp_path / "run"
    train(small_run("lsp-zero", "steps=2"), run)  # without matches
    edited(run, match_every=1, match_n=3)
    resume(run, observer=recorder)
    assert sum("no match against the run's start" in message for message in recorder.messages) == 1


def test_a_stop_leaves_a_sound_checkpoint_to_go_back_to_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict.fromkeys(range(6, 9), Level.WARNING)
    ring(monkeypatch, {**found, 9: Level.ALARM})
    with pytest.raises(UnhealthyRun):
        train(small_run("lsp-zero", "steps=12", "checkpoint.every=4", "health.lookback=2"), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == ["step-000004", "step-000008", "step-000009"]


def test_checkpoints_that_may_become_sound_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring(monkeypatch, {8: Level.WARNING, 9: Level.ALARM})
    often = ("steps=10", "health.on_alarm=roll_back", "checkpoint.every=1", "checkpoint.keep=1", "health.lookback=4")
    seen = Recorder()
    train(small_run("lsp-zero", *often), tmp_path / "run", observer=seen)
    assert any("step 9: back to step 4, with learner.beta times 2" in message for message in seen.messages)


def test_an_alarm_at_the_last_step_leaves_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring(monkeypatch, {6: Level.ALARM})
    assert train(small_run("lsp-zero", *SOON), tmp_path / "run") is not None
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_lines_set_aside_by_a_process_that_died_then_are_there_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create("", {})
    for step in range(4):
        folder.append_metrics({"step": step})
    folder.set_aside_metrics(1)
    folder.set_aside_metrics(1)
    assert [json.loads(line)["step"] for line in folder.rolled_back.read_text().splitlines()] == [2, 3]
    (folder.path / ".metrics.jsonl.tmp-99").write_text("half")
    folder.clear_leftovers()
    assert not list(folder.path.glob(".*.tmp-*"))
    folder.close()
