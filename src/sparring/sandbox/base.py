"""Running programs nobody has read: what goes in, what comes out, and what a sandbox promises.

A sandbox denies by default: a program gets an interpreter, its standard input and a small private /tmp. It is stopped
at its limits, and whatever it does costs its own outcome alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

MIB = 2**20


class SandboxError(ValueError):
    """Programs can't be run safely here, or the sandbox itself fails; the message says what to install or set."""


class Ending(StrEnum):
    """How a program ended."""

    PASSED = "passed"
    """Its tests ended without raising; without tests: it ended with exit status 0."""
    FAILED = "failed"
    """It raised, one of its tests did, or (without tests) its exit status is not 0."""
    EXITED = "exited"
    """Its process ended before its tests did."""
    CRASHED = "crashed"
    """A signal ended it."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT = "output"
    PROCESSES = "processes"
    UNTESTABLE = "untestable"
    """Its tests hand over what can't cross to another process (see Program.apart): nothing is known about it."""
    ERROR = "error"
    """The sandbox failed: nothing is known about the program."""

    @property
    def known(self) -> bool:
        """Whether it says something about the program."""
        return self not in {Ending.UNTESTABLE, Ending.ERROR}


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Args:
        seconds: of wall time, from the start of its interpreter.
        cpu_seconds: of CPU time, each process; rounded up to whole ones.
        memory: bytes of address space each process, and of resident memory all together.
        processes: processes and threads at once, the program's first included.
        output: bytes of standard output, and of standard error; whoever writes more is stopped.
        file_size: bytes of one file, and of all in /tmp.
    """

    seconds: float = 20.0
    cpu_seconds: float = 10.0
    memory: int = 1024 * MIB
    processes: int = 32
    output: int = 64 * 1024
    file_size: int = 16 * MIB

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"the sandbox's limit {name} must be above 0, not {value}")


@dataclass(frozen=True)
class Program:
    """A Python program, and how it is judged.

    Args:
        source: the program, from wherever it comes.
        stdin: its standard input.
        tests: trusted source that runs after it and raises where it is wrong; None: nothing but the program runs, as
            `__main__`.
        entry_point: an expression that gives what is tested, such as `add` or `Solution().add`; the tests find it under
            that name (where it is one) and as `candidate`.
        setup: trusted source that the tests need before them (HumanEval's prompt, say); used only where they run apart.
        apart: with an entry_point, run the tests in a process that the program can't reach. Calls cross as plain values
            (None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, iterators of these),
            so a program can only answer calls. False: in the program's own interpreter, where tests may touch
            anything, and a program that knows this package can claim that they passed.
    """

    source: str
    stdin: str = ""
    tests: str | None = None
    entry_point: str | None = None
    setup: str = ""
    apart: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a program did.

    status is its exit status, minus the signal where one ended it, None where it was stopped or never ended by itself.
    stdout and stderr are what it wrote, within Limits.output. seconds are of wall time.
    """

    ending: Ending
    status: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it did what was asked."""
        return self.ending is Ending.PASSED


class Sandbox(Protocol):
    """Runs programs apart from everything."""

    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        """An outcome a program, in order; several run at once. Never raises for what a program does.

        Raises:
            SandboxError: the sandbox is closed.
        """
        ...

    def close(self) -> None:
        """Stop what still runs and let go of what is held open."""
        ...
