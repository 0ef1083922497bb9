"""The program's process: runs the program, then answers calls to it or runs its tests."""

# ruff: noqa: BLE001, PTH108, PTH123, S102, S110, S307, SIM105 - it runs what it is given, which may raise anything; contextlib costs

from __future__ import annotations

import os
import sys

from .codec import Gone, Uncrossable

SPARE = 16
"""Processes and threads that the kernel allows above the limit; two of them are the judge's."""

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from .codec import Channel


def work(channel: Channel) -> None:
    """Run the program, then what the judge says, and tell the judge why it ends."""
    os.setsid()
    task = channel.receive()
    become(task["uid"])
    os.close(os.open("/dev/null", os.O_RDWR | os.O_CREAT, 0o666))  # a sandbox may have no devices
    _set_stdin(task["stdin"])
    _set_own_limits(task["limits"])
    _forget()
    alone = task["how"] == "alone"
    name = "__main__" if alone else "program"
    module = sys.modules[name] = type(sys)(name)
    try:
        exec(compile(task["source"], "program.py", "exec", dont_inherit=True), module.__dict__)
        if task["how"] == "apart":
            _answer(eval(task["entry_point"], module.__dict__), channel)
        if task["how"] == "together":
            _test(module, channel)
    except BaseException as error:
        if alone:
            _tell(error, channel)
            raise
        _show(error)
        _tell(error, channel)
        os._exit(1)


def become(uid: int | None) -> None:
    """Root becomes nobody in particular: whom its limit of processes binds, and who owns no files."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _answer(target: Callable[..., object], channel: Channel) -> None:
    flush()
    channel.send("ready")
    while True:
        args, kwargs = channel.receive()
        try:
            channel.send(("value", target(*args, **kwargs)))
        except Gone:
            raise
        except MemoryError:
            channel.send(("memory", ""))
        except Uncrossable as error:
            channel.send(("raised", ("TypeError", f"returned what can't cross: {error}")))
        except BaseException as error:
            channel.send(("raised", (type(error).__name__, _text(error))))
        flush()


def _test(module: ModuleType, channel: Channel) -> None:
    flush()
    channel.send("ready")
    tests, entry_point, token = channel.receive()
    if entry_point:
        module.__dict__["candidate"] = eval(entry_point, module.__dict__)
    exec(compile(tests, "tests.py", "exec", dont_inherit=True), module.__dict__)
    flush()
    channel.send(token)


def _tell(error: BaseException, channel: Channel) -> None:
    """Why it ends, for whoever counts the reasons."""
    reason = "exited" if isinstance(error, SystemExit) else "memory" if isinstance(error, MemoryError) else "failed"
    try:
        channel.send(reason)
    except Gone:
        pass


def _show(error: BaseException) -> None:
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException:
        pass
    flush()


def _text(error: BaseException) -> str:
    try:
        return str(error)[:1000]
    except BaseException:
        return ""


def flush() -> None:
    """Write out what was printed, wherever the program has put its streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass


def _forget() -> None:
    """The program imports nothing of what runs it."""
    sys.path[:] = [path for path in sys.path if path != "/harness"]
    os.environ.pop("PYTHONPATH", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]


def _set_stdin(text: str) -> None:
    path = f"/tmp/stdin-{os.getpid()}"  # noqa: S108 - the sandbox's own
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    with open(os.dup(file), "wb") as sink:
        sink.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, 0)  # where the judge's task was
    os.close(file)


def set_limits(memory: int, cpu_seconds: float) -> None:
    """Bound this process's address space and CPU time."""
    import resource as r

    cpu = int(-(-cpu_seconds // 1))
    r.setrlimit(r.RLIMIT_CPU, (cpu, cpu + 1))
    r.setrlimit(r.RLIMIT_AS, (memory, memory))


def _set_own_limits(limits: dict[str, Any]) -> None:
    import resource as r

    set_limits(limits["memory"], limits["cpu_seconds"])
    r.setrlimit(r.RLIMIT_FSIZE, (limits["file_size"],) * 2)
    # A hard bound above the judge's, which kills: no bomb grows faster than the judge can look.
    r.setrlimit(r.RLIMIT_NPROC, (limits["processes"] + SPARE,) * 2)
    r.setrlimit(r.RLIMIT_NOFILE, (64, 64))
    r.setrlimit(r.RLIMIT_CORE, (0, 0))
