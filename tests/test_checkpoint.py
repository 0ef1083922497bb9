"""Checkpoints against real kills, damaged bytes and full disks."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparring.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    clear_leftovers,
    latest_good,
    save_checkpoint,
    verify_checkpoint,
)
from sparring.optimizer_state import flatten_optimizer, restore_optimizer

# Saves steps 1, 2, ... for ever, each of 8 files; every value is the step.
SAVER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from sparring.checkpoint import clear_leftovers, latest_good, save_checkpoint

root = Path(sys.argv[1])
clear_leftovers(root, lambda line: print(line))
good = latest_good(root, lambda line: print(line))
step = good.step if good else 0
print("ready", flush=True)
while True:
    step += 1
    value = torch.full((40_000,), float(step))

    def write_model(folder):
        for part in range(4):
            save_file({"w": value}, folder / f"part-{part}.safetensors")

    tensors = {"exp_avg/w": value}
    save_checkpoint(root, step, write_model=write_model, tensors=tensors, state={"step": step}, keep=2)
"""


def save(root: Path, step: int, *, keep: int | None = None, size: int = 100, **changes: Any) -> Path:
    def write_model(folder: Path) -> None:
        save_file({"w": torch.full((size,), float(step))}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")

    arguments: dict[str, Any] = {
        "write_model": write_model,
        "tensors": {"exp_avg/w": torch.full((size,), step / 3), "rng": torch.arange(9, dtype=torch.uint8)},
        "state": {"step": step, "cursor": [1, 2], "loss": 1 / 3},
    }
    return save_checkpoint(root, step, keep=keep, **(arguments | changes))


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A disk of this size mounted at `path`; needs root."""
    path.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("no leave to mount here")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 12)
    assert path == tmp_path / "checkpoints" / "step-000012"
    assert verify_checkpoint(path) == []
    checkpoint = latest_good(tmp_path / "checkpoints", pytest.fail)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.path) == (12, path)
    assert checkpoint.state == {"step": 12, "cursor": [1, 2], "loss": 1 / 3}
    assert load_file(checkpoint.model_path / "model.safetensors")["w"].eq(12).all()
    tensors = checkpoint.tensors()
    assert tensors["exp_avg/w"].equal(torch.full((100,), 4.0))
    assert tensors["rng"].equal(torch.arange(9, dtype=torch.uint8))
    assert names(tmp_path / "checkpoints") == ["step-000012"]


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert latest_good(tmp_path / "none", pytest.fail) is None
    clear_leftovers(tmp_path / "none", pytest.fail)
    assert verify_checkpoint(tmp_path / "none") == ["missing"]


def test_no_tensors_is_fine(tmp_path: Path) -> None:
    save(tmp_path, 1, tensors={})
    checkpoint = latest_good(tmp_path, pytest.fail)
    assert checkpoint is not None
    assert checkpoint.tensors() == {}


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-000003", "step-000010"]
    for keep in (0, None):
        save(tmp_path, 11 + (keep is None), keep=keep)
    assert names(tmp_path) == ["step-000003", "step-000010", "step-000011", "step-000012"]


def test_retention_counts_good_ones_and_leaves_damaged_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-000003" / "state.json").unlink()
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == ["step-000002", "step-000003", "step-000004"]


def test_retention_never_removes_what_was_just_saved(tmp_path: Path) -> None:
    for step in (30, 40):
        save(tmp_path, step)
    save(tmp_path, 15, keep=1)  # a run taken back to an earlier step
    assert names(tmp_path) == ["step-000015", "step-000030", "step-000040"]


def test_retention_failure_is_a_warning(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    with small_disk(root / "step-000001", "512k"):  # a mount point cannot be renamed or removed
        shutil.copytree(save(tmp_path, 1), root / "step-000001", dirs_exist_ok=True)
        with pytest.warns(CheckpointWarning, match=r"step-000001 could not be removed.*by hand"):
            save(root, 2, keep=1)
        assert names(root) == ["step-000001", "step-000002"]
        assert verify_checkpoint(root / "step-000002") == []


# --- damage ------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: list[tuple[str, str, Callable[[Path], object]]] = [
    ("model/model.safetensors", "model/model.safetensors: hash differs", flip),
    ("optimizer.safetensors", "optimizer.safetensors: size differs", truncate),
    ("state.json", "state.json: missing", Path.unlink),
    ("manifest.json", "manifest.json: missing", Path.unlink),
    ("manifest.json", "manifest.json: unreadable", truncate),
    ("manifest.json", "manifest.json: unreadable", lambda path: path.write_text("[]")),
    (
        "manifest.json",
        "manifest.json: format 99",
        lambda path: path.write_text('{"format": 99, "step": 20, "files": {}}'),
    ),
    ("model/extra.safetensors", "model/extra.safetensors: not in the manifest", Path.touch),
]


@pytest.mark.parametrize(("file", "problem", "damage"), DAMAGE, ids=[problem for _, problem, _ in DAMAGE])
def test_damage_is_said_and_the_previous_one_used(
    tmp_path: Path, file: str, problem: str, damage: Callable[[Path], object]
) -> None:
    save(tmp_path, 15)
    newest = save(tmp_path, 20)
    damage(newest / file)
    assert any(found.startswith(problem) for found in verify_checkpoint(newest))
    said: list[str] = []
    checkpoint = latest_good(tmp_path, said.append)
    assert checkpoint is not None
    assert checkpoint.step == 15
    assert len(said) == 1
    assert said[0].startswith(f"checkpoint step-000020 is damaged ({problem}")
    assert said[0].endswith("): using step-000015")
    assert newest.exists()


def test_every_byte_of_every_file_counts(tmp_path: Path) -> None:
    path = save(tmp_path, 1, size=4)
    rng = random.Random(0)
    for file in [file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"]:
        whole = file.read_bytes()
        for position in rng.sample(range(len(whole)), min(20, len(whole))):
            changed = bytearray(whole)
            changed[position] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            assert verify_checkpoint(path) == [f"{file.relative_to(path).as_posix()}: hash differs"]
        file.write_bytes(whole)
    assert verify_checkpoint(path) == []


def test_all_damaged_is_none_and_said(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(save(tmp_path, step) / "state.json")
    said: list[str] = []
    assert latest_good(tmp_path, said.append) is None
    assert said == [
        "checkpoint step-000002 is damaged (state.json: hash differs): no earlier good one",
        "checkpoint step-000001 is damaged (state.json: hash differs): no earlier good one",
    ]


def test_damaged_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "step-000001").write_text("not even a folder")
    assert verify_checkpoint(tmp_path / "step-000001") == ["not a folder"]
    for _ in range(2):
        flip(save(tmp_path, 1) / "state.json")
    save(tmp_path, 1)
    assert verify_checkpoint(tmp_path / "step-000001") == []
    assert names(tmp_path) == ["step-000001"]


def test_copy_under_another_step_is_found_out(tmp_path: Path) -> None:
    shutil.copytree(save(tmp_path, 1), tmp_path / "step-000002")
    assert verify_checkpoint(tmp_path / "step-000002") == ["manifest.json: of step 1, not of step-000002"]


def test_hidden_files_of_others_are_overlooked(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "model" / ".DS_Store").touch()
    assert verify_checkpoint(tmp_path / "step-000001") == []


# --- failing saves -----------------------------------------------------------------------------------


def test_full_disk_keeps_the_last_good_one(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    with small_disk(root, "512k"):
        good = save(root, 1, size=10_000)
        for size in (60_000, 100_000, 1_000_000):
            with pytest.raises(CheckpointError, match=r"step-000002 was not saved.*free some space") as caught:
                save(root, 2, size=size)
            assert "No space left" in str(caught.value)
            assert "newest: step-000001" in str(caught.value)
            assert "MB free" in str(caught.value)
            assert names(root) == ["step-000001"]
        assert verify_checkpoint(good) == []
        save(root, 2, size=10_000)  # the failed attempts gave their space back


def test_file_size_limit_keeps_the_last_good_one(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(CheckpointError, match=r"File too large.*ulimit -f"):
            save(tmp_path, 2, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert names(tmp_path) == ["step-000001"]
    assert verify_checkpoint(good) == []


def failing_model(folder: Path) -> None:
    (folder / "half.bin").write_bytes(b"x" * 1000)
    raise RuntimeError("the model would not serialise")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"write_model": failing_model}, "RuntimeError: the model would not serialise"),
        ({"state": {"loss": float("nan")}}, "ValueError"),
        ({"state": {"counts": {3: 1}}}, "state.counts has the key 3"),
        ({"state": {"when": object()}}, "not JSON serializable"),
    ],
)
def test_failure_leaves_the_good_one_of_the_same_step(tmp_path: Path, changes: Mapping[str, Any], message: str) -> None:
    good = save(tmp_path, 1)
    before = (good / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, 1, **changes)
    assert names(tmp_path) == ["step-000001"]
    assert verify_checkpoint(good) == []
    assert (good / "manifest.json").read_bytes() == before


def test_ctrl_c_during_a_save_passes_through_and_cleans_up(tmp_path: Path) -> None:
    # A test run in the background is started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"x")
        signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 1, write_model=interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert names(tmp_path) == []


# --- kill -9 -----------------------------------------------------------------------------------------


def test_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    rng = random.Random()
    last = 0
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            while child.stdout.readline() != "ready\n":
                assert child.poll() is None
            deadline = time.monotonic() + 30
            while not (tmp_path / f"step-{last + 1:06d}").exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        checkpoint = latest_good(tmp_path, pytest.fail)  # nothing under a checkpoint's name is ever damaged
        assert checkpoint is not None
        assert checkpoint.step > last
        last = checkpoint.step
        assert checkpoint.state == {"step": last}
        assert checkpoint.tensors()["exp_avg/w"].eq(last).all()
        for part in range(4):
            assert load_file(checkpoint.model_path / f"part-{part}.safetensors")["w"].eq(last).all()
    clear_leftovers(tmp_path, lambda _: None)
    assert all(name.startswith("step-") for name in names(tmp_path))


def dead_process() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_leftovers_of_dead_processes_are_removed_and_said(tmp_path: Path) -> None:
    good, dead, alive = save(tmp_path, 1), dead_process(), os.getppid()
    for name in (
        f".step-000002.partial-{dead}",
        f".step-000003.partial-{os.getpid()}",  # an earlier process that had our number
        f".step-000004.partial-{alive}",
        f".step-000000.removed-{dead}",
    ):
        shutil.copytree(good, tmp_path / name)
    assert verify_checkpoint(tmp_path / f".step-000002.partial-{dead}") == ["a partial save that never finished"]
    said: list[str] = []
    clear_leftovers(tmp_path, said.append)
    assert names(tmp_path) == [f".step-000004.partial-{alive}", "step-000001"]
    assert [line.split()[0] for line in said] == [
        "removed",
        "removed",
        "removed",
        f".step-000004.partial-{alive}",
    ]
    assert said[1] == f"removed .step-000002.partial-{dead}, left by process {dead}, which ended before it was done"


def test_replaced_one_goes_back_when_the_new_one_never_arrived(tmp_path: Path) -> None:
    dead = dead_process()
    save(tmp_path, 1).rename(tmp_path / f".step-000001.replaced-{dead}")
    said: list[str] = []
    clear_leftovers(tmp_path, said.append)
    assert said == [f"checkpoint step-000001 put back: process {dead} ended while replacing it"]
    assert verify_checkpoint(tmp_path / "step-000001") == []


# --- optimiser ---------------------------------------------------------------------------------------


def make(kind: str, seed: int = 0) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(3, 2))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    if kind == "sgd":
        return model, torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    return model, torch.optim.AdamW(
        groups, lr=1e-2, betas=(0.8, 0.95), amsgrad=kind == "amsgrad", fused=kind == "fused"
    )


def names_of(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, 5, generator=generator)).square().sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "amsgrad", "fused", "sgd"])
def test_optimizer_restores_to_bit_identical_steps(tmp_path: Path, kind: str) -> None:
    model, optimizer = make(kind)
    train(model, optimizer, range(5))
    tensors, state = flatten_optimizer(optimizer, names_of(model))
    assert ("momentum_buffer/0.weight" if kind == "sgd" else "exp_avg/0.weight") in tensors
    save(
        tmp_path,
        5,
        write_model=lambda folder: save_file(model.state_dict(), folder / "model.safetensors"),
        tensors=tensors,
        state={"optimizer": state},
    )
    checkpoint = latest_good(tmp_path, pytest.fail)
    assert checkpoint is not None
    other, fresh = make(kind, seed=1)
    other.load_state_dict(load_file(checkpoint.model_path / "model.safetensors"))
    restore_optimizer(fresh, names_of(other), checkpoint.tensors(), checkpoint.state["optimizer"])
    assert [group["lr"] for group in fresh.param_groups] == [group["lr"] for group in optimizer.param_groups]
    if kind != "sgd":
        assert fresh.param_groups[0]["betas"] == (0.8, 0.95)
    train(model, optimizer, range(5, 9))
    train(other, fresh, range(5, 9))
    for here, there in zip(model.parameters(), other.parameters(), strict=True):
        assert here.equal(there)


def test_restored_state_is_a_copy(tmp_path: Path) -> None:
    model, optimizer = make("adamw")
    train(model, optimizer, range(2))
    tensors, state = flatten_optimizer(optimizer, names_of(model))
    frozen = {name: tensor.clone() for name, tensor in tensors.items()}
    other, fresh = make("adamw", seed=1)
    restore_optimizer(fresh, names_of(other), tensors, state)
    train(other, fresh, range(2))
    assert all(tensors[name].equal(frozen[name]) for name in tensors)


def test_parameters_never_stepped_have_no_state() -> None:
    model, optimizer = make("adamw")
    tensors, state = flatten_optimizer(optimizer, names_of(model))
    assert tensors == {}
    other, fresh = make("adamw", seed=0)
    restore_optimizer(fresh, names_of(other), tensors, json.loads(json.dumps(state)))
    train(model, optimizer, range(2))
    train(other, fresh, range(2))
    assert all(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def flattened() -> tuple[dict[str, Tensor], dict[str, Any]]:
    model, optimizer = make("adamw")
    train(model, optimizer, range(2))
    return flatten_optimizer(optimizer, names_of(model))


def test_mismatches_are_named_and_change_nothing() -> None:
    tensors, state = flattened()
    model, optimizer = make("adamw", seed=1)
    names = names_of(model)

    def refused(message: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        with pytest.raises(CheckpointError, match=message):
            restore_optimizer(optimizer, names, tensors, state)
        assert not optimizer.state
        assert optimizer.param_groups[0]["lr"] == 1e-2

    wrong_shape = {**tensors, "exp_avg/2.weight": torch.zeros(4, 7)}
    refused(r"'exp_avg/2.weight' has shape \(4, 7\), the model's parameter \(3, 7\)", wrong_shape, state)
    refused("'exp_avg/9.weight' fits no parameter", {**tensors, "exp_avg/9.weight": torch.zeros(1)}, state)
    refused("holds the state of SGD, the run uses AdamW", tensors, {**state, "optimizer": "SGD"})
    refused("has 1 parameter groups, the run's 2", tensors, {**state, "groups": state["groups"][:1]})
    other_names = json.loads(json.dumps(state).replace("2.weight", "lora.weight"))
    refused(
        r"group 0 .*only in the checkpoint: \['lora.weight'\]; only in the model: \['2.weight'\]",
        tensors,
        other_names,
    )
    swapped = json.loads(json.dumps(state))
    swapped["groups"][0]["params"].reverse()
    refused("same parameters in another order", tensors, swapped)


def test_unnamed_parameter_is_refused() -> None:
    model, optimizer = make("adamw")
    names = names_of(model)
    del names[next(model.parameters())]
    with pytest.raises(CheckpointError, match=r"shape \(7, 5\) that has no name"):
        flatten_optimizer(optimizer, names)
