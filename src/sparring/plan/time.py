"""The floor of a step's time on one GPU: matrix products at the dense rate, bytes at the memory's bandwidth.

    forward    2 (B T + H S)            B, H parameters of layers and head; T tokens, a prompt once; S completion tokens
    update     reference 1, forward 1, backward 2 (under LoRA 1: no gradient of frozen weights), checkpointing 1 more
               of the layers; adapters 3 of their own
    prefill    2 (B prompt tokens + H prompts)
    decode     max(weights once a token of a batch and cache, over the bandwidth; 2 (B + H) rows tokens, at the rate)
    reward     2 B_r tokens
    optimiser  AdamW reads and writes masters and moments, reads gradients, writes copies

What is left out (attention's products, softmax, sampling, kernels that reach half of these rates, communication between
GPUs, idle ones) only adds to it: a real step can't reach it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparring.plan.hardware import GPU
from sparring.plan.memory import FOUR_BIT, written_here
from sparring.plan.setup import Setup
from sparring.plan.workload import Call, Workload

Seconds = dict[str, float]

# Bytes of AdamW's traffic a parameter: masters and two moments read and written, gradients read.
MASTERS, MOMENTS, GRADIENTS = 8, 16, 4
# Most of its memory that a rollout server gives to weights: the rest is for keys and values.
WEIGHTS_SHARE = 0.5


@dataclass(frozen=True)
class Server:
    """Rollout servers: how many of the same GPUs each is on, and the whole step's calls that they answer."""

    gpus: int
    calls: tuple[Call, ...]
    servers: int


def server_for(setup: Setup, work: Workload, gpu: GPU) -> Server:
    """The smallest server (1, 2, 4 ... GPUs) of which the policy's weights fill half, for what isn't written here.

    Without an adapter the reference, where it is asked there, has a second one of that size.
    """
    gpus = 1
    while setup.compute * setup.policy.parameters > WEIGHTS_SHARE * gpus * gpu.usable:
        gpus *= 2
    here = written_here(setup, work)
    calls = tuple(call for call in work.calls if call not in here)
    graded = not setup.adapted and any(not call.trained for call in calls)
    return Server(gpus, calls, 2 if graded else 1)


def update_flops(setup: Setup, work: Workload) -> float:
    """Of the forward and backward passes of one step."""
    m = setup.policy
    trained = [call for call in work.calls if call.trained]
    scored = sum(call.rows * call.tokens for call in trained)
    prompts = sum((call.distinct if setup.fast else call.rows) * call.prompt_tokens for call in trained)
    body, head = 2 * m.body * (prompts + scored), 2 * m.head * scored
    passes = (1 if setup.penalised else 0) + 1 + (1 if setup.adapted else 2)
    old = 1 if setup.minibatches * setup.epochs > 1 else 0  # log-probabilities before the first of several steps
    again = 1 if setup.checkpointing else 0
    adapter = 2 * setup.trained * (prompts + scored) * (3 + again) if setup.adapted else 0
    return setup.epochs * (passes * (body + head) + again * body + adapter) + old * (body + head)


def optimiser_bytes(setup: Setup) -> float:
    """Moved by one step's optimiser steps."""
    copies = setup.compute if setup.copied else 0
    traffic = MASTERS + MOMENTS + GRADIENTS + copies
    return traffic * setup.trained / setup.shards * setup.minibatches * setup.epochs


def prefill_flops(setup: Setup, call: Call) -> float:
    """Of reading a role's prompts."""
    return 2 * call.distinct * (setup.policy.body * call.prompt_tokens + setup.policy.head)


def decode_flops(setup: Setup, call: Call) -> float:
    """Of writing a role's completions, the first token of each excepted: that comes with the prompt."""
    return 2 * (setup.policy.body + setup.policy.head) * call.rows * (call.tokens - 1)


def decode_bytes(setup: Setup, call: Call, batches: int) -> float:
    """Read while writing: all weights once a token of a batch; each prompt's cache once a token, a completion's own as
    it grows."""
    m, steps = setup.policy, call.tokens - 1
    weights = (FOUR_BIT if setup.four_bit else setup.compute) * m.body + setup.compute * m.head
    token = 2 * m.layers * m.key_width * setup.compute
    cached = call.distinct * call.prompt_tokens * steps + call.rows * steps * (steps + 1) / 2
    return batches * steps * weights + cached * token


def step_seconds(setup: Setup, work: Workload, gpu: GPU, server: Server | None) -> Seconds:
    """The floor by part; what `server` writes, it writes for all GPUs together."""
    rate, bandwidth = gpu.tflops * 1e12, gpu.bandwidth * 1e12
    seconds: Seconds = {}
    served = {call.role: call for call in server.calls} if server is not None else {}
    for own in work.calls:
        call, cards, batches = own, 1, 1
        if own.role in served and server is not None:
            call, cards = served[own.role], server.gpus
        elif own in written_here(setup, work):
            fit = setup.cache_tokens // (own.prompt_tokens + own.answers * own.tokens)
            batches = math.ceil(own.prompts / max(1, fit))
        decode = max(decode_bytes(setup, call, batches) / bandwidth, decode_flops(setup, call) / rate)
        seconds[own.role] = (prefill_flops(setup, call) / rate + decode) / cards
    if setup.reward is not None:
        seconds["reward model"] = 2 * setup.reward.body * work.scored * work.scored_tokens / rate
    seconds["update"] = update_flops(setup, work) / rate
    seconds["optimiser"] = optimiser_bytes(setup) / bandwidth
    return seconds
