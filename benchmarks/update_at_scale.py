"""The update phase at the layer shapes of Llama-3.2-1B and -3B (random weights), beside transformers' own passes.

    python benchmarks/update_at_scale.py --json update_at_scale.json                   # a CPU: two layers, fewer words
    python benchmarks/update_at_scale.py --device cuda --sampler --json update_gpu.json   # a GPU: whole models

An update is reference, forward, backward and optimiser on one batch: β = 0.04 with k3, AdamW, bf16 compute; with fp32
masters of every weight ("full"), or rank-32 adapters on a frozen bf16 model ("lora"). The peer does the same with
transformers' model under bf16 autocast: the prompt repeated for every answer, whole fp32 logits of the answers' tokens,
no entropy measured (Sparring measures it). On a CPU the sides take turns (see sides.py) and count by CPU time; on a
GPU each has the device to itself and counts by the wall; where memory runs out, half the tokens a pass are tried.

tokens/s and the share of the peak are of the batch's own tokens, each prompt once, on both sides. FLOPs are those of
the matrix products, attention (visible keys only) included: for "full" four forward passes' worth (reference 1, forward
1, backward 2), for "lora" one less in the frozen matrices, which need no gradient of their own. What checkpointing or
the head computes twice doesn't count. The peak is a large bf16 matrix product, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as fn

from common import BETA, LR, TimedModel
from shapes import SHAPES, Case, device_side, make_clock, make_examples, make_model, make_trained
from sides import SideError, Steps, Turn, alternate, ratios, summary
from sparring.learner import Learner, SampledKL, Update
from sparring.lm.base import SamplingParams
from sparring.lm.engines import frozen_copy, open_lm, open_reference
from sparring.lm.lora import adapters_disabled
from sparring.lm.probe import cast_parameters
from sparring.losses import k3, policy_gradient


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW over what is trained."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, fused=True)


def sparring_side(turn: Turn, case: Case) -> None:
    """The learner's update, as a run calls it."""
    clock, dtype, model = make_clock(case.device), getattr(torch, case.dtype), make_trained(case)
    policy = open_lm(model, dtype, trainable=True, checkpointing=case.checkpointing)
    timed = TimedModel(policy, clock, {"score": "forward", "refresh": "optimiser"})
    reference = TimedModel(open_reference(policy, model, dtype), clock, {"score": "reference"})
    optimizer = make_optimizer(model)
    optimizer.step = clock.timed("optimiser", optimizer.step)
    settings = Update(BETA, SampledKL(k3), max_grad_norm=1.0, token_budget=case.token_budget)
    learner, examples = Learner(model, timed, reference, optimizer, settings), make_examples(case)
    while turn.begin():
        start = clock.now()
        figures = learner.update(examples, LR)
        seconds = clock.take(clock.now() - start, "backward")
        turn.end(
            {
                "seconds": seconds,
                "engine": type(policy).__name__,
                "loss": figures["loss"],
                "grad_norm": figures["grad_norm"],
            }
        )


def transformers_side(turn: Turn, case: Case) -> None:
    """The same update by transformers' model and autograd."""
    clock, dtype, model = make_clock(case.device), getattr(torch, case.dtype), make_trained(case)
    frozen = None
    if case.tuning == "full":
        frozen = frozen_copy(model)
        cast_parameters(frozen, dtype)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # it asks for that; this model has no dropout
    optimizer, examples = make_optimizer(model), make_examples(case)
    learned = optimizer.param_groups[0]["params"]
    ids_BT = torch.tensor([e.prompt_ids + e.completion_ids for e in examples], device=case.device)
    advantage_B1 = torch.tensor([[e.advantage] for e in examples], device=case.device)
    rows = max(1, case.token_budget // ids_BT.shape[1])

    def logprobs(scorer: Any, ids_BT: Tensor) -> Tensor:
        with torch.autocast(case.device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden_BTD = scorer.model(input_ids=ids_BT, use_cache=False)[0][:, -case.tokens - 1 : -1]
            # Contiguous: on a CPU torch copies a frozen head once a row for a slice, three times the whole pass.
            logits = scorer.lm_head(hidden_BTD.contiguous())
        target_BT = ids_BT[:, -case.tokens :]
        return -fn.cross_entropy(logits.flatten(0, 1).float(), target_BT.flatten(), reduction="none").view_as(target_BT)

    @torch.no_grad()
    def reference(ids_BT: Tensor) -> Tensor:
        if frozen is not None:
            return logprobs(frozen, ids_BT)
        with adapters_disabled(model):
            return logprobs(model, ids_BT)

    while turn.begin():
        start, total = clock.now(), 0.0
        for at in (slice(i, i + rows) for i in range(0, len(examples), rows)):
            with clock.phase("reference"):
                ref_BT = reference(ids_BT[at])
            with clock.phase("forward"):
                logp_BT = logprobs(model, ids_BT[at])
                loss_BT = policy_gradient(logp_BT, advantage_B1[at].expand_as(logp_BT)) + BETA * k3(logp_BT, ref_BT)
                loss = loss_BT.sum() * examples[0].token_weight
            total += loss.item()
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learned, 1.0).item()
        with clock.phase("optimiser"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds = clock.take(clock.now() - start, "backward")
        turn.end({"seconds": seconds, "loss": total, "grad_norm": norm})


def sparring_sampler_side(turn: Turn, case: Case) -> None:
    """Completions by FastLlama.generate."""
    clock, dtype = make_clock(case.device), getattr(torch, case.dtype)
    model = make_model(case, dtype).requires_grad_(False)
    sampler = open_lm(model, dtype, trainable=False)
    prompts = sorted({example.prompt_ids for example in make_examples(case)})
    uniforms = np.random.default_rng(0).random((case.queries * case.answers, case.tokens), dtype=np.float32)
    while turn.begin():
        start = clock.now()
        sampler.generate(prompts, case.answers, SamplingParams(case.tokens), uniforms)
        turn.end({"seconds": {"total": clock.now() - start}, "engine": type(sampler).__name__})


def transformers_sampler_side(turn: Turn, case: Case) -> None:
    """Completions by transformers' generate, the prompt repeated for every answer."""
    clock = make_clock(case.device)
    model: Any = make_model(case, getattr(torch, case.dtype))
    prompts = sorted({example.prompt_ids for example in make_examples(case)})
    ids_QT = torch.tensor(prompts, device=case.device)
    settings = {"do_sample": True, "top_k": 0, "num_return_sequences": case.answers, "pad_token_id": 0}
    settings |= {"max_new_tokens": case.tokens, "attention_mask": torch.ones_like(ids_QT)}
    while turn.begin():
        start = clock.now()
        with torch.inference_mode():
            model.generate(ids_QT, **settings)
        turn.end({"seconds": {"total": clock.now() - start}})


UPDATE = {"transformers": transformers_side, "sparring": sparring_side}
SAMPLER = {"transformers": transformers_sampler_side, "sparring": sparring_sampler_side}


def alone(name: str, side: Callable[..., None], case: Case, steps: int) -> tuple[Case, Steps]:
    """A side by itself, at fewer tokens a pass where memory runs out, and the case that it ran."""
    try:
        return case, alternate({name: side}, (case,), steps=steps)[name]
    except SideError as error:
        smaller = replace(case, token_budget=case.token_budget // 2)
        if "OutOfMemoryError" not in str(error) or smaller.token_budget < case.prompt + case.tokens:
            raise
    return alone(name, side, smaller, steps)


def measure(sides: Mapping[str, Callable[..., None]], case: Case, steps: int) -> dict[str, dict[str, Any]]:
    """Each side's summary, or its error: an unattended run goes on with what it can."""
    if case.device == "cpu":
        runs = alternate(sides, (case,), steps=steps)
        return {name: _side(case, done) for name, done in runs.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, side in sides.items():
        try:
            found[name] = _side(*alone(name, side, case, steps))
        except SideError as error:
            found[name] = {"error": str(error)[-2000:]}
    return found


def _side(case: Case, steps: Steps) -> dict[str, Any]:
    told = {name: steps[0][name] for name in ("engine", "loss", "grad_norm") if name in steps[0]}
    return {**summary(steps), **told, "token_budget": case.token_budget}


def compare(part: str, case: Case, peak: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """One case of "update" or "sampler": both sides, tokens/s, the update's share of the peak, ratios."""
    sides = measure(UPDATE if part == "update" else SAMPLER, case, steps)
    clock = "cpu" if case.device == "cpu" else "wall"
    tokens = case.batch_tokens if part == "update" else case.queries * case.answers * case.tokens
    row: dict[str, Any] = {"part": part, **asdict(case), "clock": clock, "batch_tokens": tokens}
    for name, side in sides.items():
        row[name] = side
        if "error" in side:
            continue
        side["tokens_per_second"] = tokens / side[clock]
        if part == "update":
            side["peak_share"] = case.update_flops() / side[clock] / peak["matrix"]
    if part == "update":
        row["flops"] = case.update_flops()
    if not any("error" in side for side in sides.values()):
        theirs, ours = sides["transformers"], sides["sparring"]
        row["ratio"] = ratios(theirs, ours)
        if part == "update":
            row["loss_gap"] = abs(ours["loss"] - theirs["loss"])
            row["grad_norm_gap"] = abs(ours["grad_norm"] / theirs["grad_norm"] - 1)
    return row


def print_row(row: dict[str, Any]) -> None:
    """A few lines for people."""
    how = f", {row['tuning']}{', checkpointing' if row['checkpointing'] else ''}" if row["part"] == "update" else ""
    ratio = f": transformers / Sparring {row['ratio'][row['clock']]:.2f}" if "ratio" in row else ""
    print(f"\n{row['part']}, {row['name']}, {row['shape']['layers']} layers{how}{ratio}")
    for name in ("transformers", "sparring"):
        side = row[name]
        if "error" in side:
            print(f"  {name:13} {side['error'].strip().splitlines()[-1]}")
            continue
        share = f", {side['peak_share']:.1%} of the peak" if "peak_share" in side else ""
        phases = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in side["seconds"].items())
        print(
            f"  {name:13} {side['tokens_per_second']:9.0f} tokens/s{share}, peak "
            f"{side['peak_memory'] / 2**30:.2f} GiB ({phases}; wall {side['wall']:.3f}; {side.get('engine', '')})",
            flush=True,
        )


def cases(args: argparse.Namespace) -> list[tuple[str, Case]]:
    """What was asked for, smallest first."""
    found: list[tuple[str, Case]] = []
    batch = (args.queries, args.answers, args.prompt, args.tokens, args.token_budget)
    for name in args.shapes:
        shape = SHAPES[name]
        shape = replace(shape, layers=args.layers or shape.layers, vocab=args.vocab or shape.vocab)
        found += [
            ("update", Case(name, shape, args.device, args.dtype, tuning, checkpointing == "on", *batch))
            for tuning in args.tunings
            for checkpointing in args.checkpointing
        ]
        if args.sampler:
            sampled = (8, 8, args.prompt, args.sampler_tokens, args.token_budget)
            found.append(("sampler", Case(name, shape, args.device, args.dtype, "full", False, *sampled)))
    return found


# What is not given: a CPU gets a short batch over two layers, with so many words that the head's share of the work is
# about that of the whole model. Token budgets are those of learner.token_budget.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "layers": 2,
        "vocab": 16_384,
        "checkpointing": ["off"],
        "queries": 1,
        "prompt": 64,
        "tokens": 128,
        "token_budget": 4_096,
        "steps": 2,
    },
    "cuda": {
        "checkpointing": ["off", "on"],
        "queries": 8,
        "prompt": 256,
        "tokens": 512,
        "token_budget": 16_384,
        "steps": 3,
    },
}


def main() -> None:
    """Compare, print, and write JSON where asked, after every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(DEFAULTS), default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1b", "3b"])
    parser.add_argument("--tunings", nargs="*", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--checkpointing", nargs="+", choices=("off", "on"))
    parser.add_argument("--sampler", action="store_true", help="measure the local sampler too: 8 prompts × 8 answers")
    parser.add_argument("--sampler-tokens", type=int, default=256, help="tokens of an answer that it writes")
    parser.add_argument("--layers", type=int, help="of each shape; a GPU's default: all")
    parser.add_argument("--vocab", type=int, help="tokens in the vocabulary; a GPU's default: all 128256")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="compute precision")
    parser.add_argument("--queries", type=int)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--prompt", type=int, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, help="tokens of an answer")
    parser.add_argument("--token-budget", type=int, help="most tokens of one pass, on both sides")
    parser.add_argument("--steps", type=int, help="timed steps a side, after one that isn't")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    for name, value in DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    (device,) = alternate({"device": device_side}, (args.device,), steps=1, warmup=0)["device"]
    versions = {name: version(name) for name in ("torch", "transformers")}
    rows = [{"part": "device", **versions, **{name: device[name] for name in ("name", "matrix", "copy")}}]
    print(
        f"torch {versions['torch']}, transformers {versions['transformers']}, {device['name']}: "
        f"{device['matrix'] / 1e12:.2f} TFLOP/s bf16, copies {device['copy'] / 1e9:.0f} GB/s"
    )
    for part, case in cases(args):
        rows.append(compare(part, case, device, args.steps))
        print_row(rows[-1])
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
