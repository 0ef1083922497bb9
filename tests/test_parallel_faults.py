"""Ranks that are killed, frozen, stopped, out of disk or fail by themselves: every one ends, says why, and the run
goes on afterwards."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import Recorder, small_run
from ranks import Started, on_ranks
from sparring.checkpoint import verify_checkpoint
from sparring.run import resume, train
from sparring.runfolder import RunFolder
from test_checkpoint import small_disk

SHARD = ("model.engine=generic", "learner.token_budget=150")
LORA = ("model.tuning=lora", "model.lora.rank=4")
LONG = ("steps=1000", "evaluation.every=0", "checkpoint.every=2", "parallel.timeout=4")


def run(out: Path, settings: Sequence[str]) -> None:
    train(small_run("lsp", *LONG, *settings), out)


def finish(out: Path, steps: int) -> list[str]:
    """Go on to a step, as one process or as the ranks that there are."""
    config = out / "config.yaml"
    seen = Recorder()
    if os.environ.get("RANK", "0") == "0":
        config.write_text(config.read_text().replace("steps: 1000\n", f"steps: {steps}\n", 1))
    resume(out, observer=seen)
    return seen.messages


def reached(out: Path, step: int, seconds: float = 60) -> None:
    """Wait until a run's step is written down."""
    until = time.monotonic() + seconds
    while len(RunFolder(out).read_metrics()) <= step:
        assert time.monotonic() < until, "the run does not get on"
        time.sleep(0.02)


def goes_on(out: Path, folder: Path) -> None:
    """On two ranks, from its last good checkpoint."""
    last = max(int(path.name[-6:]) for path in (out / "checkpoints").glob("step-*"))
    messages = on_ranks(2, folder, finish, out, last + 2)[0]
    assert f"resuming after step {last}" in messages
    assert RunFolder(out).read_metrics()[-1]["step"] == last + 2
    assert (out / "model").is_dir()


@pytest.mark.parametrize(
    ("kind", "victim"),
    [(SHARD, 1), pytest.param(SHARD, 0, marks=pytest.mark.slow), pytest.param(LORA, 1, marks=pytest.mark.slow)],
)
def test_a_killed_rank_ends_the_other_and_the_run_goes_on(kind: tuple[str, ...], victim: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = Started(2, tmp_path, run, out, kind)
    reached(out, 3)
    started.processes[victim].kill()
    started.wait(20)
    error = started.result(1 - victim)
    assert type(error).__name__ == "RankError"
    assert str(error).startswith(f"rank {victim} (process {started.processes[victim].pid} on ")
    goes_on(out, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "victim"), [(SHARD, 1), (LORA, 1), (LORA, 0)])
def test_a_frozen_rank_is_given_up(kind: tuple[str, ...], victim: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = Started(2, tmp_path, run, out, kind)
    reached(out, 3)
    psutil.Process(started.processes[victim].pid).suspend()
    other = started.processes[1 - victim]
    other.join(45)
    started.processes[victim].kill()
    started.wait()
    assert other.exitcode not in (None, 0)
    error = started.result(1 - victim)
    assert type(error).__name__ == "RankError"
    assert f"rank {victim} " in str(error)
    goes_on(out, tmp_path)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(asked: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = Started(2, tmp_path, run, out, SHARD)
    reached(out, 1)
    started.processes[asked].terminate()
    results = started.results()
    last = RunFolder(out).read_metrics()[-1]["step"]
    for error in results:
        assert type(error).__name__ == "InterruptedRun"
        assert f"stopped by SIGTERM after step {last}" in str(error)
    assert (out / "checkpoints" / f"step-{last:06d}").is_dir()
    goes_on(out, tmp_path)


def fail_alone(out: Path, kind: Sequence[str], where: str) -> None:
    """Rank 1 has a bug of its own at step 3."""
    from sparring import trainer
    from sparring.parallel import engine

    if os.environ["RANK"] == "1":
        calls = 0

        def broken(*_: Any, **__: Any) -> Any:
            raise KeyError("a bug on one rank")

        def count(self: Any, step: int) -> None:
            nonlocal calls
            calls += 1
            if step == 3:
                if where == "between":
                    broken()
                engine.ShardedLM._hidden = broken
            stepped(self, step)

        stepped = trainer.Trainer._step
        trainer.Trainer._step = count
    run(out, kind)


@pytest.mark.parametrize("where", ["between", pytest.param("within a pass", marks=pytest.mark.slow)])
def test_a_rank_that_fails_by_itself_ends_the_other(where: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = Started(2, tmp_path, fail_alone, out, SHARD, where)
    codes = started.wait(90)
    assert codes[1] == 1
    assert codes[0] not in (None, 0)
    assert type(started.result(1)).__name__ == "KeyError"
    error = started.result(0)
    assert type(error).__name__ == "RankError"
    assert "failed: KeyError: 'a bug on one rank'" in str(error)
    goes_on(out, tmp_path)


def limited(out: Path, kind: Sequence[str]) -> None:
    """From its first checkpoint on, rank 1 can write no more than a little."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit() -> None:
        while not (out / "checkpoints" / "step-000002").is_dir():
            time.sleep(0.005)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    if os.environ["RANK"] == "1":
        threading.Thread(target=limit, daemon=True).start()
    run(out, kind)


def test_a_part_that_cant_be_written_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = Started(2, tmp_path, limited, out, SHARD).results()
    for error in results:
        assert type(error).__name__ == "CheckpointError"
        assert "ulimit -f" in str(error)
    kept = [path.name for path in (out / "checkpoints").iterdir()]
    assert "step-000002" in kept
    assert all(name.startswith("step-") for name in kept)
    goes_on(out, tmp_path)


def filled(out: Path, kind: Sequence[str], free: int) -> None:
    """After step 3 so many bytes are left on the run's disk."""

    class Filling(Recorder):
        def stepped(self, step: int, *_: Any, **__: Any) -> None:
            if step == 3:
                left = shutil.disk_usage(out).free - free
                (out.parent / "filler").write_bytes(bytes(left))

    train(small_run("lsp", *LONG, *kind), out, observer=Filling())


# Full amid a part of the model, amid a part of the moments, before metrics; amid the moments of adapters.
@pytest.mark.parametrize(
    ("kind", "free"),
    [
        (SHARD, 1_000_000),
        pytest.param(SHARD, 5_000_000, marks=pytest.mark.slow),
        pytest.param(SHARD, 0, marks=pytest.mark.slow),
        pytest.param(LORA, 200_000, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_leaves_the_last_good_checkpoint(kind: tuple[str, ...], free: int, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m"):
        out = tmp_path / "disk" / "run"
        for error in Started(2, tmp_path, filled, out, kind, free).results():
            assert type(error).__name__ == ("CheckpointError" if free else "RunFolderError")
            assert "No space left on device" in str(error)
            assert "ree some space" in str(error)
        assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]
        assert verify_checkpoint(out / "checkpoints" / "step-000002") == []
        (tmp_path / "disk" / "filler").unlink()
        goes_on(out, tmp_path)


# --- torchrun ----------------------------------------------------------------------------------------


def torchrun(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The command of docs/scaling.md for two processes here."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "sparring", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


SMALL = ("game.n_queries=6", "game.n_answers=3", "evaluation.every=0", "evaluation.final_n=3", "threads=1")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["TERM", "INT", "KILL"])
def test_torchrun_stopped_and_gone_on_with(how: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launched = torchrun(tmp_path, "train", "lsp", "--out", "run", "steps=1000", "parallel.timeout=10", *SMALL)
    reached(out, 2, 120)
    ranks = sorted(psutil.Process(launched.pid).children(), key=lambda process: process.pid)
    if how == "KILL":
        ranks[-1].kill()
    elif how == "INT":  # a terminal's Ctrl-C reaches all, and torchrun passes it on
        for process in (psutil.Process(launched.pid), *ranks):
            process.send_signal(signal.SIGINT)
    else:
        launched.terminate()
    said, _ = launched.communicate(timeout=90)
    assert launched.returncode != 0
    if how == "KILL":
        assert said.count("Error: rank 1 (process") == 1
        assert not list((out).glob("checkpoints/step-*"))
        return
    last = RunFolder(out).read_metrics()[-1]["step"]
    assert said.count(f"stopped by SIG{how} after step {last}; everything is saved") == 1
    assert said.count("Go on with: sparring train --resume run") == 1
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{last:06d}"]
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("steps: 1000\n", f"steps: {int(str(last)) + 1}\n", 1))
    launched = torchrun(tmp_path, "train", "--resume", "run")
    said, _ = launched.communicate(timeout=120)
    assert launched.returncode == 0, said
    assert said.count(f"resuming after step {last}") == 1
    assert said.count("Report ") == 1
    assert (out / "report.html").is_file()
