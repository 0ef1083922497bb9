"""Sandboxed programs a second, and what a sandbox adds to a bare start of the same interpreter.

    python benchmarks/sandbox.py [--programs 32] [--workers 2] [--json rows.json]

Each program is HumanEval's size: a function, three tests of it. "apart": tests that the program can't reach;
"together": in its own interpreter; "bare": the interpreter alone, `pass`, started as often by as many threads: the
floor, with no sandbox and no tests. The sides take turns, and ratios are medians over rounds, so that a busy machine
disturbs all alike; CPU time is what neighbours disturb least.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median

from sparring.sandbox import Program, open_sandbox
from sparring.sandbox.interpreter import Interpreter

ROUNDS = 5
SOURCE = """
def mean_absolute_deviation(numbers):
    mean = sum(numbers) / len(numbers)
    return sum(abs(x - mean) for x in numbers) / len(numbers)
"""
TESTS = """
def check(candidate):
    assert abs(candidate([1.0, 2.0, 3.0]) - 2.0 / 3.0) < 1e-6
    assert abs(candidate([1.0, 2.0, 3.0, 4.0]) - 1.0) < 1e-6
    assert abs(candidate([1.0, 2.0, 3.0, 4.0, 5.0]) - 6.0 / 5.0) < 1e-6


check(candidate)
"""


def bare(count: int, workers: int) -> None:
    """The interpreter, started and ended."""
    interpreter = Interpreter.this()
    command = [str(interpreter.executable), *interpreter.flags, "-sBc", "pass"]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: subprocess.run(command, env={}, check=True), range(count)))


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the wall, and of the started processes' CPU time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=32)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    count = given.programs
    with closing(open_sandbox(workers=given.workers)) as sandbox:
        sides: dict[str, Callable[[], object]] = {"bare": partial(bare, count, given.workers)}
        for name in ("together", "apart"):
            program = Program(SOURCE, tests=TESTS, entry_point="mean_absolute_deviation", apart=name == "apart")
            assert all(outcome.passed for outcome in sandbox.run([program] * count))
            sides[name] = partial(sandbox.run, [program] * count)
        rounds = [{name: measured(run) for name, run in sides.items()} for _ in range(ROUNDS)]
    rows = [
        {
            "side": name,
            "a_second": count / median(taken[name][0] for taken in rounds),
            "cpu_ms": 1000 * median(taken[name][1] for taken in rounds) / count,
            "ratio": {
                kind: median(taken[name][index] / taken["bare"][index] for taken in rounds)
                for index, kind in enumerate(("wall", "cpu"))
            },
        }
        for name in sides
    ]
    print(f"{count} programs, {given.workers} at once")
    for row in rows:
        ratio = row["ratio"]
        print(
            f"{row['side']:>9}: {row['a_second']:6.1f} a second ({ratio['wall']:.2f} times a bare start), "
            f"{row['cpu_ms']:5.1f} ms of CPU ({ratio['cpu']:.2f} times)"
        )
    if given.json:
        given.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
