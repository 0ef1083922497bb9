"""Pretrain the arena's base model from nothing: one recipe, one core, some minutes.

    python -m sparring.arena.pretrain --out DIR --seed 0

A Llama of 810 thousand parameters learns the three roles from `corpus.examples` by plain next-token
prediction on the completions: fp32 parameters, bf16 passes on the engine that self-play trains with. The
same seed gives the same weights on the same machine and thread count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparring.arena.corpus import Example, examples
from sparring.arena.measure import measure
from sparring.arena.tokenizer import EOS, GO, PAD, build_tokenizer
from sparring.lm.base import PromptGroup
from sparring.lm.llama import FastLlama

STEPS = 3500
TOKENS_PER_STEP = 2048
MATRIX_RATE, OUTER_RATE = 6e-3, 3e-3
WARM_UP_STEPS = 100
TESTS = 500
EXAMPLES_PER_POOL = 2048
"""Sorted by length, then cut into batches."""


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """The untrained model; fp32, tied embeddings."""
    torch.manual_seed(seed)
    eos, pad = tokenizer.encode(EOS + PAD)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = eos
    model.generation_config.pad_token_id = pad
    return model


def batches(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[Example], rng: np.random.Generator
) -> Iterator[list[PromptGroup]]:
    """Batches without end of examples of about one length, so that little is padding."""
    go, eos = tokenizer.encode(GO + EOS)
    encode = tokenizer.backend_tokenizer.encode_batch_fast
    while True:
        pool = list(islice(stream, EXAMPLES_PER_POOL))
        prompts = encode([prompt for prompt, _ in pool])
        completions = encode([completion for _, completion in pool])
        groups = [
            PromptGroup((*prompt.ids, go), ((*completion.ids, eos),))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        groups.sort(key=lambda group: (len(group.prompt_ids) + group.scored_tokens, len(group.prompt_ids)))
        cut: list[list[PromptGroup]] = [[]]
        for group in groups:
            length = len(group.prompt_ids) + group.scored_tokens
            if (len(cut[-1]) + 1) * length > TOKENS_PER_STEP:
                cut.append([])
            cut[-1].append(group)
        for i in rng.permutation(len(cut)):
            yield cut[i]


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embedding and norms."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inner, lr=MATRIX_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=OUTER_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def train(model: LlamaForCausalLM, stream: Iterator[list[PromptGroup]], steps: int) -> None:
    """A linear warm-up, then a cosine to nothing; prints the loss now and then."""
    optimizers = _optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / WARM_UP_STEPS, 1) * 0.5 * (1 + math.cos(math.pi * step / steps)),
        )
        for optimizer in optimizers
    ]
    engine = FastLlama(model, torch.bfloat16, trainable=True)
    start, losses = time.perf_counter(), []
    for step, groups in enumerate(islice(stream, steps), 1):
        loss = -engine.score(groups).logprobs_S.mean()
        loss.backward()
        engine.collect_gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        engine.refresh()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - start
            sys.stdout.write(f"step {step}/{steps}  loss {np.mean(losses[-100:]):.4f}  {seconds:.0f} s\n")
            sys.stdout.flush()


def pretrain(out: Path, seed: int, steps: int, tests: int = TESTS) -> dict[str, object]:
    """Train, save model and tokenizer to `out`, measure, and write the measures to `arena.json`."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    order, content = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    start = time.perf_counter()
    train(model, batches(tokenizer, examples(content), order), steps)
    seconds = time.perf_counter() - start
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    record = {
        "sha256": digest,
        "seed": seed,
        "steps": steps,
        "seconds": round(seconds),
        "parameters": model.num_parameters(),
        **measure(model, tokenizer, tests, tests // 2),
    }
    (out / "arena.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain the arena's base model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for model, tokenizer and arena.json")
    parser.add_argument("--seed", type=int, default=0, help="of weights and corpus")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of {TOKENS_PER_STEP} tokens each")
    parser.add_argument("--tests", type=int, default=TESTS, help="queries of each test set to measure on")
    options = parser.parse_args()
    record = pretrain(options.out, options.seed, options.steps, options.tests)
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
