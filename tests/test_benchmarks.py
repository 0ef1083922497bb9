"""The benchmarks run and write the rows they promise; what they measure is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparring.lm.base import PromptGroup
from sparring.lm.load import open_lm

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(script: str, *arguments: str) -> None:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_beside_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the peer is an extra: pip install 'sparring[oracle]'")
    run("vs_trl.py", "--quick", "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 2
    for row in rows:
        assert {"case", "seconds", "ratio", "floor_ratio", "peak_memory"} <= row.keys()
        assert row["ratio"] > 0 and row["seconds"]["trl"]["total"] > 0 and row["seconds"]["sparring"]["total"] > 0


@pytest.mark.slow
def test_reward_scoring_gives_trls_scores(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the peer is an extra: pip install 'sparring[oracle]'")
    run("reward_scoring.py", "--quick", "--json", str(tmp_path / "rows.json"))
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["dtype"] == "float32"
    assert row["scores"]["largest_gap"] < 1e-4 < 0.1 < row["scores"]["spread"]
    assert row["real_tokens"] <= row["sparring"]["padded_tokens"] < row["trl"]["padded_tokens"]
    assert row["ratio"].keys() == {"cpu", "wall"}
    assert all(row[side]["cpu"] > 0 and row[side]["peak_memory"] > 0 for side in ("trl", "sparring"))


@pytest.mark.slow
def test_lora_beside_full_and_trl_with_peft(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the peer is an extra: pip install 'sparring[oracle]'")
    run("lora.py", "--quick", "--json", str(tmp_path / "rows.json"))
    agreement, row = json.loads((tmp_path / "rows.json").read_text())
    assert agreement["gaps"].keys() == {"loss", "lora_A", "lora_B"}
    assert max(agreement["gaps"].values()) < 1e-4
    for side in ("trl_lora", "full", "lora"):
        assert {"generate", "reference", "forward_backward", "optimiser", "total"} <= row[side]["seconds"].keys()
        assert row[side]["peak_memory"] > 0 < row[side]["tokens_per_step"]
    assert row["trl_over_lora"]["cpu"] > 0 and row["full_over_lora"]["cpu"] > 0


@pytest.mark.slow
def test_update_and_sampler_at_scale(tmp_path: Path) -> None:
    arguments = ["--shapes", "tiny", "--vocab", "500", "--dtype", "float32", "--checkpointing", "on"]
    arguments += ["--queries", "2", "--answers", "4", "--prompt", "7", "--tokens", "12", "--token-budget", "80"]
    arguments += ["--tunings", "lora", "--sampler", "--sampler-tokens", "6", "--steps", "1"]
    run("update_at_scale.py", *arguments, "--json", str(tmp_path / "rows.json"))
    device, update, sampler = json.loads((tmp_path / "rows.json").read_text())
    assert device["matrix"] > 0 and device["copy"] > 0
    assert update["loss_gap"] < 1e-5 and update["grad_norm_gap"] < 1e-4
    assert {"reference", "forward", "backward", "optimiser"} <= update["sparring"]["seconds"].keys()
    assert update["sparring"]["engine"] == sampler["sparring"]["engine"] == "FastLlama"
    assert 0 < update["sparring"]["peak_share"] < 1
    assert sampler["ratio"]["cpu"] > 0 and sampler["sparring"]["tokens_per_second"] > 0


def test_flops_by_hand_and_as_torch_counts_them() -> None:
    from shapes import Case, Shape, make_model

    small = Shape(hidden=4, intermediate=6, heads=2, kv_heads=1, head_dim=2, layers=1, vocab=5)
    batch = {"queries": 1, "answers": 2, "prompt": 3, "tokens": 2, "token_budget": 100}
    case = Case("small", small, "cpu", "float32", "full", checkpointing=False, **batch)
    # q, o 16 each, k, v 8 each, gate, up, down 24 each: 120 over 3 + 2 · 1 inputs; 4 scored positions; 6 keys seen by
    # the prompt's tokens, 4 by each answer's only input.
    assert case.forward_flops() == (2 * 120 * 5, 2 * 5 * 4 * 4, 4 * 4 * 14)
    assert case.update_flops() == 4 * (1200 + 160 + 224)
    adapters = 32 * (8 + 6 + 6 + 8 + 10 + 10 + 10)
    lora = Case("small", small, "cpu", "float32", "lora", checkpointing=False, **batch)
    assert lora.update_flops() == 3 * (1200 + 160) + 4 * 224 + 3 * 2 * adapters * 5

    engine = open_lm(make_model(case, torch.float32), torch.float32, trainable=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        engine.score([PromptGroup((0, 1, 2), ((3, 4), (4, 3)))])
    counted = counter.get_flop_counts()["Global"]
    assert counted[torch.ops.aten.mm] + counted[torch.ops.aten.addmm] == 1200 + 160


def take_turns(turn, name: str, file: Path, failing: str) -> None:
    while turn.begin():
        with file.open("a") as log:
            log.write(name)
        if name == failing and file.read_text().count(name) == 2:
            raise ValueError("the second one is too much")
        turn.end({"seconds": {}})


def side_a(turn, file: Path) -> None:
    take_turns(turn, "a", file, failing="b")


def side_b(turn, file: Path) -> None:
    take_turns(turn, "b", file, failing="b")


@pytest.mark.slow
def test_sides_alternate_and_one_that_fails_is_told(tmp_path: Path) -> None:
    from sides import SideError, alternate

    with pytest.raises(SideError, match=r"b failed:[\s\S]*the second one is too much"):
        alternate({"a": side_a, "b": side_b}, (tmp_path / "log",), steps=2)
    assert (tmp_path / "log").read_text() == "abab"


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    run("scaling.py", "--quick", "--json", str(tmp_path / "rows.json"), "--figure", str(tmp_path / "plot.png"))
    assert json.loads((tmp_path / "rows.json").read_text())
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.slow
def test_vision_measures_the_second_pass_and_shared_prompts(tmp_path: Path) -> None:
    run("vision.py", "--steps", "2", "--json", str(tmp_path / "vision.json"))
    figures = json.loads((tmp_path / "vision.json").read_text())
    played, alone = figures["pictures"], figures["pictures-answer-only"]
    assert 0 < played["reader_share"] < 1
    assert alone["reader"] < 0.01
    for one in (played, alone):  # each picture once a set of weights: to sample, and at most once more to learn from
        assert one["encoded_policy"] == one["images"]
        assert one["encoded_update"] <= one["images"]
        assert one["encoded_frozen"] <= one["images"]
    assert set(figures["shared_prompts"]["ratio"]) == {"generate", "learn"}


def test_the_vision_experiments_table_by_hand() -> None:
    from vision_experiment import table

    def result(accuracy: float, lsr: float, seconds: float = 1.0) -> dict[str, object]:
        one = {"accuracy": accuracy, "lsr": lsr, "sufficient": 0.5}
        return {"seconds": seconds, "figures": {"0.0": one, "1.0": one}}

    found = {
        "start": {0: result(0.8, 0.2)},
        "answer-only": {1: result(0.9, 0.2, 3.0), 2: result(1.0, 0.1, 5.0)},
        "vision-sr1": {1: result(0.9, 0.1), 2: result(1.0, 0.06)},
    }
    text = table(found)
    assert "| answer-only | 2 | 0.950 ± 0.071 | 0.150 ± 0.071 | 0.500 ± 0.000 |" in text
    assert "| start | 1 | 0.800 | 0.200 | 0.500 |" in text
    assert "- answer-only: 4 ± 1" in text
    # t with one degree of freedom: 12.706 · sd / √2 around the mean.
    assert "T = 0.0, vision-sr1: accuracy above the start +0.150 [-0.485, +0.785]" in text
    assert (
        "LSR above answer-only's -0.070 [-0.451, +0.311], at most half of it in 1 of 2 seeds (largest share 0.60)"
        in text
    )


@pytest.mark.slow
def test_the_experiment_resumes_run_by_run(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--seeds", "1", "--steps", "1", "--seconds", "0.1", "--long", "0"]
    run("experiment.py", *arguments, "--items", "100", "--json", str(tmp_path / "rows.json"))
    results = sorted((tmp_path / "results").glob("*.json"))
    assert len(results) == 16  # eight arms, two bases, one seed
    assert "GRPO, then LSP" in (tmp_path / "table.md").read_text()
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 16
    before = {path: path.stat().st_mtime_ns for path in results}
    results[3].unlink()
    run("experiment.py", *arguments, "--items", "100")
    changed = [path for path in results if path.stat().st_mtime_ns != before[path]]
    assert changed == [results[3]]
