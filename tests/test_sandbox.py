"""Programs that misbehave in every way we know: each is contained, told apart, and costs its own outcome alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sandboxed import QUICK, sandbox_or_skip
from sparring.sandbox import Ending, Limits, Outcome, Program, Sandbox, SandboxError, bubblewrap, open_sandbox, seccomp
from sparring.sandbox.inside.program import SPARE
from sparring.sandbox.interpreter import Interpreter
from sparring.sandbox.view import is_root

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    opened = sandbox_or_skip()
    yield opened
    opened.close()


def alone(sandbox: Sandbox, source: str, stdin: str = "") -> Outcome:
    return sandbox.run([Program(source, stdin)])[0]


def both_ways(source: str, tests: str = TESTS) -> list[Program]:
    """Tests that the program can't reach, and tests in its own interpreter."""
    return [Program(source, tests=tests, entry_point="add", apart=apart) for apart in (True, False)]


def endings(sandbox: Sandbox, source: str, tests: str = TESTS) -> list[Ending]:
    return [outcome.ending for outcome in sandbox.run(both_ways(source, tests))]


# What an honest program gets.


def test_a_program_runs_and_says_what_it_wrote(sandbox: Sandbox) -> None:
    outcome = alone(sandbox, "import sys\nprint(input()[::-1])\nprint('ä', file=sys.stderr)", stdin="abc\n")
    assert (outcome.ending, outcome.status, outcome.stdout, outcome.stderr) == (Ending.PASSED, 0, "cba\n", "ä\n")
    assert outcome.passed
    assert outcome.seconds > 0


def test_output_is_given_as_it_was_written(sandbox: Sandbox) -> None:
    assert alone(sandbox, "print('a')\nprint('b', end='')").stdout == "a\nb"
    assert alone(sandbox, "pass").stdout == ""
    assert alone(sandbox, "print()").stdout == "\n"


def test_a_program_without_tests_is_main_and_its_status_counts(sandbox: Sandbox) -> None:
    assert alone(sandbox, "if __name__ == '__main__': print('ran')").stdout == "ran\n"
    assert alone(sandbox, "raise SystemExit(0)").ending is Ending.PASSED
    outcome = alone(sandbox, "raise SystemExit(7)")
    assert (outcome.ending, outcome.status) == (Ending.FAILED, 7)
    failed = alone(sandbox, "1 / 0")
    assert (failed.ending, failed.status) == (Ending.FAILED, 1)
    assert "ZeroDivisionError" in failed.stderr


def test_threads_and_exit_handlers_of_a_program_end_as_usual(sandbox: Sandbox) -> None:
    source = "import atexit, threading\natexit.register(print, 'last')\nthreading.Timer(0.05, print, ['late']).start()"
    assert alone(sandbox, source).stdout == "late\nlast\n"


def test_right_passes_and_wrong_fails(sandbox: Sandbox) -> None:
    assert endings(sandbox, RIGHT) == [Ending.PASSED, Ending.PASSED]
    assert endings(sandbox, WRONG) == [Ending.FAILED, Ending.FAILED]
    assert all("AssertionError" in outcome.stderr for outcome in sandbox.run(both_ways(WRONG)))


def test_outcomes_come_in_order(sandbox: Sandbox) -> None:
    programs = [Program(f"import time; time.sleep({(5 - i) / 50}); print({i})") for i in range(6)]
    assert [outcome.stdout for outcome in sandbox.run(programs)] == [f"{i}\n" for i in range(6)]
    assert sandbox.run([]) == []


def test_a_program_may_use_files_threads_and_a_few_processes(sandbox: Sandbox) -> None:
    source = """
import multiprocessing, os, pathlib, subprocess, sys, threading
pathlib.Path("mine").write_text("kept")
thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
print(pathlib.Path("/tmp/mine").read_text(), flush=True)
if os.fork() == 0:
    print("child", flush=True); os._exit(0)
os.wait()
lock = multiprocessing.Lock()
with open(os.devnull, "w") as null: print("nothing", file=null)
print(subprocess.run([sys.executable, "-c", "print('deeper')"], capture_output=True, text=True).stdout)
"""
    outcome = alone(sandbox, source)
    assert outcome.stdout.split() == ["thread", "kept", "child", "deeper"], outcome


def test_dataclasses_and_pickles_find_the_program_by_name(sandbox: Sandbox) -> None:
    source = (
        "import pickle, dataclasses, typing\n@dataclasses.dataclass\nclass P:\n    x: 'int'\n"
        "def add(a, b):\n    typing.get_type_hints(P)\n    return pickle.loads(pickle.dumps(P(a + b))).x\n"
    )
    assert endings(sandbox, source) == [Ending.PASSED, Ending.PASSED]


def test_the_same_program_has_the_same_hashes(sandbox: Sandbox) -> None:
    first, second = sandbox.run([Program("print(list({'a', 'b', 'c', 'd', 'e'}), hash('x'))")] * 2)
    assert first.stdout == second.stdout


# Tests apart: calls cross as values.


def test_values_cross_as_they_are(sandbox: Sandbox) -> None:
    values = (
        "[None, True, False, 0, -5, 10**400, 1.5, float('inf'), -0.0, 2j, '', 'aé\\ud800', b'\\x00\\xff', (1, (2,)), "
        "[[]], {1: {'a': [2]}, (1, 2): None}, {1, 2}, frozenset({3}), range(1, 9, 2), set(), {}]"
    )
    tests = (
        f"for value in {values}:\n    got = candidate(value, key=value)\n"
        "    assert type(got) is type(value) and got == value and repr(got) == repr(value)\n"
        "assert candidate(float('nan'), key=float('nan')) != candidate(1, key=1)"
    )
    source = "def add(value, key):\n    assert repr(value) == repr(key)\n    return key"
    assert sandbox.run([Program(source, tests=tests, entry_point="add")])[0].ending is Ending.PASSED


def test_iterators_and_what_extends_plain_values_cross(sandbox: Sandbox) -> None:
    source = (
        "from collections import *\nimport enum\nclass E(enum.IntEnum):\n    A = 4\nP = namedtuple('P', 'x y')\n"
        "def add(a, b):\n    return [Counter('aab'), defaultdict(list, {1: [2]}), P(1, 2), E.A, deque([1]) and None]\n"
        "def gen(n):\n    yield from range(n)\n"
    )
    tests = "assert add(0, 0) == [{'a': 2, 'b': 1}, {1: [2]}, (1, 2), 4, None]"
    generated = "got = gen(3)\nassert next(got) == 0 and list(got) == [1, 2]"
    first, second = sandbox.run(
        [Program(source, tests=tests, entry_point="add"), Program(source, tests=generated, entry_point="gen")]
    )
    assert (first.ending, second.ending) == (Ending.PASSED, Ending.PASSED), (first, second)


def test_exceptions_cross_by_name(sandbox: Sandbox) -> None:
    source = (
        "class Mine(Exception): pass\n"
        "def add(a, b):\n    if a: raise ValueError('no ' + str(b))\n    if b: raise Mine('own')\n"
        "    b'\\xff'.decode('utf-8')\n"
    )
    tests = (
        "try: add(1, 2)\nexcept ValueError as error: assert str(error) == 'no 2'\nelse: assert False\n"
        "try: add(0, 1)\nexcept RuntimeError as error: assert str(error) == 'Mine: own'\nelse: assert False\n"
        "try: add(0, 0)\nexcept UnicodeDecodeError: pass\nelse: assert False\n"
    )
    assert sandbox.run([Program(source, tests=tests, entry_point="add")])[0].ending is Ending.PASSED


def test_an_entry_point_may_be_an_expression_and_tests_may_need_setup(sandbox: Sandbox) -> None:
    program = Program(
        "class Solution:\n    def add(self, a, b):\n        return a + b\n",
        tests="assert candidate(2, 2) == double(2)",
        entry_point="Solution().add",
        setup="def double(x):\n    return 2 * x\n",
    )
    assert sandbox.run([program])[0].ending is Ending.PASSED


def test_what_cannot_cross_is_told_apart_from_a_wrong_program(sandbox: Sandbox) -> None:
    handed = "try:\n    add(lambda: 1, 2)\nexcept BaseException:\n    pass\n"
    (apart, together) = sandbox.run(both_ways("def add(a, b): return 3", handed))
    assert (apart.ending, together.ending) == (Ending.UNTESTABLE, Ending.PASSED)
    assert not apart.ending.known
    assert endings(sandbox, "def add(a, b): return object()") == [Ending.FAILED, Ending.FAILED]


# Programs that would like to be paid.

CHEATS = {
    "_exit": "import os\nos._exit(0)",
    "exit": "import sys\nsys.exit(0)",
    "exit in a call": "import sys\ndef add(a, b): sys.exit(0)",
    "_exit in a call": "import os\ndef add(a, b): os._exit(0)",
    "exit in a thread": "import os, threading\nthreading.Timer(0.01, os._exit, [0]).start()\n"
    "def add(a, b):\n    import time\n    time.sleep(1)",
    "says so": "print('passed')\nimport os\nos.write(1, b'\\nup\\n passed None\\n')\n" + WRONG,
    "catches": "try:\n    raise AssertionError\nexcept BaseException:\n    pass\n" + WRONG,
    "excepthook": "import sys\nsys.excepthook = lambda *a: sys.exit(0)\n" + WRONG,
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\n" + WRONG,
    "builtins": "import builtins\nbuiltins.AssertionError = SystemExit\n" + WRONG,
    "tests rewritten": "TESTS = tests = ''\ncandidate = lambda a, b: 3\ndef check(f): pass\n" + WRONG,
    "kills": "import os, signal\ntry:\n    os.kill(-1, signal.SIGKILL)\nexcept OSError:\n    pass\n" + WRONG,
    "kills its parent": "import os\nfor s in (2, 9, 15, 19):\n    os.kill(os.getppid(), s)\n" + WRONG,
    "kills itself": "import os\nos.kill(os.getpid(), 9)\n" + RIGHT,
    "closes everything": "import os\nos.closerange(0, 64)\n" + WRONG,
    "writes everywhere": "import os\nfor fd in range(64):\n    try: os.write(fd, b'0000000000000007s6:passed')\n"
    "    except OSError: pass\n" + RIGHT,
    "reads everything": "import os\nfor fd in range(3, 16):\n    try: os.set_blocking(fd, False); os.read(fd, 9999)\n"
    "    except OSError: pass\n" + WRONG,
    "raises its own": "class E(BaseException):\n    def __str__(self): raise self\ndef add(a, b): raise E",
}


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_passes(sandbox: Sandbox, name: str) -> None:
    outcomes = sandbox.run(both_ways(CHEATS[name]))
    assert not any(outcome.passed for outcome in outcomes), outcomes
    assert all(outcome.ending.known for outcome in outcomes), outcomes


ALWAYS_EQUAL = "class E(int):\n    def __eq__(self, other): return True\ndef add(a, b): return E(9)"
FRAMES = """
import sys, builtins, os
real = builtins.compile
def compile(source, name, *a, **k):
    return real('' if name == 'tests.py' else source, name, *a, **k)
builtins.compile = compile
def add(a, b): return 9
"""


@pytest.mark.parametrize("source", [ALWAYS_EQUAL, FRAMES])
def test_tests_apart_can_not_be_reached(sandbox: Sandbox, source: str) -> None:
    apart, together = sandbox.run(both_ways(source))
    assert apart.ending is Ending.FAILED
    assert together.passed  # as Program.apart says: in one interpreter there is no defence


def test_the_judge_can_not_be_read_or_touched(sandbox: Sandbox) -> None:
    source = """
import ctypes, os, resource
def tried(what, *args):
    try: what(*args)
    except OSError: return
    print("could", what, args)
parent = os.getppid()
for name in ("fd/0", "fd/1", "mem", "maps", "environ", "auxv"):
    tried(open, f"/proc/{parent}/{name}")
for name in ("fd/0", "fd/1", "root", "cwd", "exe"):
    tried(os.readlink, f"/proc/{parent}/{name}")
tried(resource.prlimit, parent, resource.RLIMIT_NOFILE, (0, 0))
tried(os.setpriority, os.PRIO_PROCESS, parent, 19)
tried(os.sched_setaffinity, parent, {0})
libc = ctypes.CDLL(None)
if libc.ptrace(16, parent, 0, 0) == 0: print("could trace")
"""
    outcome = alone(sandbox, source)
    assert (outcome.ending, outcome.stdout) == (Ending.PASSED, ""), outcome


# Programs that would like more than their share.

BOMBS = {
    "fork": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {Ending.PROCESSES}),
    "fork past Python": ("import ctypes\nfork = ctypes.CDLL(None).fork\nwhile True: fork()", {Ending.PROCESSES}),
    "fork and exec": (
        "import os, sys\nwhile True:\n    if os.fork() == 0:\n"
        "        os.execv(sys.executable, [sys.executable, '-Sc', 'import os\\nwhile True: os.fork()'])",
        {Ending.PROCESSES},
    ),
    "orphans": (
        "import os\nwhile True:\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork(): os._exit(0)",
        {Ending.PROCESSES, Ending.FAILED, Ending.OUTPUT},
    ),
    "threads": (
        "import threading, time\nthreading.stack_size(65536)\n"
        "while True: threading.Thread(target=time.sleep, args=[99]).start()",
        {Ending.PROCESSES, Ending.FAILED},
    ),
    "loop": ("while True: pass", {Ending.TIMEOUT}),
    "memory": ("a = []\nwhile True: a.append(bytearray(2**20))", {Ending.MEMORY}),
    "memory at once": ("b'x' * 2**40", {Ending.MEMORY}),
    "memory of many": (
        "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        b = b'x' * 2**26\n"
        "        time.sleep(9)\ntime.sleep(9)",
        {Ending.MEMORY},
    ),
    "recursion": ("def f(): return f()\nf()", {Ending.FAILED}),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())",
        {Ending.CRASHED, Ending.MEMORY, Ending.FAILED},
    ),
    "output": ("while True: print('x' * 100)", {Ending.OUTPUT}),
    "error output": ("import sys\nwhile True: print('x' * 100, file=sys.stderr)", {Ending.OUTPUT}),
    "file": ("f = open('big', 'wb')\nwhile True: f.write(bytes(2**16))", {Ending.FAILED}),
    "files": (
        "for i in range(10**6):\n    with open(f'{i}', 'wb') as f: f.write(bytes(2**19))",
        {Ending.FAILED},
    ),
    "shared files": (
        "for i in range(10**6):\n    with open(f'/dev/shm/{i}', 'wb') as f: f.write(bytes(2**19))",
        {Ending.FAILED},
    ),
    "descriptors": ("import os\nwhile True: os.dup(1)", {Ending.FAILED}),
    "nesting": ("x = " + "(" * 900 + ")" * 900, {Ending.FAILED, Ending.MEMORY, Ending.CRASHED}),
    "crash": ("import ctypes\nctypes.string_at(0)", {Ending.CRASHED}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_contained(sandbox: Sandbox, name: str) -> None:
    source, expected = BOMBS[name]
    outcomes = sandbox.run([Program(source), *both_ways(source), Program(RIGHT, tests=TESTS, entry_point="add")])
    *bombs, neighbour = (outcome.ending for outcome in outcomes)
    assert set(bombs) <= expected, outcomes
    assert neighbour is Ending.PASSED
    assert all(len(text) <= QUICK.output + 256 for outcome in outcomes for text in (outcome.stdout, outcome.stderr))


def test_a_loop_can_not_ignore_its_time(sandbox: Sandbox) -> None:
    source = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert alone(sandbox, source).ending is Ending.TIMEOUT


def test_waiting_for_ever_ends_with_the_time() -> None:
    sandbox = sandbox_or_skip(Limits(seconds=0.5))
    with contextlib.closing(sandbox):
        for source in (
            "import time\ntime.sleep(999)",
            "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, "
            "ValueError): pass\nwhile True: signal.pause()",
            "import os\nr, w = os.pipe()\nos.read(r, 1)",
        ):
            outcomes = sandbox.run([Program(source), *both_ways(source)])
            assert [outcome.ending for outcome in outcomes] == [Ending.TIMEOUT] * 3


def test_a_call_that_never_returns_ends_with_the_time() -> None:
    sandbox = sandbox_or_skip(Limits(seconds=0.5))
    with contextlib.closing(sandbox):
        assert endings(sandbox, "import time\ndef add(a, b): time.sleep(999)") == [Ending.TIMEOUT, Ending.TIMEOUT]
        endless = "import itertools\ndef add(a, b): return itertools.cycle([0])"
        assert endings(sandbox, endless, "assert next(add(1, 2)) == 1")[0] in {Ending.TIMEOUT, Ending.MEMORY}


def test_a_test_that_hangs_the_judge_ends_too() -> None:
    sandbox = sandbox_or_skip(Limits(seconds=0.5))
    with contextlib.closing(sandbox):
        program = Program("def add(): return 3", tests="add() ** 10**9", entry_point="add")  # no other thread runs
        assert sandbox.run([program])[0].ending in {Ending.EXITED, Ending.TIMEOUT}


# Programs that would like to see or change what is not theirs.


def test_nothing_of_the_machine_is_there(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    monkeypatch.setenv("SPARRING_SECRET", "secret")
    home = str(Path.home() / ".ssh")
    source = f"""
import os, pathlib
for path in ("/etc/shadow", "/etc/passwd", {home!r}, "/home", "/var", "/sys", "/run", "/boot", "/opt", "/mnt",
             "/dev/sda", "/dev/mem", "/dev/tty", {str(secret)!r}, {str(Path(__file__).resolve())!r}):
    if pathlib.Path(path).exists(): print(path)
print("SPARRING_SECRET" in os.environ or "PYTHONPATH" in os.environ)
print([pid for pid in os.listdir("/proc") if pid.isdigit()], os.uname().nodename)
for pid in ("1", "self"):
    print("secret" in open(f"/proc/{{pid}}/cmdline").read())
"""
    outcome = alone(sandbox, source)
    assert outcome.stdout == "False\n['1', '2'] sandbox\nFalse\nFalse\n", outcome


def test_a_program_is_nobody_with_no_rights_and_the_kernel_counts_its_processes(sandbox: Sandbox) -> None:
    source = """
import os, resource
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print([int(status[name], 16) for name in ("CapPrm", "CapEff", "CapAmb")], status["NoNewPrivs"], status["Seccomp"])
print(os.getgroups() in ([], [os.getgid()], [65534]), 0 in os.getresuid() + os.getresgid())
print(resource.getrlimit(resource.RLIMIT_NPROC)[0])
print(os.getuid())
"""
    outcomes = sandbox.run([Program(source)] * 2)
    for outcome in outcomes:
        rights, groups, processes, _ = outcome.stdout.strip().split("\n")
        assert (rights, groups) == ("[0, 0, 0] \t1 \t2", "True False"), outcome
        assert processes == str(QUICK.processes + SPARE)
    users = {int(outcome.stdout.split()[-1]) for outcome in outcomes}
    if is_root():  # to the kernel: whom it lets have any number of processes
        assert len(users) == 2
        assert min(users) >= 2**30
    else:
        assert users == {65534}


def test_nothing_but_its_tmp_can_be_written(sandbox: Sandbox) -> None:
    source = """
import os, sys
def tried(what, path):
    try: what(path)
    except OSError: return
    print("could", what.__name__, path)
def write(path): open(path, "r+b" if os.path.isfile(path) else "wb").close()
def mode(path): os.chmod(path, 0o777)
def remove(path): os.unlink(path) if os.path.isfile(path) else os.rmdir(path)
def make(path): os.mkdir(path + "/new")
for path in ("/new", "/usr/lib/new", "/harness/inside/judge.py", sys.executable, os.__file__,
             "/proc/self/oom_score_adj",
             "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/hostname"):
    for what in (write, mode, remove): tried(what, path)
for path in ("/", "/usr", "/usr/lib", "/proc", "/proc/1", "/harness", sys.base_prefix):
    for what in (mode, remove, make): tried(what, path)
"""
    assert alone(sandbox, source).stdout == ""


def test_there_is_no_network(sandbox: Sandbox) -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        source = f"""
import socket
for host in ("127.0.0.1", "1.1.1.1", "localhost", "example.com"):
    try: socket.create_connection((host, {port}), timeout=1)
    except OSError: continue
    print("connected", host)
print([name for _, name in socket.if_nameindex()])
"""
        assert alone(sandbox, source).stdout == "['lo']\n"


def test_system_calls_that_reach_around_are_refused(sandbox: Sandbox) -> None:
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def refused(name, *args):
    ctypes.set_errno(0)
    if getattr(libc, name)(*args) >= 0 or ctypes.get_errno() != 1: print("not refused", name, ctypes.get_errno())
refused("unshare", 0x10000000)
refused("memfd_create", b"x", 0)
refused("shmget", 0, 4096, 0o1600)
refused("msgget", 0, 0o1600)
refused("mount", b"none", b"/tmp", b"tmpfs", 0, None)
refused("umount2", b"/usr", 2)
refused("ptrace", 0, 0, 0, 0)
refused("setns", 0, 0)
numbers = {"x86_64": (56, 272), "aarch64": (220, 97)}[os.uname().machine]
refused("syscall", numbers[0], 0x10000000 | 17, None, None, None, None)
refused("syscall", numbers[1], 0x10000000)
"""
    outcome = alone(sandbox, source)
    assert (outcome.ending, outcome.stdout) == (Ending.PASSED, ""), outcome


def test_no_descriptor_is_inherited(sandbox: Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        source = """
import os
for fd in os.listdir("/proc/self/fd"):
    try: print(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError: pass  # the listing's own
"""
        outcome = alone(sandbox, source)
    kinds = [line.partition(":")[0] for line in outcome.stdout.split("\n") if line]
    assert sorted(kinds) == ["/tmp/stdin-2 (deleted)", *["pipe"] * 4]  # standard output, error, and to the judge


# Sources that are no text one would write.


@pytest.mark.parametrize(
    "source",
    ["\x00", "print(1)\x00", "\ud800", "x = '\udfff'", "é" * 1000, "\ufeffdef add(", "\\", "# -*- coding: none -*-\nx"],
)
def test_any_source_has_an_outcome(sandbox: Sandbox, source: str) -> None:
    outcomes = sandbox.run(both_ways(source))
    assert {outcome.ending for outcome in outcomes} == {Ending.FAILED}, outcomes


def test_stdin_may_hold_anything_and_may_be_read_to_its_end(sandbox: Sandbox) -> None:
    source = "import sys\nprint(repr(sys.stdin.buffer.read()), sys.stdin.read() == '')"
    outcome = alone(sandbox, source, stdin="a\x00é\ud800")
    assert outcome.stdout == "b'a\\x00\\xc3\\xa9\\xed\\xa0\\x80' True\n"
    assert "EOFError" in alone(sandbox, "input()").stderr


def test_output_may_hold_anything(sandbox: Sandbox) -> None:
    outcome = alone(sandbox, "import os\nos.write(1, bytes(range(256)))")
    assert outcome.passed
    assert outcome.stdout.startswith("\x00\x01")


# What is left behind, and what the sandbox itself does.


def _runs(mark: str) -> bool:
    """Whether a process has the mark as an argument."""
    return any(mark in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))


def _within_moments(happens: Callable[[], bool]) -> bool:
    for _ in range(400):
        if happens():
            return True
        time.sleep(0.02)
    return False


def _descriptors() -> list[str]:
    return sorted(file.name for file in Path("/proc/self/fd").iterdir())


def test_no_process_and_no_file_is_left(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors = _descriptors()
    mark = f"left-by-{os.getpid()}"
    daemon = f"import os, sys\nif os.fork() == 0:\n    os.setsid()\n    open('left', 'w')\n    {sleeper(mark)}"
    outcomes = sandbox.run([Program(source) for source in (daemon, BOMBS["fork"][0], CHEATS["_exit"])])
    assert [outcome.ending for outcome in outcomes] == [Ending.PASSED, Ending.PROCESSES, Ending.PASSED]
    assert _within_moments(lambda: not _runs(mark))
    assert not list(tmp_path.iterdir())
    assert not Path("/tmp/left").exists()
    assert _descriptors() == descriptors


def sleeper(mark: str) -> str:
    """A program that is another one for a long time, with a mark to know it by."""
    command = f"[sys.executable, '-c', 'import time; time.sleep(99)', '{mark}']"
    return f"import os, sys; os.execv(sys.executable, {command})\n"


def test_sandboxes_die_with_the_trainer(sandbox: Sandbox) -> None:
    mark = f"orphan-of-{os.getpid()}"
    code = (
        "from sparring.sandbox import *\n"
        "s = open_sandbox(workers=1)\nprint('open', flush=True)\n"
        f"s.run([Program({sleeper(mark)!r})])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "open\n"
        assert _within_moments(lambda: _runs(mark))
        trainer.send_signal(signal.SIGKILL)
    assert _within_moments(lambda: not _runs(mark))


def test_an_interrupt_stops_what_runs(sandbox: Sandbox) -> None:
    code = (
        "from sparring.sandbox import *\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "s = open_sandbox(workers=2)\nprint('open', flush=True)\n"
        "try:\n    s.run([Program('import time; time.sleep(15)')] * 4)\n"
        "except KeyboardInterrupt:\n    s.close()\n    print('stopped', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "open\n"
        time.sleep(0.5)
        trainer.send_signal(signal.SIGINT)
        assert trainer.stdout.readline() == "stopped\n"


def test_a_closed_sandbox_says_so() -> None:
    sandbox = sandbox_or_skip(workers=1)
    sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run([Program("pass")])


def test_another_python_brings_its_packages() -> None:
    sandbox_or_skip(workers=1).close()
    with contextlib.closing(open_sandbox(python=sys.executable, workers=1, limits=Limits(seconds=60))) as sandbox:
        outcome = alone(sandbox, "import httpx, sys; print(sys.prefix)")
    assert (outcome.ending, outcome.stdout) == (Ending.PASSED, f"{sys.prefix}\n"), outcome


# Where there is no sandbox.


def test_without_bubblewrap_nothing_runs_and_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxError, match=r"apt install bubblewrap.*dnf install bubblewrap.*pacman -S bubblewrap"):
        open_sandbox()


@pytest.mark.parametrize("said", ["bwrap: No permissions to create new namespace", ""])
def test_without_namespaces_nothing_runs_and_the_error_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = {"kernel/unprivileged_userns_clone": "0", "kernel/apparmor_restrict_unprivileged_userns": "1"}
    monkeypatch.setattr(bubblewrap, "_setting", settings.get)
    with pytest.raises(SandboxError) as raised:
        open_sandbox()
    assert said in str(raised.value)
    assert "sysctl -w kernel.unprivileged_userns_clone=1" in str(raised.value)
    assert "AppArmor" in str(raised.value)


def test_a_bwrap_that_runs_the_program_itself_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho up\necho ' passed 0'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="ended as exited"):
        open_sandbox()


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox_or_skip(workers=1).close()
    assert seccomp.filter_for("sparc") is None
    monkeypatch.setattr(bubblewrap.platform, "machine", lambda: "sparc")
    with pytest.raises(SandboxError, match="sparc"):
        open_sandbox()


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="memory must be above 0"):
        Limits(memory=0)
    with pytest.raises(ValueError, match="seconds must be above 0"):
        Limits(seconds=float("nan"))
    with pytest.raises(ValueError, match="leave python empty"):
        open_sandbox(url="http://localhost:1", python="python3")
    with pytest.raises(SandboxError, match="can't be started"):
        Interpreter.at(tmp_path / "none")


def test_a_home_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path(sys.base_prefix) / "home")
    with pytest.raises(SandboxError, match="name another python"):
        Interpreter.this()
