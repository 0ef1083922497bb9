"""The sides of a comparison, each in a process of its own, taking turns step by step: A B A B.

Only one side works at a time and neighbours on the machine disturb both alike; the process's CPU time, beside the
wall's, leaves out what they took. A process of its own gives each side its own peak of memory.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from common import medians, peak_memory

Steps = list[dict[str, Any]]


class SideError(RuntimeError):
    """A side failed; the message is its traceback, or how its process ended."""


class Turn:
    """What a side's process holds on to: it waits for its turn, takes one step, and reports it.

    `while turn.begin(): turn.end(step())`
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._ready = False

    def begin(self) -> bool:
        """Wait for the next turn; False where there is none."""
        if not self._ready:
            self._ready = True
            _reset_peak()
            self._held = _resident()
            self._pipe.send(("ready", None))
        if not self._pipe.recv():
            return False
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return True

    def end(self, figures: dict[str, Any]) -> None:
        """Report a step, with its seconds and the most memory so far (bytes; a GPU's where one is used)."""
        took = {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}
        memory = {"held_memory": self._held, "peak_memory": _peak()}
        self._pipe.send(("step", {**figures, **took, **memory}))


class Side:
    """The other end: a side's process, started and ready for its first turn."""

    def __init__(self, name: str, function: Callable[..., None], arguments: Sequence[Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(function, theirs, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def step(self) -> dict[str, Any]:
        """Give it a turn."""
        self._pipe.send(True)
        return self._receive()

    def stop(self) -> None:
        """No turn any more."""
        with contextlib.suppress(OSError):  # it may have left by itself
            self._pipe.send(False)
        self._process.join(60)
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise SideError(f"{self._name} ended with exit code {self._process.exitcode}") from None
        if kind == "error":
            self._process.join()
            raise SideError(f"{self._name} failed:\n{value}")
        return value


def alternate(
    sides: Mapping[str, Callable[..., None]], arguments: Sequence[Any], *, steps: int, warmup: int = 1
) -> dict[str, Steps]:
    """The timed steps of each side: functions (turn, *arguments) at the top of a module.

    Raises SideError where a side fails.
    """
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    started: dict[str, Side] = {}
    try:
        for name, function in sides.items():
            started[name] = Side(name, function, arguments)
        rounds = [{name: side.step() for name, side in started.items()} for _ in range(warmup + steps)]
    finally:
        for side in started.values():
            side.stop()
    return {name: [one[name] for one in rounds[warmup:]] for name in sides}


def summary(steps: Steps) -> dict[str, Any]:
    """Medians of the seconds, in all and by phase (`seconds` of a step); the peak of memory."""
    return {
        "wall": median(step["wall"] for step in steps),
        "cpu": median(step["cpu"] for step in steps),
        "seconds": medians([step["seconds"] for step in steps]),
        "held_memory": steps[0]["held_memory"],
        "peak_memory": max(step["peak_memory"] for step in steps),
    }


def ratios(slow: Mapping[str, float], fast: Mapping[str, float]) -> dict[str, float]:
    """How many times a side's seconds another's are, by CPU time and by the wall."""
    return {clock: slow[clock] / fast[clock] for clock in ("cpu", "wall")}


def _run(function: Callable[..., None], pipe: Connection, arguments: Sequence[Any]) -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # trainers print their logs
            function(Turn(pipe), *arguments)
    except Exception:  # noqa: BLE001 - told to whoever compares
        pipe.send(("error", traceback.format_exc()))


def _cuda() -> Any:
    """torch.cuda where this process uses it, else None."""
    import torch

    return torch.cuda if torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _peak() -> int:
    cuda = _cuda()
    return peak_memory() if cuda is None else cuda.max_memory_allocated()


def _resident() -> int:
    cuda = _cuda()
    if cuda is not None:
        return cuda.memory_allocated()
    if not sys.platform.startswith("linux"):
        return peak_memory()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _reset_peak() -> None:
    """Forget what loading took, where the system can: peaks are those of the steps."""
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
