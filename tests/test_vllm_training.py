"""Whole runs whose completions a real vLLM server writes: LoRA and full, killed on either side, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import Recorder, small_run
from ranks import Started, on_ranks
from ringing import ring
from sparring.arena import model_path
from sparring.health.rules import Level
from sparring.rollout.folders import prepare_folder
from sparring.rollout.server import ServerEngine
from sparring.run import resume, train
from sparring.runfolder import RunFolder
from sparring.sampling.vllm import PartedError
from vllm_rollout import RANK, RolloutServer

pytestmark = pytest.mark.vllm

QUICK = ("rollout.patience=5", "rollout.silence=20", "rollout.timeout=120", "learner.lr=0.003", "evaluation.every=0")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with an output layer of its own, as vLLM on a CPU needs it."""
    return prepare_folder(model_path(), tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def adapters(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutServer]:
    server = RolloutServer(start, tmp_path_factory.mktemp("server") / "lora.log", lora_rank=RANK)
    yield server
    server.end()


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutServer]:
    server = RolloutServer(start, tmp_path_factory.mktemp("server") / "full.log")
    yield server
    server.end()


def settings(url: str, tuning: str, *overrides: str) -> tuple[str, ...]:
    adapter = (f"model.lora.rank={RANK}",) if tuning == "lora" else ()
    return ("rollout.engine=vllm", f"rollout.url={url}", f"model.tuning={tuning}", *adapter, *QUICK, *overrides)


def figures(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A figure's values; a step that trained no such role has none."""
    return [float(row[name]) for row in rows if row.get(name) is not None]


def test_lsp_with_an_adapter_and_in_full_rolls_out_on_a_server(
    adapters: RolloutServer, whole: RolloutServer, tmp_path: Path
) -> None:
    for tuning, server in (("lora", adapters), ("full", whole)):
        out = tmp_path / tuning
        evaluation = train(small_run("lsp", *settings(server.up(), tuning)), out)
        server.end()  # two at once want more memory than a small machine has
        server.process = None
        rows = RunFolder(out).read_metrics()[1:]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        for name, value in (("sampler_gap/probe", 0), ("sampler_gap/solver", 0), ("importance/mean/solver", 1)):
            found = figures(rows, name)
            assert found
            assert all(abs(number - value) < 1e-3 for number in found)
        assert max(figures(rows, "kl/solver")) > 1e-4  # what is written moved with what is learned
        assert evaluation is not None
        assert len(list((out / "rollout").glob("version-*"))) == 1


def test_a_server_killed_in_a_run_ends_it_by_name_and_the_run_goes_on(adapters: RolloutServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = small_run("lsp", *settings(adapters.up(), "lora", "checkpoint.every=1"))

    class Killer(Recorder):
        def stepped(self, step: int, *rest: Any) -> None:
            super().stepped(step, *rest)
            if step == 3:
                adapters.kill()

    began = time.monotonic()
    with pytest.raises(ValueError, match=adapters.url.removeprefix("http://")):
        train(config, out, observer=Killer())
    assert time.monotonic() - began < 120
    adapters.up()
    assert resume(out) is not None
    assert [row["step"] for row in RunFolder(out).read_metrics()] == list(range(7))


def killed_in_a_run(out: Path, *given: str) -> None:
    """A run from the command line, killed -9 after its third step."""
    command = [str(Path(sys.executable).with_name("sparring")), "train", "lsp", "--out", str(out), *given]
    short = (
        "steps=6",
        "checkpoint.every=1",
        "evaluation.final_n=3",
        "threads=1",
        "game.n_queries=6",
        "game.n_answers=3",
    )
    process = subprocess.Popen([*command, *short], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(RunFolder(out).read_metrics()) < 4:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def goes_on(out: Path) -> None:
    assert resume(out) is not None
    rows = RunFolder(out).read_metrics()
    assert [row["step"] for row in rows] == list(range(7))
    assert max(figures(rows, "sampler_gap/probe")) < 1e-3


def test_a_trainer_killed_in_a_run_goes_on(adapters: RolloutServer, tmp_path: Path) -> None:
    killed_in_a_run(tmp_path / "run", *settings(adapters.up(), "lora"))
    goes_on(tmp_path / "run")


def test_full_fine_tuning_goes_on_after_trainer_and_server_were_killed(whole: RolloutServer, tmp_path: Path) -> None:
    killed_in_a_run(tmp_path / "run", *settings(whole.up(), "full"))
    whole.kill()
    whole.up()
    goes_on(tmp_path / "run")


def test_an_update_that_does_not_land_stops_the_run(
    adapters: RolloutServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run("lsp", *settings(adapters.up(), "lora", "rollout.gap_limit=0.001"), "learner.lr=0.05")
    monkeypatch.setattr(ServerEngine, "update", lambda *_: None)
    with pytest.raises(PartedError, match=r"after update 1 .* rollout\.gap_limit"):
        train(config, tmp_path / "run")


def test_a_server_of_another_model_stops_the_run_before_its_first_step(adapters: RolloutServer, tmp_path: Path) -> None:
    """Same shapes, same vocabulary, other weights; its tokenizer is never used, as ids go in and come out."""
    other = Path(__file__).parent.parent / "benchmarks" / "arena-base-b"
    config = small_run("lsp", *settings(adapters.up(), "lora", f"model.path={other}"))
    with pytest.raises(PartedError, match=r"after update 0 .* it serves another model"):
        train(config, tmp_path / "run")


def test_overlap_is_one_update_stale_and_says_so(adapters: RolloutServer, tmp_path: Path) -> None:
    train(small_run("lsp", *settings(adapters.up(), "lora", "rollout.overlap=true")), tmp_path / "run")
    rows = RunFolder(tmp_path / "run").read_metrics()[1:]
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1, 1, 1, 1]
    assert max(figures(rows, "sampler_gap/probe")) < 1e-3
    assert max(figures(rows[1:], "sampler_gap/solver")) > 1e-3


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_run_that_goes_back_takes_the_server_with_it(
    tuning: str, adapters: RolloutServer, whole: RolloutServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = adapters if tuning == "lora" else whole
    ring(monkeypatch, {4: Level.ALARM})
    back = ("health.on_alarm=roll_back", "health.lookback=1", "checkpoint.every=2", "rollout.overlap=true")
    train(small_run("lsp-zero", *settings(server.up(), tuning, *back)), tmp_path / "run")
    server.end()
    server.process = None
    folder = RunFolder(tmp_path / "run")
    rows = folder.read_metrics()[1:]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["health/rollbacks"] for row in rows] == [0, 0, 1, 1, 1, 1]
    # The step after going back is played by the weights that were gone back to, not by those left.
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 0, 1, 1, 1]
    gaps = figures(rows, "sampler_gap/probe")
    assert gaps
    assert max(gaps) < 1e-3


def two_ranks(overrides: tuple[str, ...], out: Path) -> float:
    evaluation = train(small_run("lsp", *overrides), out)
    assert evaluation is not None
    return evaluation.overall.accuracy


def test_two_ranks_roll_out_on_one_server(adapters: RolloutServer, whole: RolloutServer, tmp_path: Path) -> None:
    for tuning, server, more in (
        ("lora", adapters, ()),
        ("lora", adapters, ("rollout.overlap=true",)),
        ("full", whole, ("parallel.strategy=shard", "model.engine=generic")),
    ):
        out = tmp_path / f"{tuning}-{len(more)}"
        given = settings(server.up(), tuning, "steps=3", *more)
        accuracies = on_ranks(2, tmp_path, two_ranks, given, out)
        assert accuracies[0] == accuracies[1]
        rows = RunFolder(out).read_metrics()[1:]
        assert [row["step"] for row in rows] == [1, 2, 3]
        assert max(figures(rows, "sampler_gap/probe")) < 1e-3
        assert max(figures(rows, "kl/challenger")) > 1e-5  # what is written moved with what is learned
        if server is not whole and more:
            assert [row["rollout/staleness"] for row in rows] == [0, 1, 1]
            server.end()  # two servers at once want more memory than a small machine has
            server.process = None


def test_ranks_whose_server_dies_end_together_and_go_on(adapters: RolloutServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = settings(adapters.up(), "lora", "checkpoint.every=1", "rollout.overlap=true")
    started = Started(2, tmp_path, two_ranks, given, out)
    while len(RunFolder(out).read_metrics()) < 3:
        time.sleep(0.05)
    adapters.kill()
    for error in started.results(120):
        assert isinstance(error, ValueError)
        assert adapters.url.removeprefix("http://") in str(error)
    adapters.up()
    on_ranks(2, tmp_path, resume, out)
    assert [row["step"] for row in RunFolder(out).read_metrics()] == list(range(7))


def test_a_run_rolls_out_on_two_servers(adapters: RolloutServer, start: Path, tmp_path: Path) -> None:
    second = RolloutServer(start, tmp_path / "second.log", lora_rank=RANK)
    second.start()
    urls = f"{adapters.up()},{second.up()}"
    try:
        train(small_run("lsp", *settings(urls, "lora", "steps=2")), tmp_path / "run")
    finally:
        second.end()
    rows = RunFolder(tmp_path / "run").read_metrics()[1:]
    assert max(figures(rows, "sampler_gap/probe") + figures(rows, "sampler_gap/solver")) < 1e-3
