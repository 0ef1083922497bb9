"""Accuracy benchmarks as evaluations: a model's, and beside another's item by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from sparring.evaluation.answers import AT_ONCE, Answerer, answering
from sparring.evaluation.benchmarks import BenchmarkReport, benchmark_named
from sparring.evaluation.benchmarks.runner import BenchmarkRun, benchmark_role, run_benchmark
from sparring.evaluation.comparison import Evaluation, Outcome, compare, table
from sparring.evaluation.document import document
from sparring.evaluation.harness import HarnessRecord
from sparring.evaluation.tables import accuracy_table

if TYPE_CHECKING:
    from sparring.cli_evaluated import Subject

PREFERRED = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1")
"""Which of a task's figures in the harness stands for it, where it has several."""


def measure(
    name: str,
    asked: Subject,
    folder: Path,
    say: Callable[[str], None],
    *,
    base: str | None,
    file: str | None,
    n: int | None,
    samples: int,
    pass_at: Sequence[int],
    temperature: float,
    seed: int,
    max_new_tokens: int,
) -> tuple[dict[str, Any], list[Table]]:
    """A model on a benchmark: the content of a file, and tables for the screen. Answers are kept in the folder.

    Raises:
        ValueError: the set can't be read, there is no such model, or settings don't go together.
    """
    benchmark = benchmark_named(name)
    items = benchmark.load(file)[:n]
    runs: dict[str, BenchmarkRun] = {}
    try:
        paths = [asked.path] if base is None else [asked.path, base]
        configs = [
            answering(asked.loading(p), temperature=temperature, tokens=max_new_tokens, seed=seed) for p in paths
        ]
        role = benchmark_role(benchmark, configs[0].game.solver, temperature=temperature)
        # All models are found before any answers.
        prompts = [role.prompt(query=item.query, info={"query_text": item.query}) for item in items]
        answerers = [Answerer(config, role, prompts, folder=folder, say=say, n=samples) for config in configs]
        for path, answerer in zip(paths, answerers, strict=True):
            runs[path] = run_benchmark(benchmark, items, answerer, role, n=samples, batch=AT_ONCE, pass_at=pass_at)
            _say_flaws(path, runs[path], max_new_tokens, say)
    finally:
        benchmark.close()
    body, tables = _body(runs[asked.path]), [accuracy_table(run.report, path) for path, run in runs.items()]
    if base is not None:
        compared = _compared(runs[asked.path], runs[base])
        body |= {"against_base": compared.to_json(), "base_report": runs[base].report.to_json()}
        beside = table(compared)
        beside.title = escape(f"{base} against {asked.path}")
        tables.append(beside)
    settings = {
        "file": file,
        "n": n,
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "prompt": role.template,
        "system": role.system,
    }
    return document("accuracy", name, "accuracy", model=asked.path, base=base, body=body, settings=settings), tables


def harness_document(records: Sequence[HarnessRecord], model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's figures as an evaluation: a subset a task, by the first of its fractions in `PREFERRED`, else its
    first. Overall is the plain mean of the tasks that were asked for, and has no interval.

    Raises:
        ValueError: no figure is a fraction.
    """
    chosen: dict[str, HarnessRecord] = {}
    for record in sorted(records, key=_rank):
        if 0 <= record.value <= 1:  # a perplexity is no accuracy
            chosen.setdefault(record.task, record)
    if not chosen:
        raise ValueError("--tasks: the harness's figures for these tasks hold no accuracy, so there is nothing to keep")
    # A group comes with its parts.
    whole = [chosen[task] for task in settings["tasks"] if task in chosen] or list(chosen.values())
    subsets = {
        task.replace("/", "-"): {
            "n": record.items or 0,
            "accuracy": record.value,
            "ci95": None if record.stderr is None else _normal(record.value, record.stderr),
            "figure": f"{record.metric},{record.filter}",
        }
        for task, record in chosen.items()
    }
    overall = {
        "n": sum(record.items or 0 for record in whole) or sum(record.items or 0 for record in chosen.values()),
        "accuracy": float(np.mean([record.value for record in whole])),
        "ci95": None,
    }
    body = {"overall": overall, "subsets": subsets, "records": [asdict(record) for record in records]}
    return document("lm-eval", "lm-eval", "accuracy", model=model, base=None, body=body, settings=settings)


def _say_flaws(path: str, run: BenchmarkRun, tokens: int, say: Callable[[str], None]) -> None:
    cut = run.truncated - run.too_long
    if cut > 0:
        say(f"{path}: {cut:.0%} of the answers were cut off at {tokens} tokens")
    if run.too_long > 0:
        say(f"{path}: {run.too_long:.0%} of the questions leave no room in the model's context: they are wrong")
    if run.report.unscored > 0:
        say(f"{path}: {run.report.unscored:.0%} of the answers could not be judged: they are wrong")


def _compared(mine: BenchmarkRun, other: BenchmarkRun) -> Evaluation:
    """Item by item, by the share of an item's answers that are right."""
    return compare(
        Outcome(a.item_id, a.subset, float(np.mean(b.scores)), float(np.mean(a.scores)))
        for a, b in zip(mine.results, other.results, strict=True)
    )


def _body(run: BenchmarkRun) -> dict[str, Any]:
    report: BenchmarkReport = run.report
    fields = report.to_json()
    items = [{"item_id": result.item_id, "scores": list(result.scores)} for result in run.results]
    more = {"truncated": run.truncated, "too_long": run.too_long, "items": items}
    return {**{key: value for key, value in fields.items() if key != "benchmark"}, **more}


def _rank(record: HarnessRecord) -> int:
    return PREFERRED.index(record.metric) if record.metric in PREFERRED else len(PREFERRED)


def _normal(value: float, stderr: float) -> list[float]:
    return [value - 1.96 * stderr, value + 1.96 * stderr]
