"""Do the alarms ring in time? LSP-Zero, which collapses on the arena, and LSP, which does not, over seeds.

    python benchmarks/health.py --out runs/health                # 30 runs of about 90 s, one core each; resumable
    python benchmarks/health.py --out runs/health --table        # run nothing: judge what is there
    python benchmarks/health.py --table --rules '{"valid_fall": {"alarm": -0.25}}'

Runs go on whatever rings. Each finished run is then replayed through the rules from its metrics and turns: at which
step it was first warned, at which the first alarm rang and by which rule, and at which step held-out accuracy (easy
and hard questions alike; hard ones alone) first lay 5 points under its best so far. The promise: in at least 9 of 10
runs of LSP-Zero the alarm rings before that, or there is an alarm and no such fall; LSP raises none.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

ARMS = {
    "lsp-zero": ("lsp-zero", ("health.on_alarm=go_on",)),
    "lsp": ("lsp", ("health.on_alarm=go_on",)),
    "rescued": ("lsp-zero", ("health.on_alarm=roll_back", "health.alpha_factor=0", "checkpoint.every=5")),
}
"""Recipe and settings by arm."""
FALL = 0.05


@dataclass(frozen=True)
class Row:
    """What rang in one run, and when it was lost. Steps; None: never."""

    arm: str
    seed: int
    warned: int | None
    alarmed: int | None
    rule: str
    fell: int | None
    fell_hard: int | None
    best: float
    last: float
    ended: int
    rollbacks: int

    @property
    def in_time(self) -> bool:
        """Whether an alarm rang before either accuracy had fallen."""
        falls = [step for step in (self.fell, self.fell_hard) if step is not None]
        return self.alarmed is not None and all(self.alarmed < step for step in falls)


def play(arm: str, seed: int, out: Path, steps: int) -> str:
    """One run to its end, from where it stopped; returns its folder's name."""
    import torch
    from transformers.utils import logging

    from sparring.config import resolve
    from sparring.health.guard import UnhealthyRun
    from sparring.recipes import recipe
    from sparring.run import resume, train

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder = out / f"{arm}-{seed}"
    if (folder / "config.yaml").is_file():
        resume(folder)
        return folder.name
    settings = (
        *ARMS[arm][1],
        f"steps={steps}",
        "trackers=none",
        f"seed={seed}",
        "threads=1",
        "evaluation.every=5",
        "evaluation.n=500",
        "evaluation.final_n=100",
    )
    try:
        train(resolve(recipe(ARMS[arm][0], None), None, settings), folder)
    except UnhealthyRun as error:  # a roll-back too many: judged by where it stopped
        (folder / "stopped.txt").write_text(f"{error}\n", encoding="utf-8")
    return folder.name


def _ended(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("evaluation.json", "stopped.txt"))


def judged(folder: Path, rules: dict[str, dict[str, float | None]]) -> Row:
    """What the rules make of a finished run."""
    from sparring.health.monitor import Monitor
    from sparring.health.replay import replayed
    from sparring.health.rules import Level
    from sparring.runfolder import RunFolder
    from sparring.settings.health import HealthConfig

    monitor = Monitor(HealthConfig(rules=rules))
    run = RunFolder(folder)
    warned: int | None = None
    alarmed: int | None = None
    rule = ""
    for step, _, status in replayed(run, monitor):
        if status.level >= Level.WARNING and warned is None:
            warned = step
        if status.level is Level.ALARM and alarmed is None:
            alarmed = step
            rule = next(finding.rule.name for finding in status.findings if finding.level is Level.ALARM)
    curves: dict[str, list[tuple[int, float]]] = {"all": [], "hard": []}
    for record in run.read_metrics():
        if "eval/hard" in record:
            easy, hard = float(record["eval/easy"] or 0), float(record["eval/hard"] or 0)
            curves["all"].append((int(record["step"] or 0), fmean((easy, hard))))
            curves["hard"].append((int(record["step"] or 0), hard))
    arm, _, seed = folder.name.rpartition("-")
    accuracies = [accuracy for _, accuracy in curves["all"]]
    falls = {name: fallen(curve) for name, curve in curves.items()}
    last = run.read_metrics()[-1]
    return Row(
        arm, int(seed), warned, alarmed, rule, falls["all"], falls["hard"], max(accuracies), accuracies[-1],
        int(last["step"] or 0), int(last.get("health/rollbacks") or 0),
    )  # fmt: skip


def fallen(curve: Sequence[tuple[int, float]]) -> int | None:
    """The first step at which the accuracy lay at least 5 points under its best until then."""
    best = 0.0
    for step, accuracy in curve:
        best = max(best, accuracy)
        if accuracy <= best - FALL + 1e-9:
            return step
    return None


def table(rows: Sequence[Row]) -> str:
    """One line a run, and what is promised."""
    head = f"{'run':<14}{'warned':>8}{'alarm':>8}  {'rule':<12}{'fell':>6}{'hard':>6}{'best':>8}{'last':>8}"
    lines = [f"{head}{'ended':>7}{'back':>6}"]
    for row in rows:
        steps = (row.warned, row.alarmed, row.fell, row.fell_hard)
        warned, alarmed, fell, hard = ("-" if step is None else str(step) for step in steps)
        name = f"{row.arm}-{row.seed}"
        lines.append(
            f"{name:<14}{warned:>8}{alarmed:>8}  {row.rule:<12}{fell:>6}{hard:>6}{row.best:8.3f}{row.last:8.3f}"
            f"{row.ended:7}{row.rollbacks:6}"
        )
    by_arm = {arm: [row for row in rows if row.arm == arm] for arm in ARMS}
    zero, lsp, rescued = (by_arm[arm] for arm in ARMS)
    lines.append(f"LSP-Zero: alarm in time in {sum(row.in_time for row in zero)} of {len(zero)} runs")
    lines.append(f"LSP: false alarms in {sum(row.alarmed is not None for row in lsp)} of {len(lsp)} runs")
    whole = {row.seed: row for row in zero}
    through = [row for row in rescued if row.seed in whole and row.ended == whole[row.seed].ended]
    if rescued:
        gains = [row.last - whole[row.seed].last for row in through]
        spread = f" ± {stdev(gains):.3f}" if len(gains) > 1 else ""
        gain = f", last accuracy less LSP-Zero's {fmean(gains):+.3f}{spread}" if gains else ""
        lines.append(f"Rolled back: {len(through)} of {len(rescued)} runs came through{gain}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/health"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=105, help="the thresholds were chosen on others")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, one core each")
    parser.add_argument("--table", action="store_true", help="run nothing: judge the finished runs that are there")
    parser.add_argument("--rules", type=json.loads, default={}, help="thresholds over the defaults, as JSON")
    parser.add_argument("--json", type=Path, help="write a row a run here")
    arguments = parser.parse_args()
    if not arguments.table:
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        jobs = [(arm, seed) for arm in ARMS for seed in seeds]
        todo = [job for job in jobs if not _ended(arguments.out / f"{job[0]}-{job[1]}")]
        print(f"{len(todo)} of {len(jobs)} runs to do", flush=True)
        with ProcessPoolExecutor(arguments.workers) as pool:
            playing = [pool.submit(play, *job, arguments.out, arguments.steps) for job in todo]
            for number, future in enumerate(as_completed(playing), 1):
                print(f"[{number}/{len(todo)}] {future.result()}", flush=True)
    finished = (path for path in arguments.out.glob("*-*") if _ended(path))
    ordered = sorted(finished, key=lambda path: (path.name.rpartition("-")[0], int(path.name.rpartition("-")[2])))
    rows = [judged(folder, arguments.rules) for folder in ordered]
    print(table(rows) if rows else f"no finished run in {arguments.out}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
