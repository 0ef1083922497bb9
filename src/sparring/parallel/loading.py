"""A model loaded straight into shards: unit by unit from its files, so that no rank ever holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
)

from sparring.lm.hub import (
    LoadError,
    check_language_model,
    check_weights_present,
    find_folder,
    is_adapter,
    read_config,
    sees,
)
from sparring.lm.load import _keep_generation_config_savable
from sparring.lm.vision_parts import is_vision_model, own_name
from sparring.lm.weights import weight_files
from sparring.parallel.parts import TensorFiles
from sparring.parallel.sharding import ShardedModel, shard
from sparring.parallel.team import Team


def load_sharded(
    path: str | Path,
    team: Team,
    *,
    device: str,
    dtype: torch.dtype,
    computing: torch.dtype,
    attention: str,
    revision: str | None = None,
) -> ShardedModel:
    """The causal language model in a folder or at a hub id, its shards in `dtype`, to compute in `computing`.

    Every rank reads the files itself. Raises LoadError as `lm.load.load_model` does, and for a model whose files have
    other names than the model's own: what transformers rearranges as it loads can't be read unit by unit.
    """
    folder = find_folder(path, revision, weights=True)
    if is_adapter(folder):
        raise LoadError(f"{path}: is an adapter, which can't be sharded: merge it into its base model first")
    check_language_model(path, read_config(folder), remote_code=False, four_bit=False)
    check_weights_present(folder)
    model = _skeleton(folder, dtype, attention, device)
    files = TensorFiles(weight_files(folder), own_name if is_vision_model(model) else str)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    odd = [name for name, shape in wanted.items() if name not in files or files.kind(name)[0] != shape]
    odd += [name for name in files if name not in model.state_dict()]
    if odd:
        raise LoadError(
            f"{path}: its weights don't match the model as transformers has it ({', '.join(odd[:3])}), so they can't "
            "be sharded: set parallel.strategy=replicate, or model.tuning=lora"
        )
    for name, buffer in model.named_buffers():
        if name in files:
            buffer.copy_(files[name])
    return shard(model, team, computing, device, files.__getitem__)


def _skeleton(folder: Path, dtype: torch.dtype, attention: str, device: str) -> PreTrainedModel:
    """The model with parameters that have no storage yet, and buffers that are as they should be."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        kind = AutoModelForImageTextToText if sees(config.to_dict()) else AutoModelForCausalLM
        model: Any = kind.from_config(config, dtype=dtype, attn_implementation=attention)
    for name, buffer in list(model.named_buffers()):
        parent, _, leaf = name.rpartition(".")
        owner: nn.Module = model.get_submodule(parent)
        owner._buffers[leaf] = torch.empty_like(buffer, device=device)
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # so that transformers fills the buffers alone
    model.initialize_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        _keep_generation_config_savable(model)
    return model.eval()
