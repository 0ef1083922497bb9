"""Does it cost accuracy to write the next batch with weights that are one update old? The arena, by seed, on and off.

    sparring serve-command lsp --cpu                     # start what it prints, in the environment that has vLLM
    python benchmarks/overlap.py --url http://127.0.0.1:8000 --out runs/overlap --json overlap.json

Runs are LSP with the demo's settings, every weight trained; those that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from sparring.evaluation.statistics import mean_sd, paired_interval
from sparring.runfolder import RunFolder


def run(a: argparse.Namespace, seed: int, *, overlap: bool) -> dict[str, Any]:
    """Accuracies on the final test, and seconds a step."""
    out = a.out / f"{'on' if overlap else 'off'}-{seed}"
    if not (out / "evaluation.json").is_file():
        words = ["train", "--resume", str(out)]
        if not (out / "config.yaml").is_file():
            words = ["train", "lsp", "--out", str(out), f"seed={seed}", f"steps={a.steps}", "threads=1"]
            words += ["evaluation.every=0", f"evaluation.final_n={a.questions}", "rollout.engine=vllm"]
            words += [f"rollout.url={a.url}", f"rollout.overlap={str(overlap).lower()}", "rollout.weights=folder"]
        subprocess.run([sys.executable, "-m", "sparring", *words], check=True, stdout=subprocess.DEVNULL)
    found = json.loads((out / "evaluation.json").read_text())["subsets"]
    rows = RunFolder(out).read_metrics()[2:]
    figures = {name: median(row[name] for row in rows if name in row) for name in ("seconds/step", "seconds/play")}
    gap = [row["sampler_gap/solver"] for row in rows if row.get("sampler_gap/solver") is not None]
    return {"hard": found["hard"]["accuracy"], "easy": found["easy"]["accuracy"], "gap": median(gap), **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--questions", type=int, default=500)
    a = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(a.seeds):
        row = {name: run(a, seed, overlap=name == "on") for name in ("off", "on")}
        rows.append(row)
        print(seed, json.dumps(row), flush=True)
    for name in ("hard", "easy"):
        off, on = ([row[side][name] for row in rows] for side in ("off", "on"))
        low, high = paired_interval([b - a for a, b in zip(off, on, strict=True)])
        told = [f"{label} {mean:.3f} ± {sd:.3f}" for label, (mean, sd) in (("off", mean_sd(off)), ("on", mean_sd(on)))]
        print(f"{name}: {', '.join(told)}; on - off, by seed: [{low:+.3f}, {high:+.3f}]")
    a.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
