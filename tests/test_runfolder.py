"""A run's folder against real locks, torn files and full disks."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparring.files import RunFolderError, free_bytes, write_json_atomic, write_text_atomic
from sparring.runfolder import RunFolder

HOLD = """
import sys, time
from sparring.runfolder import RunFolder
folder = RunFolder(sys.argv[1]).create("seed: 1\\n", {"model": "base"})
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "run").create("seed: 1\n", {"model": "base", "stage": 1}) as made:
        yield made


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond `size` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_create_then_open(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a" / "run").create("seed: 1\n", {"model": "base"}) as made:
        assert made.config.read_text() == "seed: 1\n"
        assert made.read_lineage() == {"model": "base"}
        assert made.read_metrics() == []
        assert made.read_turns() == []
    with RunFolder(tmp_path / "a" / "run").open() as again:
        assert again.config.read_text() == "seed: 1\n"


def test_existing_run_is_refused_and_untouched(tmp_path: Path) -> None:
    with RunFolder(tmp_path).create("seed: 1\n", {}) as made:
        made.append_metrics({"step": 1})
    with pytest.raises(RunFolderError, match=r"holds a run already .*: resume it \(--resume .*\) or choose another"):
        RunFolder(tmp_path).create("seed: 2\n", {})
    with RunFolder(tmp_path).open() as again:  # the refused one gave its lock back
        assert again.config.read_text() == "seed: 1\n"
        assert again.read_metrics() == [{"step": 1}]


def test_other_files_do_not_make_it_a_run(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("started by a shell's redirection")
    RunFolder(tmp_path).create("seed: 1\n", {}).close()
    assert (tmp_path / "log.txt").exists()


def test_opening_no_run_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder(tmp_path / "nothing").open()
    assert not (tmp_path / "nothing").exists()


def test_lock_between_processes_names_the_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        host = os.uname().nodename
        expected = rf"run is in use by process {child.pid} on {host} \(started .*\): choose another --out or stop it"
        with pytest.raises(RunFolderError, match=expected):
            RunFolder(path).open()
        with pytest.raises(RunFolderError, match=expected):
            RunFolder(path).create("seed: 2\n", {})
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        with RunFolder(path).open() as taken:
            assert json.loads((path / ".lock.json").read_text())["pid"] == os.getpid()
            assert taken.config.read_text() == "seed: 1\n"
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def test_one_process_cannot_hold_a_folder_twice(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"):
        RunFolder(folder.path).open()
    (folder.path / ".lock.json").unlink()
    with pytest.raises(RunFolderError, match="in use by another process"):
        RunFolder(folder.path).open()


def test_metrics_come_back_bit_for_bit(folder: RunFolder) -> None:
    rng = random.Random(0)
    floats = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(500)]
    finite = {f"m{index}": value for index, value in enumerate(floats) if math.isfinite(value)}
    records = [{"step": 1, "zero": -0.0, **finite}, {"step": 2, "note": "é\n", "kl": None, "big": 2**70}]
    for record in records:
        folder.append_metrics(record)
    assert repr(folder.read_metrics()) == repr(records)
    assert len(folder.metrics.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"step": 3, "loss": float("nan")}, "'loss' is nan at step 3"),
        ({"step": 3, "kl": float("-inf")}, "'kl' is -inf"),
        ({"step": 3, "list": [1]}, "'list' must be a number"),
        ({"loss": 1.0}, "integer 'step'"),
    ],
)
def test_bad_metrics_are_refused_by_name(folder: RunFolder, record: dict, message: str) -> None:
    folder.append_metrics({"step": 1, "loss": 0.5})
    with pytest.raises(RunFolderError, match=message):
        folder.append_metrics(record)
    assert folder.read_metrics() == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("cut", [1, 2, 10])
def test_torn_last_line_is_dropped_and_said(folder: RunFolder, cut: int) -> None:
    for step in range(1, 4):
        folder.append_metrics({"step": step, "loss": 0.1 * step})
    whole = folder.metrics.read_bytes()
    folder.metrics.write_bytes(whole[:-cut])
    complete = cut == 1  # only the newline is missing: the record is whole
    assert [record["step"] for record in folder.read_metrics()] == ([1, 2, 3] if complete else [1, 2])
    said: list[str] = []
    dropped = folder.truncate_metrics(3, said.append)
    assert dropped == (0 if complete else 1)
    assert len(said) == dropped
    assert all("torn last line" in line for line in said)
    folder.append_metrics({"step": 9})
    expected = whole if complete else b"".join(whole.splitlines(keepends=True)[:2])
    assert folder.metrics.read_bytes() == expected + b'{"step": 9}\n'


def test_truncate_drops_later_steps_and_keeps_bytes(folder: RunFolder) -> None:
    said: list[str] = []
    assert folder.truncate_metrics(0, said.append) == 0  # nothing there yet
    for step in (1, 2, 2, 3, 4):
        folder.append_metrics({"step": step, "loss": 1 / 3})
    lines = folder.metrics.read_bytes().splitlines(keepends=True)
    assert folder.truncate_metrics(2, said.append) == 2
    assert folder.metrics.read_bytes() == b"".join(lines[:3])
    assert len(said) == 1
    assert "dropped 2 lines after step 2" in said[0]
    assert folder.truncate_metrics(2, said.append) == 0
    assert len(said) == 1


def test_damage_in_the_middle_is_an_error_with_its_line(folder: RunFolder) -> None:
    for step in (1, 2, 3):
        folder.append_metrics({"step": step})
    folder.metrics.write_bytes(folder.metrics.read_bytes().replace(b'{"step": 2}', b'{"st'))
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl line 2 is damaged"):
        folder.read_metrics()


def test_full_disk_leaves_no_half_line(folder: RunFolder) -> None:
    folder.append_metrics({"step": 1, "text": "a" * 100})
    before = folder.metrics.read_bytes()
    with (
        file_size_limit(len(before) + 50),
        pytest.raises(RunFolderError, match=r"could not be written.*MB free"),
    ):
        folder.append_metrics({"step": 2, "text": "b" * 100})
    assert folder.metrics.read_bytes() == before
    folder.append_metrics({"step": 2})
    assert [record["step"] for record in folder.read_metrics()] == [1, 2]


def test_full_disk_keeps_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_json_atomic(path, {"n": 1})
    with file_size_limit(1000), pytest.raises(RunFolderError, match=r"evaluation\.json could not be written"):
        write_text_atomic(path, "x" * 5000)
    assert json.loads(path.read_text()) == {"n": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_json_refuses_what_json_lacks(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be written as JSON"):
        write_json_atomic(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


ROWS = [
    {
        "role": "solver",
        "reward": 1 / 3,
        "tokens": 12,
        "parts": {"quality": 0.1, "format": None},
        "ids": [1, 2],
    },
    {"role": "challenger", "reward": None, "tokens": 3, "parts": None, "ids": [], "text": "é\n\x00"},
]


def test_turns_round_trip(folder: RunFolder) -> None:
    folder.write_turns(12, ROWS)
    folder.write_turns(3, [{"role": "solver", "reward": -0.0}])
    folder.write_turns(4, [])
    assert folder.turns_file(12).name == "step-000012.parquet"
    assert folder.turn_steps() == [3, 4, 12]
    assert folder.read_turns([12]) == [
        {"step": 12, "text": None, **ROWS[0]},
        {"step": 12, **ROWS[1]},
    ]
    assert [row["step"] for row in folder.read_turns()] == [3, 12, 12]
    assert str(folder.read_turns([3])[0]["reward"]) == "-0.0"
    with pytest.raises(RunFolderError, match="turns of step 7 cannot be read"):
        folder.read_turns([7])


def test_turns_are_plain_parquet(folder: RunFolder) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(folder.write_turns(1, ROWS))
    assert table.column_names == ["step", "role", "reward", "tokens", "parts", "ids", "text"]
    assert table["parts"].to_pylist() == ['{"quality": 0.1, "format": null}', None]


def test_mixed_column_is_refused_by_name(folder: RunFolder) -> None:
    folder.write_turns(1, ROWS)
    with pytest.raises(RunFolderError, match="turns of step 1, column 'reward'"):
        folder.write_turns(1, [{"reward": 1.0}, {"reward": "high"}])
    assert len(folder.read_turns([1])) == 2  # the earlier file stands


def test_drop_turns(folder: RunFolder) -> None:
    for step in (1, 2, 3):
        folder.write_turns(step, ROWS)
    (folder.turns / ".step-000004.parquet.tmp-99").write_bytes(b"half")
    assert folder.drop_turns(1) == 2
    assert [path.name for path in folder.turns.iterdir()] == ["step-000001.parquet"]


def test_full_disk_leaves_no_half_turns(folder: RunFolder) -> None:
    rows = [{"text": random.Random(index).randbytes(40).hex()} for index in range(2000)]
    with (
        file_size_limit(20_000),
        pytest.raises(RunFolderError, match=r"step-000001\.parquet could not be written"),
    ):
        folder.write_turns(1, rows)
    assert list(folder.turns.iterdir()) == []


def test_free_space(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there") > 0
