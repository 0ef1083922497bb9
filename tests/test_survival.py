"""Runs that survive: killed, stopped, damaged, out of disk, diverged; and always the same run in the end."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from conftest import Recorder, assert_same_run, small_run, untimed
from ranks import PROCESSES
from sparring.checkpoint import CheckpointError
from sparring.files import RunFolderError
from sparring.learner import DivergedError
from sparring.rewards.base import RewardError
from sparring.run import resume, train
from sparring.runfolder import RunFolder
from sparring.settings import RunConfig

FAILED, STOPPED = 1, 3


def go_on(config: RunConfig, out: Path, observer: Any = None) -> None:
    """Start a run, or go on with it where it was started already."""
    if (out / "config.yaml").exists():
        resume(out, observer=observer)
    else:
        train(config, out, observer=observer)


def child(config: RunConfig, out: Path, prepare: Callable[..., Any] | None, *args: Any) -> None:
    """A training process: what it says and how it failed goes to <out>.said."""
    told = Recorder()
    try:
        go_on(config, out, told if prepare is None else prepare(out, told, *args))
    except Exception as error:  # noqa: BLE001 - reported to the test
        told.said(f"{type(error).__name__}: {error}")
        sys.exit(STOPPED if type(error).__name__ == "InterruptedRun" else FAILED)
    finally:
        out.with_suffix(".said").write_text("\n".join(told.messages))


def start(config: RunConfig, out: Path, prepare: Callable[..., Any] | None = None, *args: Any) -> Any:
    process = PROCESSES.Process(target=child, args=(config, out, prepare, *args))
    process.start()
    return process


def finish(process: Any) -> int:
    process.join(60)
    assert process.exitcode is not None, "the training process hangs"
    return process.exitcode


def said(out: Path) -> str:
    return out.with_suffix(".said").read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run of its settings that nothing disturbed; run once."""
    done: dict[tuple[str, ...], Path] = {}

    def run(name: str, *overrides: str) -> Path:
        if (name, *overrides) not in done:
            out = tmp_path_factory.mktemp("uninterrupted") / "run"
            assert finish(start(small_run(name, *overrides), out)) == 0, said(out)
            done[name, *overrides] = out
        return done[name, *overrides]

    return run


# --- killed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "every", "kills"), [("lsp", 1, 4), ("lsp", 3, 3), ("lsp-zero", 2, 2), ("grpo", 1, 2), ("vision-sr1", 2, 3)]
)
def test_kill_9_at_random_moments_changes_nothing(
    name: str, every: int, kills: int, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    expected, out = uninterrupted(name), tmp_path / "run"
    config = small_run(name, f"checkpoint.every={every}")
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    for reached in sorted(draw.randint(0, 6) for _ in range(kills)):
        process = start(config, out)
        while len(RunFolder(out).read_metrics()) <= reached and process.is_alive():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))  # playing, updating or in the middle of saving
        process.kill()
        finish(process)
    assert finish(start(config, out)) == 0, f"seed {seed}: {said(out)}"
    assert_same_run(out, expected)


def at_operation(out: Path, told: Recorder, number: int) -> Recorder:
    """Kill -9 this process before its number-th change to the run's files (0: only count them)."""
    counter = count(1)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        if not str(args[0]).startswith(str(out)):
            return
        if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+")):
            return
        now = next(counter)
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)
        told.messages[:] = [f"operations {now}"]

    sys.addaudithook(watch)
    return told


def test_killed_again_and_again_amid_its_own_file_operations(
    tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    config, out = small_run("lsp", "checkpoint.every=1"), tmp_path / "run"
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    for number in [draw.randint(1, 70) for _ in range(6)]:
        assert finish(start(config, out, at_operation, number)) in (-signal.SIGKILL, 0)
    assert finish(start(config, out)) == 0, f"seed {seed}: {said(out)}"
    assert_same_run(out, uninterrupted("lsp"))


@pytest.mark.slow
def test_killed_at_every_fourth_file_operation(tmp_path: Path, uninterrupted: Callable[..., Path]) -> None:
    settings = ("steps=2", "evaluation.every=0", "checkpoint.keep=1")
    expected = uninterrupted("lsp", *settings)
    config = small_run("lsp", *settings, "checkpoint.every=1")
    assert finish(start(config, tmp_path / "count", at_operation, 0)) == 0
    operations = int(said(tmp_path / "count").split()[-1])
    assert operations > 40
    for number in range(random.randint(1, 4), operations + 1, 4):
        out = tmp_path / f"at-{number}"
        assert finish(start(config, out, at_operation, number)) == -signal.SIGKILL, number
        assert finish(start(config, out)) == 0, f"operation {number}: {said(out)}"
        assert_same_run(out, expected)
        shutil.rmtree(out)


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_exits(
    asked: signal.Signals, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    config, out = small_run("lsp"), tmp_path / "run"
    process = start(config, out)
    folder = RunFolder(out)
    while len(folder.read_metrics()) < 3:  # steps 0, 1 and 2
        time.sleep(0.01)
    os.kill(process.pid, asked)
    assert finish(process) == STOPPED
    last = int(folder.read_metrics()[-1]["step"] or 0)
    assert f"stopped by {asked.name} after step {last}" in said(out)
    assert [path.name for path in folder.checkpoints.iterdir()] == [f"step-{last:06d}"]
    assert finish(start(config, out)) == 0
    assert f"resuming after step {last}" in said(out)
    assert_same_run(out, uninterrupted("lsp"))


# --- damaged -----------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "all"])
def test_a_damaged_newest_checkpoint_is_said_and_the_last_good_one_taken(
    damage: str, tmp_path: Path, uninterrupted: Callable[..., Path], recorder: Recorder
) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted("lsp", "checkpoint.every=2", "checkpoint.keep=0"), out)
    newest = out / "checkpoints" / "step-000006"
    if damage == "flip":
        _flip(newest / "model" / "model.safetensors")
    elif damage == "cut":
        os.truncate(newest / "optimizer.safetensors", 1000)
    elif damage == "gone":
        (newest / "state.json").unlink()
    else:
        for checkpoint in (out / "checkpoints").iterdir():
            _flip(checkpoint / "optimizer.safetensors")
    resume(out, observer=recorder)
    assert any("step-000006 is damaged" in message for message in recorder.messages)
    taken = "no earlier good one" if damage == "all" else "using step-000004"
    assert any(taken in message for message in recorder.messages)
    assert recorder.began == ((0, 6) if damage == "all" else (4, 6))
    assert_same_run(out, uninterrupted("lsp"))


def test_a_finished_run_resumed_changes_nothing(
    tmp_path: Path, uninterrupted: Callable[..., Path], recorder: Recorder
) -> None:
    shutil.copytree(uninterrupted("lsp"), tmp_path / "run")
    resume(tmp_path / "run", observer=recorder)
    assert recorder.began == (6, 6)
    assert recorder.steps == {}
    assert_same_run(tmp_path / "run", uninterrupted("lsp"))


# --- diverged, and rewards that fail ----------------------------------------------------------------------

GOOD_REWARD = """
from sparring.arena.domain import reward as arena

calls = 0

def reward(queries, answers):
    global calls
    calls += 1
    scores = arena(queries, answers)
"""
RAISES = "    if calls == 4: raise ConnectionError('the judge is away')\n"
TOO_FEW = "    if calls == 4: return scores[1:]\n"
NOT_A_NUMBER = "    if calls == 4: scores[0] = float('nan')\n"
EXTREME = "    if calls == 4: scores = [1e30 * (-1) ** i for i in range(len(scores))]\n"


def _reward_run(tmp_path: Path, fault: str, *overrides: str) -> tuple[RunConfig, Path]:
    """A GRPO run whose reward fails in step 4; called again without a fault, it repairs the file."""
    file = tmp_path / "reward.py"
    file.write_text(GOOD_REWARD + fault + "    return scores\n")
    return small_run("grpo", f"game.reward.function={file}:reward", "evaluation.every=0", *overrides), file


@pytest.mark.parametrize(
    ("fault", "told", "every"),
    [
        (RAISES, "raised ConnectionError: the judge is away", 0),
        (TOO_FEW, "returned 17 scores for 18 answers", 3),
        (NOT_A_NUMBER, "returned nan for answer 0", 2),
    ],
    ids=["raises", "too few", "nan"],
)
def test_a_reward_that_fails_is_named_and_nothing_is_lost(
    fault: str, told: str, every: int, tmp_path: Path, recorder: Recorder
) -> None:
    config, _ = _reward_run(tmp_path, "")
    train(config, tmp_path / "clean")
    config, _ = _reward_run(tmp_path, fault, f"checkpoint.every={every}")
    out = tmp_path / "run"
    with pytest.raises(RewardError, match=told):
        train(config, out)
    assert [row["step"] for row in RunFolder(out).read_metrics()] == [0, 1, 2, 3]
    assert (out / "checkpoints" / "step-000003").is_dir()
    _reward_run(tmp_path, "")  # repaired
    resume(out, observer=recorder)
    assert recorder.began == (3, 6)
    assert_same_run(out, tmp_path / "clean")


def test_a_game_that_fails_after_changing_its_memory_is_saved_as_before(
    tmp_path: Path, uninterrupted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    from sparring.games.lsp import LSP

    pay, calls = LSP.pay_challenger, count(1)

    def pay_and_fail(self: LSP, *args: Any) -> Any:
        paid = pay(self, *args)  # the archive of past queries has grown
        if next(calls) == 4:
            raise RuntimeError("a bug in the game")
        return paid

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LSP, "pay_challenger", pay_and_fail)
        with pytest.raises(RuntimeError, match="a bug in the game"):
            train(small_run("lsp"), out, observer=recorder)
    assert "step 4 failed; everything up to step 3 is saved" in recorder.messages
    resume(out, observer=recorder)
    assert recorder.began == (3, 6)
    assert_same_run(out, uninterrupted("lsp"))


def test_an_extreme_reward_diverges_with_its_cause_its_batch_and_a_way_out(tmp_path: Path, recorder: Recorder) -> None:
    settings = ("game.advantage=centred", "checkpoint.every=2")
    config, _ = _reward_run(tmp_path, "", *settings)
    train(config, tmp_path / "clean")
    config, _ = _reward_run(tmp_path, EXTREME, *settings)
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match="gradient's norm is inf") as caught:
        train(config, out)
    message = str(caught.value)
    assert message.startswith("step 4:")
    assert "largest advantage 1.33333e+30" in message
    for named in ("learner.lr", "learner.max_grad_norm", str(out / "config.yaml")):
        assert named in message
    assert (out / "failed-batch-step-000004.json").read_text().count('"completion_ids"') == len(caught.value.examples)
    assert [row["step"] for row in RunFolder(out).read_metrics()] == [0, 1, 2, 3]
    # The step was not applied: everything before it is saved.
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    _reward_run(tmp_path, "", *settings)
    resume(out, observer=recorder)
    assert recorder.began == (3, 6)
    assert_same_run(out, tmp_path / "clean")


# --- disk full ---------------------------------------------------------------------------------------


class Filling(Recorder):
    """Leaves so many bytes free on the run's disk after step 3."""

    def __init__(self, out: Path, free: int) -> None:
        super().__init__()
        self.out, self.free = out, free

    def stepped(self, step: int, *args: Any) -> None:
        super().stepped(step, *args)
        if step == 3:
            left = shutil.disk_usage(self.out).free - self.free
            (self.out.parent / "filler").write_bytes(bytes(max(0, left)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


# Full at once (metrics or turns), amid the model's file, amid the optimiser's, amid the final copy.
@pytest.mark.parametrize("free", [0, 8_192, 100_000, 2_000_000, 5_000_000, 11_000_000])
def test_a_full_disk_is_named_and_nothing_is_lost(
    free: int, small_disk: Path, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    out = small_disk / "run"
    config = small_run("lsp", "checkpoint.every=2")
    with pytest.raises((RunFolderError, CheckpointError)) as caught:
        train(config, out, observer=Filling(out, free))
    assert str(out) in str(caught.value)
    assert "free" in str(caught.value)
    assert "No space left" in str(caught.value)
    assert (out / "checkpoints" / "step-000002").is_dir()
    (small_disk / "filler").unlink()
    resume(out)
    assert_same_run(out, uninterrupted("lsp"))


def limit_file_size(out: Path, told: Recorder, size: int) -> Recorder:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return told


@pytest.mark.parametrize(("size", "every", "file"), [(2_000_000, 2, "step-000002"), (7_000, 0, "metrics.jsonl")])
def test_a_limit_on_file_size_is_named_and_nothing_is_lost(
    size: int, every: int, file: str, tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    out = tmp_path / "run"
    config = small_run("lsp", f"checkpoint.every={every}", "checkpoint.turns_every=6")
    assert finish(start(config, out, limit_file_size, size)) == FAILED
    assert "File too large" in said(out)
    assert file in said(out)
    assert finish(start(config, out)) == 0, said(out)
    assert_same_run(out, uninterrupted("lsp", "checkpoint.turns_every=6"))


# --- the folder --------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_to_another_process(tmp_path: Path, uninterrupted: Callable[..., Path]) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted("grpo"), out)
    with RunFolder(out).open():
        assert finish(start(small_run("grpo"), out)) == FAILED
        assert "in use" in said(out)
        assert str(os.getpid()) in said(out)
    assert finish(start(small_run("grpo"), out)) == 0


def test_an_existing_run_is_refused_and_left_alone(tmp_path: Path, uninterrupted: Callable[..., Path]) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted("grpo"), out)
    with pytest.raises(RunFolderError, match="holds a run already"):
        train(small_run("grpo"), out)
    assert_same_run(out, uninterrupted("grpo"))


# --- the same again ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    train(small_run("lsp"), tmp_path / "again")
    assert_same_run(tmp_path / "again", uninterrupted("lsp"))
    train(small_run("lsp", "seed=1"), tmp_path / "other")
    ours, other = (untimed(RunFolder(p).read_metrics()) for p in (uninterrupted("lsp"), tmp_path / "other"))
    assert ours[0] == other[0]  # the evaluation of one and the same start
    assert all(a != b for a, b in zip(ours[1:], other[1:], strict=True))


def test_the_threads_of_the_start_are_the_threads_of_the_resumed_run(
    tmp_path: Path, uninterrupted: Callable[..., Path]
) -> None:
    import torch

    assert finish(start(small_run("grpo", "threads=0", "steps=1"), tmp_path / "run")) == 0
    from sparring.run import read_config

    recorded = read_config(RunFolder(tmp_path / "run")).threads
    assert recorded >= 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(recorded + 1)
        resume(tmp_path / "run")
        assert torch.get_num_threads() == recorded
    finally:
        torch.set_num_threads(before)
