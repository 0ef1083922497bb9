"""Two processes under torchrun play the run that one process plays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparring.runfolder import RunFolder

pytestmark = pytest.mark.slow

SMALL = (
    "game.n_queries=6", "game.n_answers=3", "steps=3", "threads=1", "evaluation.every=0", "evaluation.final_n=3",
    "game.solver.max_new_tokens=24", "game.quality.source=reference", "checkpoint.every=1",
)  # fmt: skip


def sparring(out: Path, processes: int, *arguments: str) -> None:
    one = [sys.executable, "-m", "sparring"]
    several = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", str(processes), "-m", "sparring"]
    done = subprocess.run(
        [*(several if processes > 1 else one), "train", *arguments],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((out / "model").glob("*.safetensors"))


def assert_close(left: Path, right: Path) -> None:
    """Every figure but the clock's, to 1e-4."""
    rows = zip(RunFolder(left).read_metrics(), RunFolder(right).read_metrics(), strict=True)
    for one, two in rows:
        assert one.keys() == two.keys()
        for name, value in one.items():
            if not name.startswith(("seconds/", "tokens_per_second")):
                assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (one["step"], name)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_two_processes_play_the_run_of_one(tuning: str, tmp_path: Path) -> None:
    for count, name in ((1, "one"), (2, "two")):
        sparring(tmp_path / name, count, "lsp", "--out", str(tmp_path / name), f"model.tuning={tuning}", *SMALL)
    assert_close(tmp_path / "one", tmp_path / "two")
    assert RunFolder(tmp_path / "one").read_turns([1]) == RunFolder(tmp_path / "two").read_turns([1])
