"""Accuracy benchmarks as evaluations: a model's, and beside another's item by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from sparring.evaluation.answers import answering
from sparring.evaluation.benchmarks import BenchmarkReport, benchmark_named
from sparring.evaluation.benchmarks.runner import BenchmarkRun, benchmark_role, run_benchmark
from sparring.evaluation.comparison import Outcome, compare, table
from sparring.evaluation.document import document
from sparring.evaluation.harness import HarnessRecord
from sparring.evaluation.tables import accuracy_table
from sparring.models import build_models
from sparring.settings import RunConfig
from sparring.writers import build_sampler

if TYPE_CHECKING:
    from sparring.cli_evaluated import Subject

PREFERRED = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1")
"""Which of a task's figures in the harness stands for it, where it has several."""


def measure(
    name: str,
    asked: Subject,
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
    """A model on a benchmark: the content of a file, and tables for the screen.

    Raises:
        ValueError: the set can't be read, or settings don't go together.
    """
    benchmark = benchmark_named(name)
    items = benchmark.load(file)[:n]
    runs: dict[str, BenchmarkRun] = {}
    try:
        for path in [asked.path] if base is None else [asked.path, base]:
            say(f"{path} answers {len(items)} questions of {name}")
            config = answering(asked.config, path, temperature=temperature, tokens=max_new_tokens)
            runs[path] = _run(benchmark, items, config.model_copy(update={"seed": seed}), samples, pass_at)
            if runs[path].truncated > 0:
                say(f"{runs[path].truncated:.0%} of the answers were cut off at {max_new_tokens} tokens")
            if runs[path].too_long > 0:
                say(f"{runs[path].too_long:.0%} of the questions leave no room in the model's context: they are wrong")
    finally:
        benchmark.close()
    tables = [accuracy_table(run.report, path) for path, run in runs.items()]
    body = _body(runs[asked.path])
    if base is not None:
        mine, other = runs[asked.path].results, runs[base].results
        outcomes = [
            Outcome(a.item_id, a.subset, float(np.mean(b.scores)), float(np.mean(a.scores)))
            for a, b in zip(mine, other, strict=True)
        ]
        compared = compare(outcomes)
        body |= {"against_base": compared.to_json(), "base_report": runs[base].report.to_json()}
        tables.append(table(compared))
    settings = {
        "file": file,
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "prompt": benchmark.template,
    }
    return document("accuracy", name, "accuracy", model=asked.path, base=base, body=body, settings=settings), tables


def harness_document(records: Sequence[HarnessRecord], model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's figures as an evaluation: a subset a task, by the first of its figures in `PREFERRED`, else its
    first. Overall is the tasks' plain mean and has no interval."""
    chosen: dict[str, HarnessRecord] = {}
    for record in sorted(records, key=_rank):
        chosen.setdefault(record.task, record)
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
        "n": sum(entry["n"] for entry in subsets.values()),
        "accuracy": float(np.mean([record.value for record in chosen.values()])),
        "ci95": None,
    }
    body = {"overall": overall, "subsets": subsets, "records": [asdict(record) for record in records]}
    return document("lm-eval", "lm-eval", "accuracy", model=model, base=None, body=body, settings=settings)


def _run(benchmark: Any, items: Sequence[Any], config: RunConfig, n: int, pass_at: Sequence[int]) -> BenchmarkRun:
    models = build_models(config, trainable=False)
    role = benchmark_role(benchmark, config.game.solver, temperature=config.game.solver.temperature)
    return run_benchmark(benchmark, items, build_sampler(models, config).at(0), role, n=n, pass_at=pass_at)


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
