"""Benchmarks: GSM8K, MATH-500, HumanEval and IFEval, scored by programs."""

from __future__ import annotations

import difflib

from sparring.evaluation.benchmarks.answers import GSM8K, Math500
from sparring.evaluation.benchmarks.base import Accuracy, Benchmark, BenchmarkReport, ItemResult
from sparring.evaluation.benchmarks.humaneval import HumanEval
from sparring.evaluation.benchmarks.ifeval import IFEval

__all__ = ["BENCHMARKS", "Accuracy", "Benchmark", "BenchmarkReport", "ItemResult", "benchmark_named"]

BENCHMARKS: dict[str, type[Benchmark]] = {kind.name: kind for kind in (GSM8K, Math500, HumanEval, IFEval)}


def benchmark_named(name: str) -> Benchmark:
    """A benchmark by name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BENCHMARKS)}"
        raise ValueError(f"unknown benchmark {name!r}; {hint}")
    return BENCHMARKS[name]()
