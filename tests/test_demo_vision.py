"""`sparring demo-vision`: two runs from one start, looked at, on one page; and what an interruption leaves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from conftest import untimed
from sparring.cli import main
from sparring.evaluation.document import read_document
from sparring.runfolder import RunFolder

SMALL = ("--steps", "3", "game.n_queries=4", "game.n_answers=3", "evaluation.n=4", "evaluation.final_n=12", "threads=1")
ARMS = ("answer-only", "vision-sr1")


def demo(out: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["demo-vision", "--out", str(out), *SMALL, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("demo") / "both"
    result = demo(out)
    assert result.exit_code == 0, result.output
    return out, result


def test_both_runs_take_the_same_steps_from_one_start_and_differ_by_the_second_pass(
    finished: tuple[Path, Result],
) -> None:
    out, _ = finished
    rows = {arm: [row for row in RunFolder(out / arm).read_metrics() if "loss" in row] for arm in ARMS}
    assert [len(some) for some in rows.values()] == [3, 3]
    assert "vision/reader/all" in rows["vision-sr1"][0]
    assert "vision/reader/all" not in rows["answer-only"][0]


def test_start_and_both_are_looked_at_on_the_same_pictures_greedily_and_at_temperature_1(
    finished: tuple[Path, Result],
) -> None:
    out, _ = finished
    places = {"start": "answer-only", "answer-only": "answer-only", "vision-sr1": "vision-sr1"}
    ids: list[list[str]] = []
    for name, arm in places.items():
        for called in ("lsr", "lsr-t1"):
            file = out / arm / "evaluations" / f"{called}{'-start' if name == 'start' else ''}.json"
            document = read_document(file)
            assert (document.kind, document.overall.n) == ("lsr", 12)
            assert document.model.endswith("pictures" if name == "start" else name)
            record = json.loads(file.read_text())
            assert set(record["fidelity"]) == {"all", "asked", "unasked"}
            looks = file.with_name(f"{file.stem}-looks.jsonl").read_text().splitlines()
            ids.append([json.loads(line)["id"] for line in looks])
            right = [json.loads(line)["right"] for line in looks]
            assert record["overall"]["accuracy"]["value"] == pytest.approx(sum(right) / 12)
    assert all(some == ids[0] for some in ids)


def test_it_ends_with_the_table_the_page_and_what_to_do_next(finished: tuple[Path, Result]) -> None:
    out, result = finished
    for word in (
        "start, greedy",
        "answer-only, T = 1",
        "vision-sr1, greedy",
        "ability brought out",
        "sparring eval lsr",
    ):
        assert word in " ".join(result.output.split()), result.output
    page = (out / "report.html").read_text()
    assert "against LSR" in page
    assert "language shortcuts from" in page
    assert all(any((out / arm / "pictures").iterdir()) for arm in ARMS)


def test_the_same_command_again_trains_nothing_and_other_settings_are_refused(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    kept = _kept(out)
    other = demo(out, "learner.lr=0.001")
    assert other.exit_code == 2
    assert "was begun with learner.lr=0.0003, not 0.001" in " ".join(other.output.split())
    again = demo(out)
    assert again.exit_code == 0, again.output
    assert kept == {
        file: file.stat().st_mtime_ns for file in [*out.glob("*/model/*"), *out.glob("*/evaluations/outputs-*")]
    }
    assert sum(file.name.startswith("outputs-") for file in kept) >= 6


def _kept(out: Path) -> dict[Path, int]:
    """When models and answers were written."""
    files = [*out.glob("*/model/*"), *out.glob("*/evaluations/outputs-*")]
    return {file: file.stat().st_mtime_ns for file in files}


def test_threads_that_were_not_named_may_differ_when_it_goes_on(finished: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "both"
    shutil.copytree(finished[0], out)
    for arm in ARMS:
        file = out / arm / "config.yaml"
        file.write_text(file.read_text().replace("threads: 1\n", "threads: 7\n"))
    words = [word for word in SMALL if word != "threads=1"]
    again = CliRunner().invoke(main, ["demo-vision", "--out", str(out), *words])
    assert again.exit_code == 0, again.output


def test_what_the_demo_compares_can_not_be_set() -> None:
    refused = CliRunner().invoke(main, ["demo-vision", "game.perception.visual_weight=0.5"])
    assert refused.exit_code == 2
    assert "game.perception.visual_weight is what the demo compares" in refused.output


@pytest.mark.slow
def test_killed_in_each_run_it_goes_on_and_ends_the_same(finished: tuple[Path, Result], tmp_path: Path) -> None:
    whole, _ = finished
    out = tmp_path / "killed"
    words = [sys.executable, "-m", "sparring", "demo-vision", "--out", str(out), *SMALL]
    for arm in ARMS:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        folder = RunFolder(out / arm)
        while process.poll() is None and len(folder.read_metrics()) < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert demo(out).exit_code == 0
    for arm in ARMS:
        left, right = RunFolder(whole / arm), RunFolder(out / arm)
        assert untimed(left.read_metrics()) == untimed(right.read_metrics())
        assert left.read_turns() == right.read_turns()
        assert (left.model / "model.safetensors").read_bytes() == (right.model / "model.safetensors").read_bytes()
        looked = [json.loads((folder.path / "evaluations/lsr-t1.json").read_text()) for folder in (left, right)]
        assert looked[0]["overall"] == looked[1]["overall"]
