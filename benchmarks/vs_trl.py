"""A GRPO step by Sparring and by TRL's GRPOTrainer: the same model, prompts, lengths and update, on one core.

    python benchmarks/vs_trl.py --core 0 --json benchmarks.json       # every case
    python benchmarks/vs_trl.py --core 0 --quick                      # two small cases

8 prompts × 8 answers, β = 0.04 with k3, one AdamW update; TRL with bf16 autocast over fp32 weights and no
gradient checkpointing, Sparring with bf16 compute copies of fp32 masters. Each side runs in a process of its
own, pinned to the core, one thread, in turn; a repetition is one process of each. Varied lengths: the same
0.7 % of the tokens end an answer on both sides. Needs TRL: pip install 'sparring[oracle]'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, astuple
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from common import (
    BETA,
    LR,
    SIZES,
    Case,
    Clock,
    Peaks,
    SparringStep,
    floor_seconds,
    make_prompts,
    measure_peaks,
    medians,
    peak_memory,
    reward,
    save_model,
)

SIDES = ("trl", "sparring")
PHASES = ("generate", "reference", "forward_backward", "optimiser", "other", "total")


def trl_steps(case: Case, folder: Path, steps: int, batch: int, clock: Clock) -> list[dict[str, Any]]:
    """TRL's own training loop; its methods are timed, not changed."""
    import torch
    from datasets import Dataset
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    lengths, done = [], []

    def counted(completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        lengths.append([len(ids) for ids in completion_ids])
        return reward(completions, completion_ids, **columns)

    class StepTimer(TrainerCallback):
        """From before a step's generation to after its optimiser step."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.seconds.clear()
            self.start = clock.now()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            done.append(clock.take(clock.now() - self.start, "other"))

    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in make_prompts(case)]
    total = case.queries * case.answers
    trainer = GRPOTrainer(
        model=LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=[counted],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=total // batch,
            num_generations=case.answers,
            max_completion_length=case.tokens,
            max_steps=steps,
            beta=BETA,
            learning_rate=LR,
            loss_type="dapo",
            scale_rewards="group",
            top_k=0,
            bf16=True,
            gradient_checkpointing=False,
            use_bias_correction_kl=False,
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
        callbacks=[StepTimer()],
    )
    score = trainer._get_per_token_logps_and_entropies
    timed_score = clock.timed("reference", score)
    trainer._get_per_token_logps_and_entropies = lambda model, *args, **kwargs: (
        timed_score if model is trainer.ref_model else score
    )(model, *args, **kwargs)
    trainer._generate_single_turn = clock.timed("generate", trainer._generate_single_turn)
    trainer._compute_loss = clock.timed("forward_backward", trainer._compute_loss)
    trainer.accelerator.backward = clock.timed("forward_backward", trainer.accelerator.backward)
    create = trainer.create_optimizer

    def create_timed(*args: Any, **kwargs: Any) -> Any:
        optimizer = create(*args, **kwargs)
        optimizer.step = clock.timed("optimiser", optimizer.step)
        return optimizer

    trainer.create_optimizer = create_timed
    trainer.train()
    return [{"seconds": s, "lengths": n} for s, n in zip(done, lengths, strict=True)]


def child(args: argparse.Namespace) -> None:
    """One side of one case in this process, pinned; its steps as JSON in a file."""
    os.sched_setaffinity(0, {args.core})
    import torch

    torch.set_num_threads(1)
    case, folder, clock = Case(**json.loads(args.case)), Path(args.folder), Clock(args.clock == "cpu")
    if args.child == "peaks":
        if not (folder / "config.json").is_file():
            save_model(case, folder)
        result: dict[str, Any] = asdict(measure_peaks(SIZES[case.size]))
    elif args.child == "trl":
        steps = trl_steps(case, folder, args.warmup + args.steps, args.trl_batch, clock)
        result = {"steps": steps[args.warmup :], "peak_memory": peak_memory()}
    else:
        dtype = getattr(torch, args.dtype)
        step = SparringStep(case, folder, dtype, args.token_budget, clock)
        steps = [step() for _ in range(args.warmup + args.steps)]
        result = {"steps": steps[args.warmup :], "peak_memory": peak_memory()}
    Path(args.result).write_text(json.dumps(result), encoding="utf-8")


def run_child(side: str, case: Case, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Start a process for one side and take its result."""
    result = folder / f"{side}.json"
    command = [sys.executable, __file__, "--child", side, "--case", json.dumps(asdict(case))]
    command += ["--folder", str(folder), "--result", str(result)]
    for name in ("core", "steps", "warmup", "dtype", "token_budget", "trl_batch", "clock"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{side} on {case.name} failed:\n{finished.stderr[-4000:]}")
    return json.loads(result.read_text(encoding="utf-8"))


def compare(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One case: peaks, then the sides in turn; medians over all timed steps."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measured = []
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for repetition in range(args.repetitions):
            measured.append(Peaks(**run_child("peaks", case, folder, args)))
            # Who goes first alternates, so that a machine that slows down favours nobody.
            for side in SIDES if repetition % 2 == 0 else reversed(SIDES):
                runs[side].append(run_child(side, case, folder, args))
    peaks = Peaks(*(max(column) for column in zip(*map(astuple, measured), strict=True)))
    prompts = [len(prompt.split()) for prompt in make_prompts(case)]
    row: dict[str, Any] = {"case": case.name, "peaks": asdict(peaks)}
    for key in ("seconds", "tokens_per_step", "floor_seconds", "floor_ratio", "peak_memory"):
        row[key] = {}
    for side in SIDES:
        steps = [step for run in runs[side] for step in run["steps"]]
        floors = [floor_seconds(SIZES[case.size], peaks, prompts, step["lengths"]) for step in steps]
        totals = [step["seconds"]["total"] for step in steps]
        row["seconds"][side] = medians([step["seconds"] for step in steps])
        row["tokens_per_step"][side] = sum(sum(step["lengths"]) for step in steps) / len(steps)
        row["floor_seconds"][side] = median(floors)
        row["floor_ratio"][side] = median(t / f for t, f in zip(totals, floors, strict=True))
        row["peak_memory"][side] = max(run["peak_memory"] for run in runs[side])
    per_token = {side: row["seconds"][side]["total"] / row["tokens_per_step"][side] for side in SIDES}
    row["ratio"] = per_token["trl"] / per_token["sparring"]
    return row


def print_row(row: dict[str, Any]) -> None:
    """A few lines for people."""
    peaks = row["peaks"]
    print(
        f"\n{row['case']}: TRL / Sparring {row['ratio']:.2f} per completion token   (peaks: matrix "
        f"{peaks['matrix'] / 1e12:.2f} TFLOP/s, 64 rows {peaks['small_matrix'] / 1e12:.2f}, "
        f"memory {peaks['bandwidth'] / 1e9:.0f} GB/s)"
    )
    print(f"  {'':9}" + "".join(f"{name:>17}" for name in (*PHASES, "/ floor", "tokens", "peak MiB")))
    for side in SIDES:
        cells = [f"{row['seconds'][side].get(name, 0.0):.3f}" for name in PHASES]
        cells += [f"{row['floor_ratio'][side]:.2f}", f"{row['tokens_per_step'][side]:.0f}"]
        cells.append(f"{row['peak_memory'][side] / 2**20:.0f}")
        print(f"  {side:9}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def cases(args: argparse.Namespace) -> list[Case]:
    """What was asked for; --quick: two small ones."""
    if args.quick:
        return [Case("xs", 24, False), Case("xs", 48, True)]
    kinds = {"full": (False,), "varied": (True,), "both": (False, True)}[args.lengths]
    return [Case(size, tokens, varied) for varied in kinds for tokens in args.tokens for size in args.sizes]


def main() -> None:
    """Compare, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0, help="CPU core that both sides are pinned to")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["s", "m"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 256], help="longest answer")
    parser.add_argument("--lengths", choices=("full", "varied", "both"), default="both")
    parser.add_argument("--repetitions", type=int, default=2, help="processes a side, interleaved")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a process")
    parser.add_argument("--warmup", type=int, default=1, help="steps before those")
    parser.add_argument("--trl-batch", type=int, default=64, help="TRL's per_device_train_batch_size")
    parser.add_argument("--token-budget", type=int, default=4_096, help="Sparring's learner.token_budget")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="Sparring's compute")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    parser.add_argument("--quick", action="store_true", help="two small cases, one repetition")
    parser.add_argument("--json", type=Path, help="write the rows here")
    for name in ("--child", "--case", "--folder", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    if args.quick:
        args.repetitions, args.steps = 1, 1
    print(
        f"TRL {version('trl')}, torch {version('torch')}, transformers {version('transformers')}, "
        f"core {args.core}, {args.clock} clock"
    )
    rows = []
    for case in cases(args):
        rows.append(compare(case, args))
        print_row(rows[-1])
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
