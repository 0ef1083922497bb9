"""Worker processes with a time limit for each question: one that does not answer in time is killed and replaced."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any
from weakref import finalize

START_SECONDS = 120.0
"""How long a worker may take to load its library."""


class Pool:
    """Asks worker processes, several at a time. They start with the first question; after `close`, with the next.

    The limit is of wall time: on a machine that is far too busy a question may be cut off that had an answer.

    Args:
        seconds: how long a question may take before its worker is killed.
        workers: processes.
        command: what a worker runs: it prints a JSON line when it is ready, then one for each line that it reads.

    Attributes:
        timeouts: questions cut off since `drain`.
        crashes: questions at which a worker ended or ran out of memory since `drain`.
    """

    def __init__(self, seconds: float = 5.0, workers: int = 2, command: Sequence[str] | None = None) -> None:
        if seconds <= 0 or workers < 1:
            raise ValueError(f"seconds must be above 0 and workers at least 1, not {seconds} and {workers}")
        self._seconds, self._workers = seconds, workers
        self._command = None if command is None else tuple(command)
        self._free: SimpleQueue[_Worker | None] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self.timeouts = self.crashes = 0

    def ask(self, questions: Sequence[Any]) -> list[Any]:
        """One reply a question (both JSON), in order; None where there was none in time, or the worker ended.

        Raises:
            ValueError: what workers need is not installed.
            RuntimeError: a worker can't be started.
        """
        if not questions:
            return []
        if self._threads is None:
            self._command = self._command or _math_command(self._seconds)
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="verify")
            for _ in range(self._workers):
                self._free.put(None)
        met = list(self._threads.map(self._one, questions))
        self.timeouts += sum(why == "timeout" for _, why in met)
        self.crashes += sum(why == "crash" for _, why in met)
        return [reply for reply, _ in met]

    def require(self) -> None:
        """Raise ValueError where what workers need is not installed; none is started."""
        if self._command is None:
            _math_command(self._seconds)

    def drain(self) -> dict[str, float]:
        """`timeouts` and `crashes`, which then start anew."""
        counts = {"timeouts": float(self.timeouts), "crashes": float(self.crashes)}
        self.timeouts = self.crashes = 0
        return counts

    def close(self) -> None:
        """End the workers."""
        if self._threads is None:
            return
        self._threads.shutdown()
        self._threads = None
        while not self._free.empty():
            worker = self._free.get()
            if worker is not None:
                worker.end()

    def _one(self, question: Any) -> tuple[Any, str | None]:
        worker = self._free.get()
        try:
            if worker is None:
                assert self._command is not None
                worker = _Worker(self._command)
            reply, why = worker.reply(question, self._seconds)
            if why is not None:
                worker.end()
                worker = None
            return reply, why
        finally:
            self._free.put(worker)


class _Worker:
    """One process: asked one question at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        # A session of its own: an interrupt from the keyboard is the caller's to handle.
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        finalize(self, _kill, self._process)
        self._read = b""
        if self._line(START_SECONDS)[0] is None:
            self._process.kill()
            said = self._process.communicate()[1].decode(errors="replace").strip()[-500:]
            raise RuntimeError(f"a process that compares answers can't start ({' '.join(command)}): {said}")

    def reply(self, question: Any, seconds: float) -> tuple[Any, str | None]:
        """The reply, and why there is none ("timeout", "crash")."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None, "crash"
        line, why = self._line(seconds)
        return (None, why) if line is None else (json.loads(line), None)

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        _kill(self._process)

    def _line(self, seconds: float) -> tuple[bytes | None, str | None]:
        """The next line of its output; None and "timeout" or "crash"."""
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        with selectors.DefaultSelector() as waiting:
            waiting.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._read:
                left = deadline - time.monotonic()
                if left <= 0 or not waiting.select(left):
                    return None, "timeout"
                chunk = os.read(pipe, 65536)
                if not chunk:
                    return None, "crash"
                self._read += chunk
        line, self._read = self._read.split(b"\n", 1)
        return line, None


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        with suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


def _math_command(seconds: float) -> tuple[str, ...]:
    if find_spec("math_verify") is None:
        raise ValueError("comparing expressions needs the math-verify library: pip install 'sparring[verify]'")
    return (sys.executable, "-m", "sparring.verify.worker", str(seconds))
