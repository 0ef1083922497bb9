"""One side of rollouts.py's sampling table, run by the interpreter that has vLLM: `python rollout_sides.py SIDE ...`.

Takes rounds of prompts on its standard input, one JSON line a round, and answers each with its seconds and tokens.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

Write = Callable[[list[list[int]], int, int, list[int]], Iterable[int]]


def bare(model: str, gib: float) -> Write:
    """vLLM's own `LLM.generate`, with the sampling that a run asks for: what it costs without Sparring."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm = LLM(
        model,
        dtype="float32",
        kv_cache_memory_bytes=int(gib * 2**30),
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        enable_chunked_prefill=False,
    )

    def write(prompts: list[list[int]], n: int, tokens: int, seeds: list[int]) -> Iterable[int]:
        params = [
            SamplingParams(
                n=n,
                seed=seed,
                max_tokens=tokens,
                ignore_eos=True,
                logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for seed in seeds
        ]
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [len(row.token_ids) for output in outputs for row in output.outputs]

    return write


def process(model: str, gib: float) -> Write:
    """Sparring's engine over vLLM in this process."""
    from sparring.lm.base import SamplingParams
    from sparring.rollout.process import ProcessEngine

    engine = ProcessEngine(model, dtype="float32", memory=gib)

    def write(prompts: list[list[int]], n: int, tokens: int, seeds: list[int]) -> Iterable[int]:
        rows = engine.generate(prompts, n, SamplingParams(tokens), seeds, adapter=False)
        return [len(completion.ids) for row in rows for completion in row]

    return write


def server(url: str, _: float) -> Write:
    """Sparring's engine over a vLLM server."""
    from sparring.lm.base import SamplingParams
    from sparring.rollout.server import ServerEngine

    engine = ServerEngine(url)

    def write(prompts: list[list[int]], n: int, tokens: int, seeds: list[int]) -> Iterable[int]:
        rows = engine.generate(prompts, n, SamplingParams(tokens), seeds, adapter=False)
        return [len(completion.ids) for row in rows for completion in row]

    return write


def local(model: str, _: float) -> Write:
    """Sparring's own sampler, by torch."""
    import torch

    from sparring.lm.base import SamplingParams
    from sparring.lm.engines import open_lm
    from sparring.lm.load import load_model
    from sparring.sampling.local import LocalWriter
    from sparring.sampling.seeds import Draws

    torch.set_num_threads(1)
    policy = open_lm(load_model(model), torch.float32, trainable=False)
    writer = LocalWriter(policy, None)

    def write(prompts: list[list[int]], n: int, tokens: int, seeds: list[int]) -> Iterable[int]:
        draws = Draws(seeds[0], 0, "bench", 0, len(prompts), tuple(range(len(prompts))))
        rows = writer.complete("policy", [tuple(ids) for ids in prompts], n, SamplingParams(tokens), draws)
        return [len(completion.ids) for row in rows for completion in row]

    return write


SIDES: dict[str, Callable[[str, float], Write]] = {"bare": bare, "process": process, "server": server, "local": local}


def main() -> None:
    name, target = sys.argv[1], sys.argv[2]
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # vLLM says a lot
        write = SIDES[name](target, 1.0)
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            asked: dict[str, Any] = json.loads(line)
            start, cpu = time.perf_counter(), time.process_time()
            lengths = list(write(asked["prompts"], asked["n"], asked["tokens"], asked["seeds"]))
            took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
            print(json.dumps({**took, "tokens": sum(lengths), "rows": len(lengths)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
