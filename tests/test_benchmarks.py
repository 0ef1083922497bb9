"""The benchmarks run and write the rows they promise; what they measure is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


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
def test_scaling(tmp_path: Path) -> None:
    run("scaling.py", "--quick", "--json", str(tmp_path / "rows.json"), "--figure", str(tmp_path / "plot.png"))
    assert json.loads((tmp_path / "rows.json").read_text())
    assert (tmp_path / "plot.png").stat().st_size > 10_000


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
