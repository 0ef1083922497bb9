"""The trainer: what it pays, measures, writes down and passes on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM

from conftest import Recorder, assert_same_run, small_run, untimed
from sparring.arena import model_path
from sparring.files import RunFolderError
from sparring.games.base import Game
from sparring.learner import DivergedError
from sparring.roles import Role
from sparring.run import assemble, resume, train
from sparring.runfolder import RunFolder
from sparring.sampling.base import Sampler
from sparring.types import Payoff, Turn
from sparring.watch import Watch


def _logprobs(model: Any, turn: Turn) -> torch.Tensor:
    """log π of a turn's tokens, the long way."""
    ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(turn.completion_ids)[:, None])[:, 0]


def test_k1_in_the_reward_is_beta_times_the_log_ratio_summed_over_a_turn(tmp_path: Path, recorder: Recorder) -> None:
    beta = 0.3
    settings = (
        "learner.kl=k1",
        f"learner.beta={beta}",
        "learner.lr=3e-3",
        "learner.warmup_steps=0",
        "steps=3",
    )
    train(small_run("lsp", *settings), tmp_path / "run", observer=recorder)
    start = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    figures, turns, payoffs = recorder.steps[3]
    trained = [t for t in turns if t in payoffs and t.model == "policy"]
    assert {turn.role.name for turn in trained} == {"challenger", "solver"}
    penalties = []
    for turn in trained:
        log_ratio_T = torch.from_numpy(turn.logprobs) - _logprobs(start, turn)
        expected = -beta * float(log_ratio_T.sum())
        assert payoffs[turn].parts["kl"] == pytest.approx(expected, abs=1e-5)
        others = sum(v for name, v in payoffs[turn].parts.items() if name != "kl" and v is not None)
        assert payoffs[turn].total == pytest.approx(others + expected, abs=1e-5)
        penalties.append(expected)
    assert max(map(abs, penalties)) > 0.02  # the policy has moved: the check checks something
    assert not any("kl" in payoffs[turn].parts for turn in turns if turn in payoffs and turn.model != "policy")
    assert not any(name.startswith("kl/") for name in figures)  # and no KL in the loss
    first = recorder.steps[1][2]
    assert all(abs(payoff.parts["kl"] or 0) < 1e-4 for payoff in first.values() if "kl" in payoff.parts)


def test_the_generic_engine_gives_the_fast_ones_metrics(tmp_path: Path) -> None:
    rows = {}
    for engine in ("auto", "generic"):
        settings = ("steps=3", "evaluation.every=3", f"model.engine={engine}")
        train(small_run("lsp", *settings), tmp_path / engine)
        rows[engine] = untimed(RunFolder(tmp_path / engine).read_metrics())
    assert len(rows["auto"]) == 4
    for fast, generic in zip(rows["auto"], rows["generic"], strict=True):
        assert fast.keys() == generic.keys()
        for name, value in fast.items():
            assert generic[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name


def test_sampler_and_learner_agree_at_every_step(tmp_path: Path, recorder: Recorder) -> None:
    train(small_run("lsp"), tmp_path / "run", observer=recorder)
    trained = 0
    for figures, turns, payoffs in recorder.steps.values():
        gaps = [value for name, value in figures.items() if name.startswith("sampler_gap/")]
        assert bool(gaps) is (figures["tokens/trained"] > 0)
        assert all(gap < 1e-5 for gap in gaps)
        trained += len(gaps)
        assert set(payoffs) <= set(turns)
    assert trained >= 3


def test_a_time_limit_ends_a_run_as_if_complete(tmp_path: Path) -> None:
    out = tmp_path / "run"
    evaluation = train(small_run("grpo", "steps=100000", "time_limit=0.5", "evaluation.every=0"), out)
    folder = RunFolder(out)
    last = folder.read_metrics()[-1]["step"]
    assert isinstance(last, int)
    assert 0 < last < 1000
    assert [path.name for path in folder.checkpoints.iterdir()] == [f"step-{last:06d}"]
    assert (folder.model / "model.safetensors").is_file()
    assert evaluation is not None
    assert folder.evaluation.is_file()
    resume(out)  # its time is up: nothing is added
    assert folder.read_metrics()[-1]["step"] == last


def test_time_spent_before_an_interruption_counts(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(small_run("grpo", "steps=2", "time_limit=1000"), out)
    config = out / "config.yaml"
    text = config.read_text().replace("steps: 2\n", "steps: 4\n", 1).replace("time_limit: 1000.0", "time_limit: 0.01")
    config.write_text(text)
    resume(out)
    assert RunFolder(out).read_metrics()[-1]["step"] == 2


def test_tensorboard_shows_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(small_run("lsp", "trackers=[tensorboard]", "steps=3"), out)
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    shown = {(event.step, name): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    held = {
        (row["step"], name): value
        for row in RunFolder(out).read_metrics()
        for name, value in row.items()
        if name != "step"
    }
    assert shown.keys() == held.keys()
    assert all(shown[key] == pytest.approx(held[key], rel=1e-6) for key in held)
    assert len({step for step, _ in held}) == 4


class Finishes:
    """A tracker that counts."""

    def __init__(self) -> None:
        self.logged: list[int] = []
        self.finished = 0

    def log(self, step: int, metrics: Any) -> None:
        self.logged.append(step)

    def finish(self) -> None:
        self.finished += 1


def test_trackers_are_finished_when_a_run_fails(tmp_path: Path) -> None:
    config = small_run("grpo")
    with RunFolder(tmp_path / "run").create(config.to_yaml(), {}) as folder:
        trainer = assemble(config, folder).trainer
        tracker = Finishes()
        trainer.trackers = [tracker]
        parameter = trainer.learner.parameters[0]
        with torch.no_grad():
            parameter.view(-1)[0] = float("nan")
        trainer.learner.policy.refresh()
        with pytest.raises(DivergedError):
            trainer.run()
    assert tracker.logged == []
    assert tracker.finished == 1


class Poisons(Recorder):
    """Puts a value into the model after step 3."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.trainer = value, None

    def stepped(self, step: int, *args: Any) -> None:
        super().stepped(step, *args)
        if step == 3:
            assert self.trainer is not None
            with torch.no_grad():
                self.trainer.learner.parameters[0].fill_(self.value)
            self.trainer.learner.policy.refresh()


@pytest.mark.parametrize("engine", ["auto", "generic"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_gone_bad_are_named_and_never_saved(value: float, engine: str, tmp_path: Path) -> None:
    config = small_run("grpo", f"model.engine={engine}", "checkpoint.every=2", "evaluation.every=0")
    poisons = Poisons(value)
    with RunFolder(tmp_path / "run").create(config.to_yaml(), {}) as folder:
        poisons.trainer = assemble(config, folder, observer=poisons).trainer  # type: ignore[assignment]
        with pytest.raises(DivergedError, match=r"after step 3 .* NaN or infinite.*learner\.lr"):
            poisons.trainer.run()  # type: ignore[attr-defined]
        assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000002"]


def test_an_update_that_ruins_the_parameters_is_caught_in_its_own_step(tmp_path: Path) -> None:
    config = small_run("grpo", "evaluation.every=0", "steps=2", "learner.skip_dead_groups=false")
    with RunFolder(tmp_path / "run").create(config.to_yaml(), {}) as folder:
        trainer = assemble(config, folder).trainer
        trainer.schedule = dataclasses.replace(trainer.schedule, learning_rate=lambda step: 1e-4 if step == 1 else 1e39)
        with pytest.raises(DivergedError, match="step 2: the update made parameters NaN or infinite"):
            trainer.run()
        assert [row["step"] for row in folder.read_metrics()] == [0, 1]
        assert list(folder.path.glob("failed-batch-step-000002.json"))
        assert not folder.checkpoints.exists()


def test_an_export_that_fails_says_so_and_leaves_no_half_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    config = small_run("grpo", "steps=1")
    blocked = out / ".model.partial"

    def refuse(source: Any, destination: Any, **_: Any) -> None:
        raise OSError(28, "No space left on device", str(blocked))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copytree", refuse)  # the operating system's boundary
        with pytest.raises(RunFolderError, match=r"could not be copied.*No space left.*resume"):
            train(config, out)
    assert not (out / "model").exists()
    resume(out)
    assert (out / "model" / "model.safetensors").is_file()
    assert not blocked.exists()


def test_turns_are_written_as_played_and_paid(tmp_path: Path, recorder: Recorder) -> None:
    out = tmp_path / "run"
    train(small_run("lsp", "steps=4", "checkpoint.turns_every=2"), out, observer=recorder)
    folder = RunFolder(out)
    assert folder.turn_steps() == [2, 4]
    rows = folder.read_turns([4])
    _, turns, payoffs = recorder.steps[4]
    assert [row["text"] for row in rows] == [turn.text for turn in turns]
    assert [row["role"] for row in rows] == [turn.role.name for turn in turns]
    assert [row["payoff"] for row in rows] == [payoffs[t].total if t in payoffs else None for t in turns]
    for row, turn in zip(rows, turns, strict=True):
        assert (row["parent"] == -1) is (turn.parent is None)
        if turn.parent is not None:
            assert turns[row["parent"]] is turn.parent
        if turn in payoffs:
            assert json.loads(row["parts"]) == dict(payoffs[turn].parts)
    centred = [row["advantage"] for row in rows if row["role"] == "challenger" and row["trained"]]
    assert np.sum(centred) == pytest.approx(0, abs=1e-6)


def test_turns_left_out_of_the_update_are_not_called_trained(tmp_path: Path, recorder: Recorder) -> None:
    for skip in ("true", "false"):
        out = tmp_path / skip
        train(small_run("grpo", "steps=3", f"learner.skip_dead_groups={skip}"), out, observer=recorder)
        rows = RunFolder(out).read_turns()
        assert any(row["advantage"] == 0 for row in rows)  # a group without spread: the check checks something
        assert all(row["trained"] is (skip == "false" or row["advantage"] != 0) for row in rows)
        for step, (figures, _, _) in recorder.steps.items():
            trained = sum(row["completion_tokens"] for row in rows if row["step"] == step and row["trained"])
            assert trained == figures["tokens/trained"]


KEPT = ("evaluation.every=0", "checkpoint.every=2", "learner.skip_dead_groups=false")


@contextmanager
def failing_after(steps: int, fault: str) -> Iterator[None]:
    """After so many optimiser steps backward runs out of memory, or gives NaN."""
    backward, done = torch.Tensor.backward, [0]

    def faulty(loss: torch.Tensor) -> None:
        if done[0] == steps and fault == "memory":
            raise RuntimeError("out of memory")
        backward(loss * float("nan") if done[0] == steps else loss)

    def count(*_: Any) -> None:
        done[0] += 1

    handle = register_optimizer_step_post_hook(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", faulty)
        try:
            yield
        finally:
            handle.remove()


FAULTS = {"memory": (RuntimeError, "out of memory"), "nan": (DivergedError, "step 4: the gradient's norm is nan")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_update_keeps_what_was_learned_before(fault: str, tmp_path: Path, recorder: Recorder) -> None:
    config, out = small_run("grpo", *KEPT), tmp_path / "run"
    train(config, tmp_path / "whole")
    error, message = FAULTS[fault]
    with failing_after(3, fault), pytest.raises(error, match=message):
        train(config, out, observer=recorder)
    assert "step 4 failed; everything up to step 3 is saved" in recorder.messages
    resume(out, observer=recorder)
    assert recorder.began == (3, 6)
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_half_done_update_is_not_saved(fault: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    error, message = FAULTS[fault]
    with failing_after(7, fault), pytest.raises(error, match=message):  # amid the fourth step's two
        train(small_run("grpo", *KEPT, "learner.minibatches=2"), out)
    assert [path.name for path in RunFolder(out).checkpoints.iterdir()] == ["step-000002"]


class Nothing(Game):
    """A game whose turns are never paid."""

    def __init__(self, role: Role) -> None:
        self.roles = (role,)

    def play(self, sampler: Sampler) -> list[Turn]:
        return sampler.sample(self.roles[0], [self.roles[0].prompt(query="sort:bead")], n=2)

    def payoffs(self, turns: Any) -> dict[Turn, Payoff]:
        return {}


def test_a_step_without_payoffs_changes_no_weight(tmp_path: Path) -> None:
    from sparring.build import build_game

    config = small_run("grpo", "steps=2")
    [role] = build_game(config).roles
    train(config, tmp_path / "run", game=Nothing(role))
    before = (model_path() / "model.safetensors").read_bytes()
    from safetensors.torch import load

    after = load((tmp_path / "run" / "model" / "model.safetensors").read_bytes())
    assert all(torch.equal(tensor, after[name]) for name, tensor in load(before).items())
    assert [row["tokens/trained"] for row in RunFolder(tmp_path / "run").read_metrics()[1:]] == [0, 0]


def test_twenty_steps_with_nothing_to_learn_from_are_said_once(tmp_path: Path, recorder: Recorder) -> None:
    from sparring.build import build_game

    config = small_run("grpo", "steps=22", "evaluation.every=0")
    [role] = build_game(config).roles
    train(config, tmp_path / "run", game=Nothing(role), observer=recorder)
    [said] = [message for message in recorder.messages if "nothing to learn from" in message]
    assert said.startswith("steps 1 to 20 had")


def test_a_sampler_that_disagrees_with_the_learner_is_said_once(tmp_path: Path, recorder: Recorder) -> None:
    config = small_run("grpo", "steps=3", "evaluation.every=0", "learner.skip_dead_groups=false")
    with RunFolder(tmp_path / "run").create(config.to_yaml(), {}) as folder:
        trainer = assemble(config, folder, observer=recorder).trainer
        # Scored at another temperature than sampled at: what a mismatch of the two looks like.
        trainer.learner.settings = dataclasses.replace(trainer.learner.settings, temperature=3.0)
        trainer.run()
    said = [message for message in recorder.messages if "sampler and learner disagree" in message]
    assert len(said) == 1
    assert said[0].startswith("step 1:")


def test_bfloat16_may_differ_more_and_a_batch_starts_the_count_again() -> None:
    for dtype, heard in ((torch.float32, 1), (torch.bfloat16, 0)):
        said: list[str] = []
        watch = Watch(said.append, dtype)
        watch.learned(1, 4, {"sampler_gap/solver": 0.15, "sampler_gap/challenger": 0.05, "kl/solver": 9.0})
        assert len(said) == heard
        for step in range(2, 41):
            watch.learned(step, int(step == 21), {})
        assert len(said) == heard  # 19 idle steps before step 21, 19 after it
        watch.learned(41, 0, {})
        assert len(said) == heard + 1
