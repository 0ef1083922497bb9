"""Seconds for FastLlama's passes on random weights: generate, score, backward.

OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/micro_llama.py --size s --tokens 64 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparring.lm.base import Completion, PromptGroup, SamplingParams
from sparring.lm.llama import FastLlama

# hidden, layers, heads, FFN, vocabulary, prompts, prompt lengths (from, to), answers
SIZES = {
    "s": (256, 6, 4, 704, 2048, 8, (26, 66), 8),
    "m": (512, 8, 8, 1408, 2048, 8, (26, 66), 8),
    "arena": (128, 4, 4, 352, 60, 40, (10, 15), 8),
}


def best_of(repeats: int, run: Callable[[], object]) -> float:
    """The fastest of some runs, in seconds of CPU time: on one thread, what a quiet machine would take."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print one JSON line of sizes, seconds and rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="s")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ragged", action="store_true", help="answers end at random, about half way")
    parser.add_argument("--profile", choices=("generate", "score"))
    args = parser.parse_args()
    hidden, layers, heads, ffn, vocab, n_prompts, (low, high), n_answers = SIZES[args.size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, tie_word_embeddings=True,
    )  # fmt: skip
    model = FastLlama(LlamaForCausalLM(config), getattr(torch, args.dtype), trainable=True)
    reference = FastLlama(LlamaForCausalLM(config), getattr(torch, args.dtype), trainable=False)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, vocab, rng.integers(low, high)).tolist()) for _ in range(n_prompts)]
    uniforms = rng.random((n_prompts * n_answers, args.tokens), dtype=np.float32)
    stops = tuple(range(max(1, round(2 * vocab / args.tokens)))) if args.ragged else ()
    params = SamplingParams(max_new_tokens=args.tokens, stop_ids=stops)

    def generate() -> list[list[Completion]]:
        return model.generate(prompts, n_answers, params, uniforms)

    answers = generate()
    groups = [PromptGroup(prompt, tuple(c.ids for c in cs)) for prompt, cs in zip(prompts, answers, strict=True)]

    def forward() -> torch.Tensor:
        scores = model.score(groups)
        return (scores.logprobs_S).sum()

    def update() -> None:
        forward().backward()
        model.collect_gradients()

    if args.profile:
        work = {"generate": generate, "score": update}[args.profile]
        work()
        with torch.profiler.profile() as profile:
            work()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=32))
        return
    update()
    with torch.no_grad():
        reference_s = best_of(args.repeats, lambda: reference.score(groups))
    forward_s = best_of(args.repeats, forward)
    update_s = best_of(args.repeats, update)
    generate_s = best_of(args.repeats, generate)
    tokens = sum(group.scored_tokens for group in groups)
    body = sum(w.numel() for layer in model.layers for w in (layer.qkv, layer.out, layer.gate_up, layer.down))
    flop = 2 * body * (tokens + sum(map(len, prompts))) + 2 * model.head.numel() * tokens
    print(
        json.dumps(
            {
                **{k: getattr(args, k) for k in ("size", "tokens", "dtype", "ragged")},
                "completion_tokens": tokens,
                "seconds": {
                    "generate": round(generate_s, 4),
                    "score_no_grad": round(reference_s, 4),
                    "forward": round(forward_s, 4),
                    "backward": round(update_s - forward_s, 4),
                },
                "tokens_per_second": {
                    "generate": round(tokens / generate_s), "update": round(tokens / update_s)
                },
                "matrix_tflops": {
                    "generate": round(flop / generate_s / 1e12, 3),
                    "update": round(3 * flop / update_s / 1e12, 3),
                },
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
