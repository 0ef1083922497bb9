"""Programs in namespaces of their own, by bubblewrap: no network, no files but an interpreter's, no other processes.

Every program gets a sandbox of its own, which ends with it: the judge (inside/judge.py) is process 1 of the program's
pid namespace, and with process 1 the kernel ends all others. What a program sees is in view.py.
"""

from __future__ import annotations

import os
import platform
import secrets
import selectors
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Lock
from time import monotonic

from sparring.sandbox.base import Ending, Limits, Outcome, Program, SandboxError
from sparring.sandbox.interpreter import Interpreter
from sparring.sandbox.protocol import MARKS, Written, task_of
from sparring.sandbox.seccomp import filter_for
from sparring.sandbox.view import is_root, options

GRACE = 30.0
"""Seconds beyond a program's own that its sandbox may take to start and to end."""

LOOK = 0.1
"""Seconds between two looks at a program that writes nothing."""

UIDS = range(2**30, 2**31)
"""Whom root's programs become, each another: the kernel counts processes by user, and lets root have any number."""

INSTALL = (
    "install it (apt install bubblewrap, dnf install bubblewrap or pacman -S bubblewrap; version 0.7 or newer), "
    "or give the url of a SandboxFusion server"
)


class Bubblewrap:
    """Runs programs on this machine, each in a sandbox of its own.

    Args:
        python: interpreter for the programs, with its environment's packages; None: this one's base installation.
        workers: programs at once; None: this process's CPU cores.
        limits: what one program may use.

    Raises:
        SandboxError: bubblewrap is not installed, can't make namespaces here, or its filter isn't known for this
            machine; the message says what to install or set.
    """

    def __init__(self, *, python: str | Path | None, workers: int | None, limits: Limits) -> None:
        self._limits, self._closed = limits, False
        self._root = is_root()
        bwrap = _bwrap()
        interpreter = Interpreter.this() if python is None else Interpreter.at(python)
        self._options = [bwrap, *options(limits, interpreter.folders, self._root)]
        self._command = [str(interpreter.executable), *interpreter.flags, "-sBc", "import inside; inside.main()"]
        self._filter = _filter()
        self._live: set[Popen[bytes]] = set()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "sandbox")
        self._prove()

    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        """See Sandbox."""
        if self._closed:
            raise SandboxError("this sandbox is closed")
        futures = [self._pool.submit(self._run, program) for program in programs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            self._stop()
            raise

    def close(self) -> None:
        """See Sandbox."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._stop()
        self._pool.shutdown()

    def _stop(self) -> None:
        with self._lock:
            for process in self._live:
                process.kill()

    def _prove(self) -> None:
        (outcome,) = self.run([Program("print('ready')")])
        if not outcome.passed:
            self.close()
            said = outcome.stderr.strip() or f"a program that only prints ended as {outcome.ending}"
            raise SandboxError(f"bubblewrap can't make a sandbox here ({said[-500:]}){_hints()}")

    def _run(self, program: Program) -> Outcome:
        task = task_of(program, self._limits, secrets.choice(UIDS) if self._root else None)
        start = monotonic()
        try:
            process = self._start(task.data)
        except OSError as error:
            return Outcome(Ending.ERROR, None, "", f"bwrap did not start: {error}", monotonic() - start)
        try:
            return _collected(process, self._limits, start).outcome(task.nonce)
        finally:
            process.kill()  # whatever is left: the sandbox dies with it
            process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
            with self._lock:
                self._live.discard(process)

    def _start(self, task: bytes) -> Popen[bytes]:
        given, code = _readable(task), _readable(self._filter)
        command = [*self._options, "--seccomp", str(code), "--", *self._command]
        try:
            with self._lock:
                if self._closed:
                    raise OSError("the sandbox is closed")
                # The kernel ends bwrap with the thread that starts it, so a killed trainer leaves none behind.
                process = Popen(
                    command,
                    stdin=given,
                    stdout=PIPE,
                    stderr=PIPE,
                    pass_fds=(code,),
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
                self._live.add(process)
        finally:
            os.close(given)
            os.close(code)
        return process


def _readable(data: bytes) -> int:
    """A descriptor that gives these bytes; the caller closes it."""
    file = os.memfd_create("sandbox")
    with os.fdopen(os.dup(file), "wb") as sink:
        sink.write(data)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _collected(process: Popen[bytes], limits: Limits, start: float) -> Written:
    """What a sandbox writes until it ends, has written too much, or is late."""
    assert process.stdout is not None
    assert process.stderr is not None
    end = start + limits.seconds + GRACE
    room = {process.stdout: limits.output + MARKS, process.stderr: limits.output}
    written = {pipe: bytearray() for pipe in room}
    stopped = None
    with selectors.DefaultSelector() as selector:
        for pipe in room:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and stopped is None:
            if monotonic() > end:
                stopped = Ending.TIMEOUT
            ready = selector.select(timeout=LOOK)
            if not ready and process.poll() is not None:  # ended from here, which the sandbox has yet to notice
                break
            for key, _ in ready:
                piece = os.read(key.fd, 65536)
                pipe = process.stdout if key.fileobj is process.stdout else process.stderr
                written[pipe] += piece
                if not piece:
                    selector.unregister(pipe)
                elif len(written[pipe]) > room[pipe]:
                    stopped = Ending.OUTPUT
    stdout, stderr = (bytes(written[pipe][: room[pipe]]) for pipe in room)
    return Written(stdout, stderr, monotonic() - start, stopped)


def _bwrap() -> str:
    path = shutil.which("bwrap")
    if path is None:
        raise SandboxError(f"programs of a model run in bubblewrap, and bwrap is not on PATH: {INSTALL}")
    return str(Path(path).resolve())


def _filter() -> bytes:
    code = filter_for(platform.machine())
    if code is None:
        raise SandboxError(
            f"the sandbox knows the system calls of x86_64 and aarch64, not of {platform.machine()}: "
            "give the url of a SandboxFusion server"
        )
    return code


_SWITCHES = {
    "kernel/unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    "user/max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=10000"),
    "kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bwrap",
    ),
}


def _hints() -> str:
    """What is known to stand in the way, and what to set."""
    found = [fix for name, (bad, fix) in _SWITCHES.items() if _setting(name) == bad]
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        found.append(
            "in a container: start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
            "--security-opt systempaths=unconfined"
        )
    if is_root():
        found.append("root's programs become another user: the Python and Sparring must be readable by all")
    found += ["bubblewrap must be version 0.7 or newer", "or give the url of a SandboxFusion server instead"]
    return "".join(f"\n- {hint}" for hint in found)


def _setting(name: str) -> str | None:
    path = Path("/proc/sys") / name
    return path.read_text().strip() if path.is_file() else None
