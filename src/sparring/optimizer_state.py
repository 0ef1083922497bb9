"""An optimiser's state as named tensors and JSON, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sparring.checkpoint import CheckpointError
from sparring.parallel.tensors import placed_like


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Parameter, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors ("exp_avg/<parameter>") and a JSON record of the rest.

    `names` gives each parameter its name: `{p: n for n, p in model.named_parameters()}`.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        group_names = [_name(parameter, names) for parameter in group["params"]]
        settings = {}
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group.{index}/{key}"] = value
            elif key != "params":
                settings[key] = value
        groups.append({"params": group_names, "settings": settings})
        for parameter, name in zip(group["params"], group_names, strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{key}/{name}"] = value
                else:
                    values.setdefault(name, {})[key] = value
    return tensors, {"optimizer": type(optimizer).__name__, "groups": groups, "values": values}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Parameter, str],
    tensors: Mapping[str, Tensor],
    json_state: Mapping[str, Any],
) -> None:
    """Put back, bit for bit, what `flatten_optimizer` gave; on any mismatch nothing is changed.

    tensors: whole, and equal on all ranks; a rank keeps its shards of them.

    Raises CheckpointError naming the optimiser, group, parameter or shape that does not fit.
    """
    kind, groups = json_state["optimizer"], json_state["groups"]
    if kind != type(optimizer).__name__:
        raise CheckpointError(f"the checkpoint holds the state of {kind}, the run uses {type(optimizer).__name__}")
    if len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"the checkpoint's optimiser has {len(groups)} parameter groups, the run's {len(optimizer.param_groups)}"
        )
    state: dict[Tensor, dict[str, Any]] = {}
    owners: dict[str, tuple[Parameter, dict[str, Any]]] = {}
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        here = [_name(parameter, names) for parameter in group["params"]]
        _require_same_names(index, saved["params"], here)
        owners |= {name: (p, saved["settings"]) for name, p in zip(here, group["params"], strict=True)}
    settings = [dict(saved["settings"]) for saved in groups]
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition("/")
        if key.startswith("group."):
            settings[int(key.removeprefix("group."))][name] = tensor.clone()
            continue
        if name not in owners:
            raise CheckpointError(f"the checkpoint's optimiser state {full_name!r} fits no parameter of the model")
        parameter, plain = owners[name]
        if key != "step" and tensor.shape != parameter.shape:
            raise CheckpointError(
                f"the checkpoint's optimiser state {full_name!r} has shape {tuple(tensor.shape)}, "
                f"the model's parameter {tuple(parameter.shape)}"
            )
        # torch keeps step counters on the CPU unless the kernel reads them on the device.
        on_cpu = key == "step" and not (plain.get("capturable") or plain.get("fused"))
        held = tensor.to("cpu" if on_cpu else parameter.device, copy=True)
        state.setdefault(parameter, {})[key] = held if key == "step" else placed_like(held, parameter)
    for name, plain_values in json_state["values"].items():
        state.setdefault(owners[name][0], {}).update(plain_values)
    optimizer.state.clear()
    optimizer.state.update(state)
    for group, saved in zip(optimizer.param_groups, settings, strict=True):
        for key, value in saved.items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value


def _name(parameter: Parameter, names: Mapping[Parameter, str]) -> str:
    if parameter not in names:
        raise CheckpointError(f"the optimiser holds a parameter of shape {tuple(parameter.shape)} that has no name")
    return names[parameter]


def _require_same_names(group: int, saved: list[str], here: list[str]) -> None:
    if saved == here:
        return
    missing = [name for name in saved if name not in here]
    extra = [name for name in here if name not in saved]
    detail = f"only in the checkpoint: {missing[:5]}; only in the model: {extra[:5]}"
    raise CheckpointError(
        f"optimiser group {group} does not fit the model: "
        + (detail if missing or extra else "the same parameters in another order")
    )
