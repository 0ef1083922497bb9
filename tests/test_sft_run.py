"""Supervised runs: what they leave, that they survive, and that self-play goes on from them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from conftest import Recorder, small_run, untimed
from ranks import PROCESSES, on_ranks
from sparring.arena.language import Query, answer, draw_word, solver_prompt
from sparring.cli_evaluated import subject
from sparring.cli_sft import sft
from sparring.config import ConfigError, resolve, validated
from sparring.console import Commands
from sparring.files import RunFolderError
from sparring.learner import DivergedError
from sparring.models import locate
from sparring.report.page import page_html
from sparring.run import train as play
from sparring.runfolder import RunFolder
from sparring.settings.sft import SFTConfig
from sparring.sft.run import resume, train
from sparring.trainer import InterruptedRun

SMALL = (
    "model.dtype=float32",
    "threads=1",
    "learner.lr=3e-4",
    "learner.batch=8",
    "evaluation.every=4",
    "checkpoint.every=2",
    "epochs=2",
)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Puzzles that the shipped model often errs at, solved."""
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for _ in range(count):
        query = Query("reverse", draw_word(rng, "reverse", 6), 6)
        found.append({"prompt": solver_prompt(str(query)), "completion": answer(query)})
    return found


def write(file: Path, records: list[Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "puzzles.jsonl", rows(40))


def configured(data: Path, *overrides: str) -> SFTConfig:
    return resolve(SFTConfig(), None, (f"data.path={data}", *SMALL, *overrides))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A run of ten steps that nothing disturbed."""
    seen, out = Recorder(), tmp_path_factory.mktemp("runs") / "sft"
    assert train(configured(data), out, observer=seen) == 10
    return out, seen


def assert_same_run(left: Path, right: Path) -> None:
    """Bit for bit: metrics, exported weights, Adam's moments."""
    a, b = RunFolder(left), RunFolder(right)
    assert untimed(a.read_metrics()) == untimed(b.read_metrics())
    assert (a.model / "model.safetensors").read_bytes() == (b.model / "model.safetensors").read_bytes()
    states = [load_file(sorted(run.checkpoints.glob("step-*"))[-1] / "optimizer.safetensors") for run in (a, b)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_it_learns_and_measures_what_it_did_not_see(finished: tuple[Path, Recorder]) -> None:
    out, seen = finished
    metrics = RunFolder(out).read_metrics()
    assert [row["step"] for row in metrics] == list(range(11))
    held_out = {int(row["step"] or 0): float(row["nll/held_out"] or 0) for row in metrics if "nll/held_out" in row}
    assert list(held_out) == [0, 4, 8, 10]
    assert held_out[10] < held_out[0]
    learned = [float(row["nll/train"] or 0) for row in metrics[1:]]
    assert np.mean(learned[-3:]) < np.mean(learned[:3])
    # 38 rows (2 of 40 are held out), 8 a step: each twice, the last step has what is left.
    assert [row["tokens/trained"] for row in metrics[1:]] == [7 * 8] * 9 + [7 * 4]
    assert metrics[-1]["epoch"] == 2.0
    assert seen.began == (0, 10)
    assert seen.steps[5][0]["nll/held_out"] == held_out[4]
    assert any("38 rows with 266 tokens to learn, 2 rows held out" in message for message in seen.messages)


def test_warm_up_and_cosine_over_the_run(finished: tuple[Path, Recorder]) -> None:
    rates = [float(row["lr"] or 0) for row in RunFolder(finished[0]).read_metrics()[1:]]
    assert rates[0] == 3e-4 and rates == sorted(rates, reverse=True) and 0 < rates[-1] < 2e-5


def test_self_play_goes_on_from_it_and_tells_both_stages(finished: tuple[Path, Recorder], tmp_path: Path) -> None:
    out, _ = finished
    assert locate(str(out)) == out / "model"
    play(small_run("grpo", f"model.path={out}", "steps=1", "evaluation.every=0"), tmp_path / "grpo")
    first, second = json.loads((tmp_path / "grpo" / "lineage.json").read_text())["stages"]
    assert (first["recipe"], second["recipe"]) == ("sft", "grpo")
    assert (first["steps"], first["results"]["steps"], first["start"]) == (10, 10, "arena")
    before, after = first["results"]["metrics"]["nll/held_out"]
    assert after < before
    for text in ((tmp_path / "grpo" / "model" / "README.md").read_text(), page_html([tmp_path / "grpo"])):
        assert "held-out NLL, nats a token" in text and "supervised fine-tuning" in text
    assert "puzzles.jsonl" in page_html([out])


def test_an_evaluation_takes_it_for_a_model(finished: tuple[Path, Recorder]) -> None:
    out, _ = finished
    for given in (out, out / "model"):
        asked = subject(str(given), ())
        assert (asked.path, asked.base, asked.config.model.path) == (str(out), None, str(out))


def test_its_exported_model_is_its_last_checkpoint(finished: tuple[Path, Recorder]) -> None:
    out, _ = finished
    start, trained = (load_file(Path(folder) / "model.safetensors") for folder in (locate("arena"), out / "model"))
    assert any(not torch.equal(start[name], trained[name]) for name in start)
    last = load_file(out / "checkpoints" / "step-000010" / "model" / "model.safetensors")
    assert all(torch.equal(last[name], trained[name]) for name in last)


# --- surviving ---------------------------------------------------------------------------------------


def go_on(config: SFTConfig, out: Path) -> None:
    """In a process of its own."""
    if (out / "config.yaml").exists():
        resume(out)
    else:
        train(config, out)


def test_kill_9_changes_nothing(data: Path, finished: tuple[Path, Recorder], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for reached in (3, 6):
        process = PROCESSES.Process(target=go_on, args=(configured(data), out))
        process.start()
        while len(RunFolder(out).read_metrics()) <= reached:
            assert process.is_alive()
            time.sleep(0.002)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert not (out / "model").exists()
    assert resume(out) == 10
    assert_same_run(out, finished[0])


class Stopping(Recorder):
    """Sends the process a signal after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def stepped(self, step: int, metrics: Mapping[str, float], turns: Any, payoffs: Any) -> None:
        super().stepped(step, metrics, turns, payoffs)
        if step == self._step:
            signal.raise_signal(signal.SIGINT)


def test_a_signal_saves_and_says_so(data: Path, finished: tuple[Path, Recorder], tmp_path: Path) -> None:
    with pytest.raises(InterruptedRun, match="after step 5"):
        train(configured(data), tmp_path / "run", observer=Stopping(5))
    again = Recorder()
    resume(tmp_path / "run", observer=again)
    assert again.began == (5, 10) and "resuming after step 5" in again.messages
    assert again.steps[6][0]["nll/held_out"] == finished[1].steps[6][0]["nll/held_out"]
    assert_same_run(tmp_path / "run", finished[0])


def test_other_data_are_refused_on_the_way(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", rows(24))
    with pytest.raises(InterruptedRun):
        train(configured(file), tmp_path / "run", observer=Stopping(1))
    write(file, rows(24, seed=1))
    with pytest.raises(RunFolderError, match="have changed since step 1"):
        resume(tmp_path / "run")


def test_what_diverges_is_not_kept(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"learner\.lr") as caught:
        train(configured(data, "learner.lr=1e30", "learner.warmup=0", "learner.schedule=constant"), out)
    assert (out / f"failed-batch-step-{len(RunFolder(out).read_metrics()):06d}.json").is_file()
    assert not (out / "model").exists()
    for file in out.glob("checkpoints/*/model/model.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(file).values())
    assert "nothing of this step is kept" in str(caught.value)


# --- what is trained ---------------------------------------------------------------------------------


def test_lora_learns_and_is_merged(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "run"
    train(configured(data, "model.tuning=lora", "model.lora.rank=8", "learner.lr=3e-3"), out)
    metrics = RunFolder(out).read_metrics()
    assert float(metrics[-1]["nll/held_out"] or 0) < float(metrics[0]["nll/held_out"] or 0)
    assert not (out / "model" / "adapter_config.json").exists()
    assert (out / "checkpoints" / "step-000010" / "model" / "adapter_config.json").exists()


def test_frozen_parts_stay_as_they_are(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(configured(data, "frozen=[embed_tokens, mlp]", "epochs=0.5"), out)
    start, trained = (load_file(Path(folder) / "model.safetensors") for folder in (locate("arena"), out / "model"))
    changed = {name for name in start if not torch.equal(start[name], trained[name])}
    assert changed and not any("embed_tokens" in name or ".mlp." in name for name in changed)
    with pytest.raises(ConfigError, match="has tower in its name"):
        train(configured(data, "frozen=tower"), tmp_path / "unknown")
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        train(configured(data, "frozen=model"), tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_two_ranks_do_what_one_does(data: Path, finished: tuple[Path, Recorder], tmp_path: Path) -> None:
    for strategy in ("replicate", "shard"):
        out = tmp_path / strategy
        config = configured(data, f"parallel.strategy={strategy}", "checkpoint.every=0")
        assert on_ranks(2, tmp_path, train, config, out) == [10, 10]
        alone, together = (untimed(RunFolder(run).read_metrics()) for run in (finished[0], out))
        for one, other in zip(alone, together, strict=True):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-5)


# --- rows that can't be used -------------------------------------------------------------------------


def test_bad_rows_are_counted_named_and_skipped(tmp_path: Path) -> None:
    bad = [{"prompt": "?"}, {"messages": [{"role": "user", "content": "?"}]}]
    seen, out = Recorder(), tmp_path / "run"
    file = write(tmp_path / "rows.jsonl", [*rows(3), *bad, *rows(3, seed=1)])
    train(configured(file, "epochs=1"), out, observer=seen)
    told = "\n".join(seen.messages)
    assert "row 4 can't be used: it has neither messages" in told and "row 5 can't be used: it has no message" in told
    assert "2 rows can't be used" in told and "6 rows with" in told
    kept = [json.loads(line) for line in (out / "skipped-rows.jsonl").read_text().splitlines()]
    assert [row["row"] for row in kept] == [4, 5]


def test_all_rows_bad_is_an_error_and_leaves_no_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": "?"}] * 3)
    with pytest.raises(ValueError, match=r"nothing to learn from: of 3 rows 3 can't be used \(row 1: it has neither"):
        train(configured(file), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="holds no row"):
        train(configured(write(tmp_path / "none.jsonl", [])), tmp_path / "run")


def test_over_long_rows_are_dropped_or_cut(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", rows(8))
    with pytest.raises(ValueError, match=r"8 are longer than 12 tokens \(data.max_tokens\)"):
        train(configured(file, "data.max_tokens=12"), tmp_path / "dropped")
    seen = Recorder()
    train(configured(file, "data.max_tokens=12", "data.too_long=cut", "epochs=1"), tmp_path / "cut", observer=seen)
    assert "8 rows of more than 12 tokens (data.max_tokens) are cut there" in seen.messages
    assert RunFolder(tmp_path / "cut").read_metrics()[1]["tokens/read"] == 8 * 12


def test_the_models_context_bounds_a_row_too(tmp_path: Path) -> None:
    longer = {"prompt": "Solver:reverse:" + "abcde" * 30, "completion": "edcba" * 30}
    seen = Recorder()
    train(configured(write(tmp_path / "r.jsonl", [*rows(4), longer]), "epochs=1"), tmp_path / "run", observer=seen)
    assert any(message.startswith("1 rows of more than 128 tokens") for message in seen.messages)


def test_a_folder_of_parquet_files_with_several_forms(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    asked = rows(6)
    messages = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in asked
    ]
    datasets.Dataset.from_list(messages).to_parquet(tmp_path / "data" / "train.parquet")
    train(configured(tmp_path / "data", "epochs=1"), tmp_path / "folder")
    train(configured(write(tmp_path / "pairs.jsonl", asked), "epochs=1"), tmp_path / "pairs")
    one, other = (untimed(RunFolder(tmp_path / name).read_metrics()) for name in ("folder", "pairs"))
    assert one == other


# --- the command -------------------------------------------------------------------------------------


@click.group(cls=Commands)
def main() -> None:
    """The command line."""


main.add_command(sft)


def sparring(*words: object) -> Result:
    return CliRunner().invoke(main, ["sft", *map(str, words)])


def test_the_command_runs_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = sparring("arena", data, "--out", out, *SMALL, "epochs=1")
    assert result.exit_code == 0, result.output
    assert "held-out NLL" in result.output and f"--init {out}" in result.output
    assert (out / "model" / "model.safetensors").is_file()
    again = sparring("arena", data, "--out", out, *SMALL)
    assert again.exit_code == 1 and "holds a run already" in again.stderr
    assert sparring("--resume", out).exit_code == 0  # finished: nothing is left to do


def test_settings_by_file_and_by_hand(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    printed = sparring("arena", data, "--dry-run", "learner.lr=2e-5", "data.turns=last").stdout
    file.write_text(printed)
    config = resolve(SFTConfig(), file)
    assert (config.learner.lr, config.data.turns, config.model.path) == (2e-5, "last", "arena")
    assert config.data.path == str(data)
    assert sparring("--config", file, "--dry-run").stdout == printed
    other = sparring("--config", file, "learner.lr=1e-6", "--dry-run").stdout
    assert "lr: 1.0e-06" in other and "path: arena" in other
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "name a MODEL"),
        (("arena",), 2, "name a MODEL"),
        (("arena", "rows.jsonl", "learner.rate=1"), 1, "'learner.lr'"),
        (("arena", "rows.jsonl", "learner.lr=fast"), 1, "learner.lr"),
        (("arena", "rows.jsonl", "model.reference=other"), 1, "reference is for self-play"),
        (("arena", "none.jsonl", "--out", "out"), 1, "data.path: there is no prompt file none.jsonl"),
        (("--resume", "run", "arena"), 2, "--resume goes on"),
        (("--resume", "nowhere"), 1, "holds no run"),
    ],
)
def test_mistakes_get_one_message(
    words: tuple[str, ...], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = sparring(*words)
    assert result.exit_code == code, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_each_kind_of_run_is_resumed_by_its_own_command(finished: tuple[Path, Recorder], tmp_path: Path) -> None:
    import yaml

    with pytest.raises(ConfigError, match="settings of `sparring sft`"):
        validated(yaml.safe_load((finished[0] / "config.yaml").read_text()))
    played = tmp_path / "played"
    RunFolder(played).create(small_run("lsp").to_yaml(), {"stages": []}).close()
    result = sparring("--resume", played)
    assert result.exit_code == 1 and "settings of `sparring train`" in result.stderr


def test_every_setting_is_listed() -> None:
    text = sparring("--settings").stdout
    assert "learner.lr=1e-05" in text and "data.too_long=drop" in text and "export.adapter=merged" in text
