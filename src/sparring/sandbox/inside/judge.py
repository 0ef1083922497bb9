"""The judge: lets a program run under its limits, tests it, and says how it ended."""

# ruff: noqa: BLE001, PTH123, PTH208, S102, SIM105 - it runs what it is given, which may raise anything; imports cost

from __future__ import annotations

import os
import sys
import time

from .codec import Gone, Uncrossable, decode
from .program import become, flush, set_limits

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .codec import Channel

UP = b"up\n"
"""What the judge writes first."""

SIGKILL, SIGXCPU = 9, 24
TICK = 0.01
"""Seconds between two looks at what the program uses."""


class Untestable(BaseException):
    """The tests handed over what can't cross: no test can catch it."""


class Verdict:
    """Says once how the program ended, and ends everything."""

    def __init__(self, nonce: str, child: int, processes: int) -> None:
        import _thread

        self._nonce, self._child, self._processes = nonce, child, processes
        self._first = _thread.allocate_lock()
        os.write(1, UP)  # without the nonce: the program can read its own standard output's pipe

    def __call__(self, ending: str, status: int | None = None) -> NoReturn:
        self._first.acquire()  # the first verdict counts; any other thread waits here for the end
        try:
            everybody = -1 if os.getpid() == 1 else self._child
            if ending == "failed" and everybody == -1 and _used(self._processes)[0] > self._processes:
                ending, status = "processes", None  # the kernel's bound was met before the next look
            for kill, whom in ((os.kill, everybody), (os.killpg, self._child)):
                try:
                    kill(whom, SIGKILL)
                except OSError:
                    pass
            flush()
            os.write(1, f"\n{self._nonce} {ending} {status}\n".encode())
        finally:
            os._exit(0)


def judge(child: int, channel: Channel) -> NoReturn:
    """Read the task, let the program run under its limits, and say how it ended."""
    import _thread

    with open(0, "rb", closefd=False) as source:
        task: dict[str, Any] = decode(bytes.fromhex(source.read().decode()))
    become(task["uid"])
    _hide()
    # What the program answers must fit too; and should a test of it never end, nor let the other thread look:
    set_limits(task["limits"]["memory"], task["limits"]["seconds"])
    verdict = Verdict(task["nonce"], child, task["limits"]["processes"])
    _thread.start_new_thread(_watch, (task["limits"], verdict))
    try:
        channel.send({name: task[name] for name in ("source", "stdin", "entry_point", "how", "limits", "uid")})
        verdict(_JUDGES[task["how"]](task, channel))
    except Gone:
        verdict(*_ended(child, task, channel))
    except BaseException as error:
        if not isinstance(error, Untestable):
            sys.excepthook(type(error), error, error.__traceback__)
        verdict(next((ending for kind, ending in _ENDINGS if isinstance(error, kind)), "failed"))


_ENDINGS = ((Untestable, "untestable"), (MemoryError, "memory"), (SystemExit, "exited"))


def _alone(task: dict[str, Any], channel: Channel) -> str:
    raise Gone  # its end is all there is to wait for


def _together(task: dict[str, Any], channel: Channel) -> str:
    said = channel.receive()
    if said != "ready":
        return _reason(said)
    token = os.urandom(16)
    channel.send((task["tests"], task["entry_point"], token))
    said = channel.receive()
    return "passed" if said == token else _reason(said)


def _apart(task: dict[str, Any], channel: Channel) -> str:
    said = channel.receive()
    if said != "ready":
        return _reason(said)
    candidate = Candidate(channel)
    names: dict[str, Any] = {"__name__": "tests"}
    exec(compile(task["setup"], "setup.py", "exec", dont_inherit=True), names)
    names["candidate"] = candidate
    if task["entry_point"].isidentifier():
        names[task["entry_point"]] = candidate
    exec(compile(task["tests"], "tests.py", "exec", dont_inherit=True), names)
    if candidate.lost:
        raise candidate.lost
    return "passed"


_JUDGES: dict[str, Callable[[dict[str, Any], Channel], str]] = {"alone": _alone, "together": _together, "apart": _apart}


def _reason(said: object) -> str:
    """Why the program ends, in its own words: never that it passed."""
    return str(said) if said in ("exited", "memory") else "failed"


class Candidate:
    """The program's function, called in the program's process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.lost: type[BaseException] | None = None
        """What ended the calls, should the tests have caught it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.lost:
            raise self.lost
        try:
            self._channel.send((args, kwargs))
        except Uncrossable:
            self.lost = Untestable
            raise Untestable from None
        except Gone:
            self.lost = Gone
            raise
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value = self._channel.receive()
        except Gone:
            self.lost = Gone
            raise
        if kind == "memory":
            raise MemoryError
        if kind == "raised":
            raise _rebuilt(*value)
        return value


def _rebuilt(name: object, text: object) -> Exception:
    """An exception as the program raised it, where it is Python's own."""
    import builtins

    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:
            return kind.__new__(kind)
    return RuntimeError(f"{name}: {text}")


def _ended(child: int, task: dict[str, Any], channel: Channel) -> tuple[str, int]:
    """The ending and status of a program whose process ends by itself."""
    _, status, used = os.wait4(child, 0)
    if os.WIFEXITED(status):
        code = os.WEXITSTATUS(status)
        if task["how"] != "alone":
            return "exited", code
        if code == 0:
            return "passed", code
        return ("memory" if channel.last() == "memory" else "failed"), code
    number = os.WTERMSIG(status)
    tired = number == SIGXCPU or used.ru_utime + used.ru_stime >= task["limits"]["cpu_seconds"]
    return ("timeout" if tired else "crashed"), -number


def _hide() -> None:
    """No other process may read or trace this one."""
    import ctypes

    if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) != 0:  # PR_SET_DUMPABLE
        raise OSError("prctl(PR_SET_DUMPABLE) failed")


def _watch(limits: dict[str, Any], verdict: Verdict) -> NoReturn:
    """End it at its limits of time, processes and memory in all, and when nobody waits for the verdict any more."""
    import select

    end = time.monotonic() + limits["seconds"]
    alone = os.getpid() == 1  # else /proc shows others' processes too
    awaited = select.poll()
    awaited.register(1, 0)
    while True:
        time.sleep(TICK)
        if time.monotonic() > end:
            verdict("timeout")
        if awaited.poll(0):  # not even root's bwrap may end whom root has become
            os._exit(1)
        if alone:
            try:
                tasks, memory = _used(limits["processes"])
            except BaseException:  # a judge that can't see lets nothing go on
                verdict("failed")
            if tasks > limits["processes"]:
                verdict("processes")
            if memory > limits["memory"]:
                verdict("memory")


def _used(processes: int) -> tuple[int, int]:
    """Threads of all processes but this one, and their resident bytes; not all where there are too many processes."""
    names = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    if len(names) > processes:
        return len(names), 0
    tasks = pages = 0
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # just gone
            continue
        tasks += int(fields[17])
        pages += int(fields[21])
    return tasks, pages * os.sysconf("SC_PAGE_SIZE")
