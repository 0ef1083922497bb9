"""What crosses between here and the judge inside a sandbox: a task goes in, a marked verdict comes out."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass

from sparring.sandbox.base import Ending, Limits, Outcome, Program
from sparring.sandbox.inside.codec import encode
from sparring.sandbox.inside.judge import UP

MARKS = 256
"""Bytes of standard output that are the judge's, at most."""


@dataclass(frozen=True)
class Task:
    """A program on its way: what the judge reads, and the secret that its verdict must bear."""

    data: bytes
    nonce: str


def task_of(program: Program, limits: Limits, uid: int | None = None) -> Task:
    """The judge's standard input for a program, ASCII; uid: whom the sandbox's root becomes."""
    nonce = secrets.token_hex(16)
    fields = {
        "source": program.source,
        "stdin": program.stdin,
        "tests": program.tests,
        "entry_point": program.entry_point,
        "setup": program.setup,
        "how": _how(program),
        "limits": asdict(limits),
        "nonce": nonce,
        "uid": uid,
    }
    return Task(encode(fields).hex().encode(), nonce)


def _how(program: Program) -> str:
    if program.tests is None:
        return "alone"
    return "apart" if program.entry_point and program.apart else "together"


@dataclass(frozen=True)
class Written:
    """What came out of a sandbox that ended by itself, or was ended.

    Args:
        stopped: how it was ended from outside; None: it ended by itself.
    """

    stdout: bytes
    stderr: bytes
    seconds: float
    stopped: Ending | None = None

    def outcome(self, nonce: str) -> Outcome:
        """The judge's verdict, where there is one that bears the nonce."""
        body = self.stdout.removeprefix(UP)
        up = self.stdout.startswith(UP)
        output, mark, verdict = body.rpartition(f"\n{nonce} ".encode())
        if self.stopped is None and mark:
            ending, _, status = verdict.decode().strip().partition(" ")
            return self._outcome(Ending(ending), None if status == "None" else int(status), output)
        if not up:
            return self._outcome(Ending.ERROR, None, body)
        return self._outcome(self.stopped or Ending.EXITED, None, output if mark else body)

    def _outcome(self, ending: Ending, status: int | None, output: bytes) -> Outcome:
        stdout, stderr = (text.decode(errors="replace") for text in (output, self.stderr))
        return Outcome(ending, status, stdout, stderr, self.seconds)
