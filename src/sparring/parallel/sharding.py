"""Models whose weights lie sharded over the ranks: torch's FSDP2.

Each decoder layer is a unit, and all the rest (embeddings, last norm, head) another. A unit's weights are put together,
in compute precision, when it computes, and let go again. The shards are the masters, fp32 where they are trained; their
gradients are summed over the ranks in fp32. Adapters are small: they stay whole on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sparring.lm.lora import is_adapter_parameter
from sparring.parallel.team import Team


class ShardedModel(PreTrainedModel, FSDPModule):
    """What a transformers model is for type checkers once it has been sharded."""


def is_sharded_model(model: PreTrainedModel) -> TypeGuard[ShardedModel]:
    """Whether a model's weights lie sharded over the ranks."""
    return isinstance(model, FSDPModule)


def shard(
    model: PreTrainedModel,
    team: Team,
    dtype: torch.dtype,
    device: str,
    read: Callable[[str], Tensor] | None = None,
) -> ShardedModel:
    """Shard a model over the ranks, in place; it then lies on `device` and computes in `dtype`.

    read: a parameter's name to its value, for a model on the meta device: it is read unit by unit, so that no rank ever
    holds the whole. Raises ValueError where no layers are known, or weights are packed in 4 bits.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError("4-bit weights can't be sharded: set parallel.strategy=replicate")
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers to shard: set parallel.strategy=replicate")
    mesh = DeviceMesh.from_group(team.group, torch.device(device).type)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    names = {parameter: name for name, parameter in model.named_parameters()}
    adapters = {parameter for parameter, name in names.items() if is_adapter_parameter(name)}
    for adapter in adapters:
        adapter.data = adapter.data.to(device)
    for unit in (*layers, model):
        for parameter in list(unit.parameters()):
            if parameter.is_meta and read is not None:
                value = read(names[parameter]).to(device).to(parameter.dtype)
                torch.utils.swap_tensors(parameter, nn.Parameter(value, parameter.requires_grad))
        fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=adapters)
    assert is_sharded_model(model)
    for unit in _units(model):
        unit.set_gradient_divide_factor(1.0)  # the learner's weights are of the whole batch
        unit.set_force_sum_reduction_for_comms(enable=True)  # gloo can't scale while it sums
    return model


@contextmanager
def gathered(model: ShardedModel) -> Iterator[None]:
    """All weights put together in here: passes then need no other rank. To enter is a meeting."""
    model.set_reshard_after_forward(reshard_after_forward=False)
    for unit in _units(model):
        unit.unshard()
    try:
        yield
    finally:
        let_go(model)
        model.set_reshard_after_forward(reshard_after_forward=True)
        # As FSDP2 has it: what begins the backward pass would be put together again at once.
        model.set_reshard_after_forward(reshard_after_forward=False, recurse=False)


def let_go(model: ShardedModel) -> None:
    """Keep the shards alone, as after an optimiser step what had been put together is out of date."""
    for unit in _units(model):
        unit.reshard()


def _units(model: PreTrainedModel) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
