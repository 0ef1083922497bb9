"""Tensors that may be sharded over the ranks (torch's DTensor), beside those that are not.

torch.distributed is imported only where tensors are sharded, as one process does without.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds a part of this tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one this is a meeting of all ranks."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def placed_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, equal on all ranks, as this rank holds `target`: itself, or its shard in storage of its own."""
    if not is_sharded(target):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(target, DTensor)
    mesh, placements = target.device_mesh, target.placements
    everywhere = DTensor.from_local(value, mesh, [Replicate()], run_check=False)
    shard = everywhere.redistribute(mesh, placements).to_local().clone()
    return DTensor.from_local(shard, mesh, placements, run_check=False, shape=target.shape, stride=target.stride())


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A number that differs, but for chance, where any bit of these float32 tensors does; shards are left out."""
    held = [tensor.detach() for tensor in tensors if not is_sharded(tensor)]
    return hash(tuple(int(tensor.view(torch.int32).sum(dtype=torch.int64)) for tensor in held))
