"""Does Vision-SR1 make a model see? Answers alone and Vision-SR1 from one start, over seeds, on a fresh test.

    python benchmarks/vision_experiment.py --out runs/vision-experiment          # resumable; --jobs runs side by side
    python benchmarks/vision_experiment.py --out runs/vision-experiment --table  # run nothing: what is there

Every arm takes the same steps. Each trained model, and the start, looks at 1000 held-out pictures of a test seed that
chose nothing, greedily and at temperature 1; the grader of descriptions is the picture world's program.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ARMS: Mapping[str, tuple[str, ...]] = {
    "answer-only": ("game.perception.visual_weight=0",),
    "vision-sr1": (),
    "decoupled": ("game.perception.combine=decoupled",),
    "two further questions": ("game.perception.extra_questions=2",),
    "trained reader": ("game.perception.reader_weight=1.0", "game.reader.temperature=1.0"),
}
"""Settings over the recipe's preset `pictures`."""
START = "start"
TEST_SEED, ITEMS = 11, 1000
TEMPERATURES = (0.0, 1.0)
Figures = dict[str, float]


def play(arm: str, seed: int, out: Path, model: str) -> str:
    """One run to its end, from where it stopped, and its figures; the start has no run."""
    import torch
    from transformers.utils import logging

    from sparring.config import resolve
    from sparring.recipes import recipe
    from sparring.run import resume, train

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    name = f"{arm.replace(' ', '-')}-{seed}"
    folder, file = out / name, out / "results" / f"{name}.json"
    if file.is_file():
        return name
    fixed = ("trackers=none", "threads=1", "evaluation.every=0", f"evaluation.seed={TEST_SEED}")
    settings = (*ARMS.get(arm, ()), *fixed, f"seed={seed}", f"model.path={json.dumps(model)}")
    config = resolve(recipe("vision-sr1", "pictures"), None, settings)
    if arm != START:
        if (folder / "config.yaml").is_file():
            resume(folder)
        else:
            train(config, folder)
    path = model if arm == START else str(folder)
    figures = {str(t): looked(config, path, folder / "evaluations", t) for t in TEMPERATURES}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] if arm != START else []
    seconds = sum(row.get("seconds/step", 0.0) for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"arm": arm, "seed": seed, "seconds": seconds, "figures": figures}), encoding="utf-8")
    return name


def looked(config: Any, path: str, folder: Path, temperature: float) -> Figures:
    """A model's figures on the test."""
    from sparring.evaluation.lsr import Result, domain_items, observed
    from sparring.pictures.domain import PICTURES

    assert PICTURES.sufficient is not None
    folder.mkdir(parents=True, exist_ok=True)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
    items = domain_items(config, TEST_SEED, ITEMS)
    found = observed(config, items, folder, lambda _: None, temperature=temperature, seed=TEST_SEED)
    settings = {"grader": "program", "temperature": temperature, "seed": TEST_SEED, "n": ITEMS, "prompts": None}
    result = Result.of(found, config, PICTURES.sufficient, name="lsr", model=path, settings=settings)
    one, fidelity = result.figures, result.record["fidelity"]
    return {
        "accuracy": one.accuracy.value,
        "lsr": one.lsr.value,
        "sufficient": one.sufficient.value,
        **{
            f"{figure}, {part}": fidelity[part][figure]
            for figure in ("precision", "recall")
            for part in ("asked", "unasked")
        },
    }


def read(out: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Results by arm and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted((out / "results").glob("*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(one["arm"], {})[one["seed"]] = one
    return found


def table(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Means and standard deviations over seeds, then what is compared by seed."""
    from sparring.evaluation.statistics import mean_sd

    lines: list[str] = []
    for temperature in map(str, TEMPERATURES):
        names = list(found[START][0]["figures"][temperature])
        lines += [
            f"\nTemperature {temperature}\n",
            "| | seeds | " + " | ".join(names) + " |",
            "|---" * (len(names) + 2) + "|",
        ]
        for arm in (START, *ARMS):
            runs = found.get(arm, {})
            if runs:
                cells = [_cell([run["figures"][temperature][name] for run in runs.values()]) for name in names]
                lines.append(f"| {arm} | {len(runs)} | " + " | ".join(cells) + " |")
    seconds = {arm: mean_sd([run["seconds"] for run in found[arm].values()]) for arm in ARMS if arm in found}
    lines += ["\nSeconds of training", *(f"- {arm}: {mean:.0f} ± {sd:.0f}" for arm, (mean, sd) in seconds.items())]
    return "\n".join([*lines, "", *compared(found)]) + "\n"


def _cell(values: Sequence[float]) -> str:
    from sparring.evaluation.statistics import mean_sd

    mean, sd = mean_sd(values)
    return f"{mean:.3f}" + (f" ± {sd:.3f}" if len(values) > 1 else "")


def compared(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """By seed, with 95 % intervals over seeds: accuracy against the start, and LSR against answers alone."""
    lines: list[str] = []
    for temperature in map(str, TEMPERATURES):
        start = found[START][0]["figures"][temperature]
        for arm in (one for one in ARMS if one in found):
            runs = {seed: run["figures"][temperature] for seed, run in found[arm].items()}
            gains = [run["accuracy"] - start["accuracy"] for run in runs.values()]
            text = f"accuracy above the start {_difference(gains)}"
            base = {seed: run["figures"][temperature] for seed, run in found.get("answer-only", {}).items()}
            both = sorted(set(base) & set(runs))
            if arm != "answer-only" and both:
                ratios = [runs[seed]["lsr"] / max(base[seed]["lsr"], 1e-9) for seed in both]
                excess = [runs[seed]["lsr"] - base[seed]["lsr"] for seed in both]
                halved = sum(ratio <= 0.5 for ratio in ratios)
                text += (
                    f"; LSR above answer-only's {_difference(excess)}, "
                    f"at most half of it in {halved} of {len(both)} seeds (largest share {max(ratios):.2f})"
                )
            lines.append(f"- T = {temperature}, {arm}: {text}")
    return lines


def _difference(values: Sequence[float]) -> str:
    from sparring.evaluation.statistics import mean_sd, paired_interval

    low, high = paired_interval(values) if len(values) > 1 else (float("nan"), float("nan"))
    return f"{mean_sd(values)[0]:+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Vision-SR1 beside answers alone.")
    parser.add_argument("--out", type=Path, default=Path("runs/vision-experiment"))
    parser.add_argument("--model", default="pictures", help="another start, of pictures.pretrain with another seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(200, 208)))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--json", type=Path, help="write every run's figures here")
    options = parser.parse_args()
    if not options.table:
        os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
        jobs = [(START, 0), *((arm, seed) for seed in options.seeds for arm in options.arms)]
        with ProcessPoolExecutor(options.jobs) as pool:
            for done in as_completed([pool.submit(play, arm, seed, options.out, options.model) for arm, seed in jobs]):
                print(done.result(), flush=True)
    found = read(options.out)
    text = table(found)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    if options.json is not None:
        rows = [found[arm][seed] for arm in (START, *ARMS) for seed in sorted(found.get(arm, {}))]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
