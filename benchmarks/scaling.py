"""Cost of a step against N queries, G answers and length, with a straight-line fit.

    python benchmarks/scaling.py --core 0 --json scaling.json

One setting grows, the others stay; a point is the median of some steps after a warm one, on one core. Every
answer has the full length. R² well below 0.99 says that a cost is no straight line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

from common import SIZES, Case, Clock, SparringStep, medians, save_model

mpl.use("Agg")
from matplotlib import pyplot as plt

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "scaling.png"
AXES = {
    "queries": ("N, queries a step", (4, 8, 16, 24, 32)),
    "answers": ("G, answers a query", (4, 8, 16, 24, 32)),
    "tokens": ("tokens an answer", (32, 64, 128, 192, 256)),
}
QUICK = {"queries": (2, 4, 6), "answers": (2, 4, 6), "tokens": (8, 16, 24)}
PHASES = ("generate", "reference", "forward_backward", "total")


def measure(case: Case, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds by phase of a step."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(case, Path(folder))
        clock = Clock(args.clock == "cpu")
        step = SparringStep(case, Path(folder), getattr(torch, args.dtype), args.token_budget, clock)
        step()
        return medians([step()["seconds"] for _ in range(args.steps)])


def straight_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and R² of the least-squares line."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    spread = np.asarray(y) - np.mean(y)
    return float(slope), float(intercept), float(1 - (residual @ residual) / (spread @ spread))


def sweep(axis: str, values: Sequence[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One setting against seconds."""
    rows = []
    for value in values:
        case = replace(Case(args.size, args.base_tokens, varied=False), **{axis: value})
        rows.append({"axis": axis, "value": value, "case": asdict(case), "seconds": measure(case, args)})
        print(f"{axis:8} {value:4d}  {rows[-1]['seconds']['total']:8.3f} s", flush=True)
    slope, intercept, r2 = straight_line(values, [row["seconds"]["total"] for row in rows])
    print(f"{axis:8} seconds ≈ {intercept:.3f} + {slope:.4f} · {axis}, R² {r2:.4f}\n", flush=True)
    for row in rows:
        row["fit"] = {"slope": slope, "intercept": intercept, "r2": r2}
    return rows


def draw(rows: Sequence[dict[str, Any]], size: str, path: Path) -> None:
    """One panel an axis: seconds by phase, and the line through the totals."""
    figure, panels = plt.subplots(1, len(AXES), figsize=(12, 3.6), sharey=False, layout="constrained")
    for panel, (axis, (label, _)) in zip(panels, AXES.items(), strict=True):
        mine = [row for row in rows if row["axis"] == axis]
        x = [row["value"] for row in mine]
        for phase in PHASES:
            style = {"color": "black", "linewidth": 0} if phase == "total" else {"linewidth": 1}
            panel.plot(x, [row["seconds"].get(phase, 0.0) for row in mine], marker="o", ms=4, label=phase, **style)
        fit = mine[0]["fit"]
        ends = np.array([0, max(x)])
        panel.plot(ends, fit["intercept"] + fit["slope"] * ends, "--", color="black", linewidth=0.8)
        panel.set(xlabel=label, title=f"R² {fit['r2']:.4f}", xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds a step")
    panels[0].legend(frameon=False, fontsize=8)
    shape = SIZES[size]
    figure.suptitle(f"A step on one core: hidden {shape.hidden}, {shape.layers} layers", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Measure, print the fits, draw, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0, help="CPU core to pin to")
    parser.add_argument("--size", choices=SIZES, default="s")
    parser.add_argument("--base-tokens", type=int, default=64, help="answer length while N or G grows")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a point")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--token-budget", type=int, default=4_096)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="where the plot goes (PNG)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that it runs, not what it takes")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(1)
    if args.quick:
        args.size, args.steps, args.base_tokens = "xs", 1, 16
    rows = []
    for axis, (_, values) in AXES.items():
        rows += sweep(axis, QUICK[axis] if args.quick else values, args)
    draw(rows, args.size, args.figure)
    print(f"plot: {args.figure}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
