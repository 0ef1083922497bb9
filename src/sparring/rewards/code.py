"""Verifiable reward for code: 1 where a model's program passes its row's tests in a sandbox, else 0.

    game.reward.function=sparring.rewards.code:passes_tests

runs with bubblewrap on this machine; a file of yours with `reward = CodeReward(open_sandbox(url=...))` may say
otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sparring.rewards.base import RewardError
from sparring.sandbox import Ending, Outcome, Program, Sandbox, open_sandbox

_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})([^`]*)")
_PYTHON = {"", "py", "python", "python3"}
_CHECKS = re.compile(r"^def check\(", re.MULTILINE)
_CHECKED = re.compile(r"^check\(", re.MULTILINE)
_NAME = re.compile(r"[^\W\d]\w*")


@dataclass
class _Block:
    indent: str
    fence: str
    language: str
    lines: list[str]

    def ends_at(self, line: str) -> bool:
        found = _FENCE.fullmatch(line)
        return found is not None and found[2].startswith(self.fence) and not found[3].strip()

    def add(self, line: str) -> None:
        self.lines.append(line.removeprefix(self.indent))


def extract_code(text: str) -> str | None:
    """The program in a model's answer: its last closed block of Python (or of no named language), else all of it.

    None where it has blocks of code but none such, or nothing at all. Never raises.

    >>> extract_code("So:\\n```python\\nx = 1\\n```\\nDone."), extract_code("x = 2"), extract_code("```python\\nx = 3")
    ('x = 1', 'x = 2', None)
    """
    code, block, blocks = None, None, 0
    for line in text.split("\n"):
        if block is None:
            found = _FENCE.fullmatch(line)
            if found:
                blocks += 1
                block = _Block(found[1], found[2], "".join(found[3].lower().split()[:1]), [])
        elif block.ends_at(line):
            code = "\n".join(block.lines) if block.language in _PYTHON else code
            block = None
        else:
            block.add(line)
    code = text if not blocks else code
    return code if code and code.strip() else None


def program_of(
    code: str, tests: str, entry_point: str | None = None, prompt: str | None = None, *, apart: bool = True
) -> Program:
    """A model's code with what it is tested by.

    A prompt that defines the entry point, as HumanEval's do, stands before the code: as its head where the code goes on
    from there, for its imports and helpers where the code defines the entry point itself. Tests that define
    check(candidate) and never call it are called.
    """
    head = prompt if prompt and entry_point and _defines(prompt, entry_point) else ""
    source = code
    if head and entry_point:
        source = f"{head}\n\n{code}" if _defines(code, entry_point) else head + code
    if entry_point and _CHECKS.search(tests) and not _CHECKED.search(tests):
        tests += "\n\ncheck(candidate)\n"
    return Program(source, tests=tests, entry_point=entry_point, setup=head, apart=apart)


class CodeReward:
    """1.0 for a program that passes its tests, 0.0 for any other and for an answer without one.

    None where the sandbox failed, or where the tests can't run apart.

    Columns: `tests` is Python that raises where the program is wrong; `entry_point` what it tests (then the program
    can't reach the tests, see sandbox.Program); `prompt` (else the query) is the program's begin, where it defines the
    entry point.

    Args:
        sandbox: where programs run; None: bubblewrap on this machine, opened with the first answers.
        apart: run tests of an entry point in a process of their own.
    """

    def __init__(self, sandbox: Sandbox | None = None, *, apart: bool = True) -> None:
        self._sandbox, self._apart = sandbox, apart
        self._counts: Counter[str] = Counter()

    def __call__(
        self,
        queries: Sequence[str],
        answers: Sequence[str],
        tests: Sequence[str | None] | None = None,
        entry_point: Sequence[str | None] | None = None,
        prompt: Sequence[str | None] | None = None,
    ) -> list[float | None]:
        """A reward an answer.

        Raises:
            RewardError: a row without tests, or the sandbox failed for every program.
            SandboxError: there is no sandbox here.
        """
        missing: list[None] = [None] * len(answers)
        programs: dict[int, Program] = {}
        rows = zip(queries, answers, tests or missing, entry_point or missing, prompt or missing, strict=True)
        for index, (query, answer, test, entry, head) in enumerate(rows):
            if not isinstance(test, str) or not test.strip():
                raise RewardError(f"the reward for code needs a column `tests`, Python source: {query[:80]!r} has none")
            code = extract_code(answer)
            if code is not None:
                programs[index] = program_of(code, test, entry, head or query, apart=self._apart)
        outcomes = dict(zip(programs, self._run(list(programs.values())), strict=True))
        self._counts["no_code"] += len(answers) - len(outcomes)
        return [_score(outcomes.get(index)) for index in range(len(answers))]

    def drain(self) -> dict[str, float]:
        """Shares of the answers since the last call: `no_code`, and every way a program may end."""
        total = self._counts.total()
        shares = {name: self._counts[name] / total for name in ("no_code", *Ending)} if total else {}
        self._counts.clear()
        return {str(name): share for name, share in shares.items()}

    def close(self) -> None:
        """Close the sandbox."""
        if self._sandbox is not None:
            self._sandbox.close()

    def _run(self, programs: Sequence[Program]) -> list[Outcome]:
        if not programs:
            return []
        self._sandbox = self._sandbox or open_sandbox()
        outcomes = self._sandbox.run(programs)
        self._counts.update(outcome.ending for outcome in outcomes)
        if all(outcome.ending is Ending.ERROR for outcome in outcomes):
            raise RewardError(f"the sandbox failed for all of {len(outcomes)} programs: {outcomes[0].stderr[-500:]}")
        return outcomes


def _score(outcome: Outcome | None) -> float | None:
    if outcome is None:
        return 0.0
    return float(outcome.passed) if outcome.ending.known else None


def _defines(source: str, entry_point: str) -> bool:
    """Whether source has a definition of (the first name of) the entry point at its top level."""
    found = _NAME.match(entry_point)
    if found is None:
        return False
    name = re.escape(found[0])
    return bool(re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*=", source, re.MULTILINE))


passes_tests = CodeReward()
