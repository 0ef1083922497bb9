"""HumanEval: functions completed from their docstring, run in a sandbox. Source: Chen et al. 2021, arXiv 2107.03374."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sparring.domains import TestItem
from sparring.evaluation.benchmarks.base import Benchmark, ItemResult, flat, grouped
from sparring.evaluation.benchmarks.rows import Row, Source
from sparring.rewards.code import extract_code, program_of
from sparring.sandbox import Program, Sandbox, open_sandbox


class HumanEval(Benchmark):
    """164 Python functions with tests.

    Args:
        sandbox: where programs run; None: `open_sandbox()`, with the first answers. Nothing runs outside one.
    """

    name: ClassVar[str] = "humaneval"
    source: ClassVar[Source] = Source("openai/openai_humaneval", "test")

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        self._sandbox = sandbox

    def item(self, row: Row) -> TestItem:
        """A row of `task_id`, `prompt`, `test` and `entry_point`."""
        columns = {"test": row.text("test"), "entry_point": row.text("entry_point")}
        return TestItem(row.text("task_id"), (), row.text("prompt").rstrip(), columns)

    def score(self, items: Sequence[TestItem], answers: Sequence[Sequence[str]]) -> list[ItemResult]:
        """1 where the program passes its tests; an answer without code is wrong.

        Raises:
            SandboxError: there is no sandbox here.
        """
        programs = [_program(item, answer) for item, answer in flat(items, answers)]
        run = [program for program in programs if program is not None]
        if run:
            self._sandbox = self._sandbox or open_sandbox()
        outcomes = iter(self._sandbox.run(run) if self._sandbox is not None and run else ())
        scores: list[float | None] = []
        for program in programs:
            outcome = None if program is None else next(outcomes)
            scores.append(0.0 if outcome is None else float(outcome.passed) if outcome.ending.known else None)
        return grouped(items, answers, scores)

    def close(self) -> None:
        """Close the sandbox."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None


def _program(item: TestItem, answer: str) -> Program | None:
    code = extract_code(answer)
    if code is None:
        return None
    return program_of(code, item.columns["test"], item.columns["entry_point"], f"{item.query}\n")
