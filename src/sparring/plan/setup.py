"""What decides memory and time, gathered from a run's settings and its models' configs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from sparring.lm.load import resolve_dtype
from sparring.models import default_token_budget, locate, needs_reference
from sparring.plan.hardware import GIB, GPU
from sparring.plan.model import Linear, ModelShape, language_model, reward_model
from sparring.settings import RunConfig

Rollout = Literal["local", "server"]
REWARD_BUDGET = {"cpu": 4_096, "cuda": 32_768}  # build.resolved_reward's


@dataclass(frozen=True)
class Setup:
    """One GPU's part of a run.

    reference: held beside the policy; None where none is asked for, or where it is the base under the adapter.
    reward: loaded on this GPU; None where there is none, or it is elsewhere. shards: GPUs that the trained model is cut
    over (1: each holds it whole). writes, grades: whether this process's own engine samples for the policy, for the
    reference. vllm: bytes of vLLM's cache where it runs in this process, else 0. adapted: the matrices with a LoRA
    pair; empty: every weight is trained. compute, reward_compute: bytes of a number in compute precision. penalised:
    whether the update asks the reference. exact_kl: over the whole vocabulary. filtered: whether a role samples with
    top_p or top_k.
    """

    policy: ModelShape
    reference: ModelShape | None
    reward: ModelShape | None
    device: str
    gpus: int
    shards: int
    writes: bool
    grades: bool
    vllm: int
    fast: bool
    four_bit: bool
    adapted: tuple[Linear, ...]
    rank: int
    compute: int
    reward_compute: int
    checkpointing: bool
    cache_tokens: int
    token_budget: int
    reward_budget: int
    penalised: bool
    exact_kl: bool
    filtered: bool
    minibatches: int
    epochs: int

    @property
    def trained(self) -> int:
        """Parameters that the optimiser moves."""
        if not self.adapted:
            return self.policy.parameters
        return self.rank * sum(linear.into + linear.out for linear in self.adapted)

    @property
    def copied(self) -> bool:
        """Whether what is trained has compute copies beside its masters: the fast path's, and the generic path's of
        another precision. Adapters on the generic path compute as they are."""
        return self.fast or (not self.adapted and self.compute != 4)


@dataclass(frozen=True)
class Shapes:
    """The models that a run's settings name: policy, another reference, reward model (None where it isn't loaded)."""

    policy: ModelShape
    reference: ModelShape | None
    reward: ModelShape | None


def read_shapes(config: RunConfig) -> Shapes:
    """From the models' configs. Raises ValueError (LoadError among them) for one that can't be described."""
    model, reward = config.model, config.game.reward
    loaded = reward.model is not None and reward.url is None
    return Shapes(
        policy=language_model(locate(model.path), revision=model.revision, remote_code=model.remote_code is not None),
        reference=language_model(locate(model.reference)) if model.reference is not None else None,
        reward=reward_model(reward.model, revision=reward.revision) if loaded and reward.model is not None else None,
    )


def set_up(config: RunConfig, shapes: Shapes, gpu: GPU, gpus: int, rollout: Rollout) -> Setup:
    """Raises ValueError for model.lora.targets that name no layer."""
    model, learner, game, vllm = config.model, config.learner, config.game, config.rollout
    policy = shapes.policy
    adapted = model.tuning != "full"
    frozen = shapes.reference or (None if adapted else policy)
    here = game.reward.url is None and _together(model.device, game.reward.device)
    split = {"auto": not adapted, "shard": True, "replicate": False}[config.parallel.strategy]
    within = rollout == "server" and vllm.engine == "vllm" and not vllm.url
    roles = (game.challenger, game.solver, game.grader)
    return Setup(
        policy=policy,
        reference=frozen if needs_reference(config) else None,
        reward=shapes.reward if here else None,
        device=gpu.device,
        gpus=gpus,
        shards=gpus if split else 1,
        writes=rollout == "local",
        # Without an adapter the frozen copy here writes for itself, unless it has a server too.
        grades=rollout == "local" or not (adapted or vllm.reference_url),
        vllm=int(vllm.memory * GIB) if within else 0,
        fast=policy.fast and model.engine == "auto" and model.tuning != "qlora",
        four_bit=model.tuning == "qlora",
        adapted=policy.adapted(model.lora.targets) if adapted else (),
        rank=model.lora.rank,
        compute=_bytes(model.dtype, gpu.device),
        reward_compute=_bytes(game.reward.dtype, gpu.device),
        checkpointing=model.gradient_checkpointing,
        cache_tokens=model.cache_tokens,
        token_budget=learner.token_budget or default_token_budget(gpu.device),
        reward_budget=game.reward.token_budget or REWARD_BUDGET[gpu.device],
        penalised=learner.beta > 0,
        exact_kl=learner.kl == "exact" and learner.beta > 0,
        filtered=any(role.top_p < 1 or role.top_k > 0 for role in roles),
        minibatches=learner.minibatches,
        epochs=learner.epochs,
    )


def _bytes(dtype: str, device: str) -> int:
    """Of a number in this precision; auto is bfloat16 on every GPU that a plan knows."""
    if dtype == "auto" and device != "cpu":
        return torch.bfloat16.itemsize
    return resolve_dtype(dtype, device).itemsize


def _together(model: str, reward: str) -> bool:
    """Whether the reward model's device is the policy's."""
    first = {"auto": "cuda:0", "cuda": "cuda:0"}
    return reward == "auto" or first.get(model, model) == first.get(reward, reward)
