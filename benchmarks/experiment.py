"""The experiment of the README: self-play against its controls on the embedded arena.

    python benchmarks/experiment.py --out runs/experiment            # an hour to an hour and a half, two cores
    python benchmarks/experiment.py --out runs/experiment --quick    # two seeds, short runs only
    python benchmarks/experiment.py --out runs/experiment --table    # only the table of what is there

Every (arm, base, seed) is one run with a result file of its own: an interrupted experiment goes on where it stopped.
Each run is measured on the fresh test set twice, after a fixed number of steps and after a fixed number of CPU-seconds
of training (evaluation not counted), so every comparison is matched both ways.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

BASES = {"a": "arena", "b": str(Path(__file__).parent / "arena-base-b")}


@dataclass(frozen=True)
class Arm:
    """One line of the table: a recipe with overrides, perhaps from another arm's result."""

    name: str
    recipe: str
    preset: str = "arena"
    overrides: tuple[str, ...] = ()
    after: str | None = None
    long: bool = False


ALL_FROZEN = ("game.challenge.frozen_share=1.0",)
ARMS = (
    Arm("GRPO on data", "grpo"),
    Arm("LSP-Zero", "lsp-zero"),
    Arm("LSP (paper)", "lsp", "arena-paper"),
    Arm("LSP (default)", "lsp"),
    Arm("frozen Challenger", "lsp", overrides=ALL_FROZEN),
    Arm("alpha = 0, same mix", "lsp", overrides=("game.alpha=0",)),
    Arm("GRPO, then GRPO", "grpo", after="GRPO on data"),
    Arm("GRPO, then LSP", "lsp", after="GRPO on data"),
)
LONG = ("GRPO on data", "LSP (default)", "frozen Challenger", "LSP (paper)")


@dataclass(frozen=True)
class Job:
    """One run."""

    arm: Arm
    base: str
    seed: int
    steps: int
    seconds: float
    items: int

    @property
    def name(self) -> str:
        kind = "long" if self.arm.long else "short"
        slug = "".join(c if c.isalnum() else "-" for c in self.arm.name.lower())
        return f"{kind}-{slug}-{self.base}-{self.seed}"


def jobs(seeds: Sequence[int], steps: int, seconds: float, long_factor: int, items: int) -> list[Job]:
    """Short runs of every arm, then long ones of the arms that decide; continuations after what they continue."""
    short = [Job(arm, base, seed, steps, seconds, items) for arm in ARMS for seed in seeds for base in BASES]
    if not long_factor:
        return short
    chosen = [replace(arm, long=True) for arm in ARMS if arm.name in LONG]
    return short + [
        Job(arm, base, seed, steps * long_factor, seconds * long_factor, items)
        for arm in chosen
        for seed in seeds
        for base in BASES
    ]


class Milestones:
    """Watches a run: test accuracy after `steps` steps and after `seconds` CPU-seconds of training."""

    def __init__(self, job: Job, measure: Callable[[], dict[str, float]]) -> None:
        self.job, self._measure = job, measure
        self.by_steps: dict[str, Any] | None = None
        self.by_seconds: dict[str, Any] | None = None
        self.curve: list[dict[str, float]] = []
        self._began = time.process_time()
        self._outside = 0.0

    @property
    def trained(self) -> float:
        return time.process_time() - self._began - self._outside

    @property
    def done(self) -> bool:
        return self.by_steps is not None and self.by_seconds is not None

    def started(self, step: int, steps: int) -> None:
        self._began, self._outside = time.process_time(), 0.0

    def said(self, message: str) -> None:
        pass

    def stepped(self, step: int, metrics: Mapping[str, float], turns: Sequence[Any], payoffs: Any) -> None:
        kept = (
            "game/V",
            "game/V_Q",
            "game/valid_share",
            "game/dead_groups",
            "game/level",
            "game/distinct_queries",
            "kl/solver",
            "eval/easy",
            "eval/hard",
        )
        self.curve.append({"step": step, "cpu": self.trained, **{k: metrics[k] for k in kept if k in metrics}})
        if self.by_steps is None and step >= self.job.steps:
            self.by_steps = self._at(step)
        if self.by_seconds is None and self.trained >= self.job.seconds:
            self.by_seconds = self._at(step)

    def _at(self, step: int) -> dict[str, Any]:
        cpu, before = self.trained, time.process_time()
        reached = {"step": step, "cpu": cpu, **self._measure()}
        self._outside += time.process_time() - before
        return reached


class _Enough(Exception):  # noqa: N818 - nothing failed
    """Both milestones are reached."""


def run(job: Job, out: Path) -> str:
    """One run to both of its milestones; returns the job's name."""
    import torch
    from transformers.utils import logging

    from sparring.config import resolve
    from sparring.files import write_json_atomic
    from sparring.recipes import recipe
    from sparring.run import assemble, held_out
    from sparring.runfolder import RunFolder
    from sparring.stages import lineage

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    start = BASES[job.base]
    if job.arm.after is not None:
        before = replace(job, arm=next(a for a in ARMS if a.name == job.arm.after))
        start = str(out / "runs" / before.name / "model")
    settings = (
        *job.arm.overrides,
        f"model.path={start}",
        f"seed={100 + job.seed}",
        f"steps={job.steps * 20}",
        "evaluation.every=0",
        "checkpoint.every=0",
        "checkpoint.turns_every=0",
        "threads=1",
        "health.on_alarm=go_on",  # what collapses is shown collapsing
        "health.match_every=0",
    )
    config = resolve(recipe(job.arm.recipe, job.arm.preset), None, settings)
    folder_path = out / "runs" / job.name
    _discard(folder_path)
    with RunFolder(folder_path).create(config.to_yaml(), lineage(config, config.game.kind)) as folder:
        test = held_out(config, config.evaluation.seed, job.items)
        assert test is not None
        milestones = Milestones(job, lambda: _accuracies(test, parts.sampler))
        parts = assemble(config, folder, observer=milestones)
        base = _accuracies(test, parts.sampler)
        _run_until(parts, milestones)
    write_json_atomic(
        out / "results" / f"{job.name}.json",
        {
            "arm": job.arm.name, "long": job.arm.long, "base": job.base, "seed": job.seed, "start": base,
            "by_steps": milestones.by_steps, "by_seconds": milestones.by_seconds, "curve": milestones.curve,
        },
    )  # fmt: skip
    return job.name


def _run_until(parts: Any, milestones: Milestones) -> None:
    """Train until both milestones are reached; the trainer's own end is far beyond them."""
    from sparring.lm.load import save_model

    watch = milestones.stepped

    def stepped(*args: Any) -> None:
        watch(*args)
        if milestones.done:
            raise _Enough

    milestones.stepped = stepped  # type: ignore[method-assign]
    try:
        parts.trainer.run()
    except _Enough:
        save_model(parts.models.model, parts.models.tokenizer, parts.trainer.folder.model)


def _accuracies(test: Any, sampler: Any) -> dict[str, Any]:
    """Accuracy by split, and by split and family."""
    scores: dict[str, list[float]] = {}
    for item, score in zip(test.items, test.scores(sampler.at(0)), strict=True):
        for depth in (1, 2):
            scores.setdefault("/".join(item.subset[:depth]), []).append(score)
    return {name: sum(values) / len(values) for name, values in sorted(scores.items())}


def _discard(folder: Path) -> None:
    """A run without a result was interrupted: it starts again."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experiment"))
    parser.add_argument("--quick", action="store_true", help="two seeds, short runs only")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="steps of a short run")
    parser.add_argument("--seconds", type=float, default=25.0, help="CPU-seconds of a short run")
    parser.add_argument("--long", type=int, default=3, help="a long run is this many short ones; 0: none")
    parser.add_argument("--items", type=int, default=1000, help="test questions a split")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of what is there")
    parser.add_argument("--json", type=Path, help="write a row an arm here")
    arguments = parser.parse_args()
    seeds = range(2 if arguments.quick else arguments.seeds)
    every = jobs(seeds, arguments.steps, arguments.seconds, 0 if arguments.quick else arguments.long, arguments.items)
    if not arguments.table:
        run_all(every, arguments.out, arguments.workers)
    from experiment_table import json_rows, write_table

    print(write_table(arguments.out))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(json_rows(arguments.out), indent=1) + "\n", encoding="utf-8")


def run_all(every: Sequence[Job], out: Path, workers: int) -> None:
    """Run what has no result yet; continuations wait for what they continue."""
    (out / "results").mkdir(parents=True, exist_ok=True)
    todo = [job for job in every if not (out / "results" / f"{job.name}.json").is_file()]
    began, done = time.monotonic(), 0
    print(f"{len(todo)} of {len(every)} runs to do", flush=True)
    with ProcessPoolExecutor(workers) as pool:
        for wave in (
            [job for job in todo if not job.arm.long and job.arm.after is None],
            [job for job in todo if not job.arm.long and job.arm.after is not None],
            [job for job in todo if job.arm.long],
        ):
            for future in as_completed([pool.submit(run, job, out) for job in wave]):
                done += 1
                spent = time.monotonic() - began
                left = spent / done * (len(todo) - done)
                print(
                    f"[{done}/{len(todo)}] {future.result()}  {spent:.0f} s, about {left:.0f} s left",
                    flush=True,
                )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).parent))
    main()
