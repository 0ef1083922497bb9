"""What a run trains and saves: all weights, or LoRA adapters.

A checkpoint's model folder holds what is trained, bit for bit. The export made from it at the end of a run is a plain
transformers folder (or, where the adapters are kept, PEFT's).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch.nn import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparring.lm.hub import LoadError, find_folder, is_adapter
from sparring.lm.load import load_model, save_model
from sparring.lm.lora import merge_adapter, restore_adapter, save_adapter
from sparring.lm.probe import cast_parameters


class Weights(Protocol):
    """The trained part of a model, and how it is written.

    model: the transformers model with the fp32 masters inside.
    """

    model: PreTrainedModel

    def parameters(self) -> dict[str, Parameter]:
        """What is trained, by name."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is trained, and the tokenizer, into a checkpoint's model folder."""
        ...

    def restore(self, folder: Path) -> None:
        """Read what `save` wrote into the parameters, bit for bit."""
        ...

    def export(self, checkpoint_model: Path, folder: Path) -> None:
        """Write the final model from a checkpoint's model folder, whatever the parameters are by now."""
        ...


@dataclass
class FullWeights:
    """All weights of a model are trained.

    dtype: what the exported weights are cast to; float32 exports the masters exactly.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype

    def parameters(self) -> dict[str, Parameter]:
        """What is trained, by name."""
        return _trained(self.model)

    def save(self, folder: Path) -> None:
        """Write the whole model."""
        save_model(self.model, self.tokenizer, folder)

    def restore(self, folder: Path) -> None:
        """Read saved weights into the parameters: tensor by tensor where the file has them under the same names.

        transformers renames or rearranges some models' weights when it saves them; those it must load itself.
        Raises LoadError where the folder holds another model.
        """
        parameters = self.parameters()
        if _stream(parameters, folder):
            return
        saved = dict(load_model(folder, remote_code=_runs_own_code(self.model)).named_parameters())
        if odd := [name for name, p in parameters.items() if name not in saved or saved[name].shape != p.shape]:
            raise LoadError(f"{folder}: holds another model than the one that is trained ({odd[0]} doesn't fit)")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])

    def export(self, checkpoint_model: Path, folder: Path) -> None:
        """Copy the checkpoint's model, or write it anew in another dtype."""
        if self.dtype == torch.float32:
            _copy_folder(checkpoint_model, folder)
            return
        model = load_model(checkpoint_model, dtype=self.dtype, remote_code=_runs_own_code(self.model))
        save_model(model, self.tokenizer, folder)


@dataclass
class LoraWeights:
    """Adapters are trained over a frozen base.

    base, base_revision: folder or hub id of the base model, as `load_model` takes them. dtype: of the exported weights
    where the adapters are `merged` into the base; kept adapters stay fp32. Raises ValueError where what is asked for
    could not be exported at the end.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: str
    base_revision: str | None
    dtype: torch.dtype
    merged: bool

    def __post_init__(self) -> None:
        if self.merged and getattr(getattr(self.model, "hf_quantizer", None), "pre_quantized", False):
            raise ValueError(
                f"{self.base} has 4-bit weights only, into which adapters can't be merged: set export.adapter=kept, or "
                "start from the model's unquantised weights"
            )
        if not self.merged and is_adapter(find_folder(self.base, self.base_revision, weights=False)):
            raise ValueError(
                f"{self.base} is itself an adapter, and transformers loads no adapter over an adapter: set "
                "export.adapter=merged, or start from a merged model"
            )

    def parameters(self) -> dict[str, Parameter]:
        """What is trained, by name."""
        return _trained(self.model)

    def save(self, folder: Path) -> None:
        """Write the adapters in PEFT's format, and the tokenizer."""
        save_adapter(self.model, folder, self.base, self.base_revision)
        self.tokenizer.save_pretrained(folder)

    def restore(self, folder: Path) -> None:
        """Read saved adapters into the parameters."""
        restore_adapter(self.model, folder)

    def export(self, checkpoint_model: Path, folder: Path) -> None:
        """Merge the checkpoint's adapters into the base, loaded anew in fp32 on the CPU; or copy the adapters."""
        if not self.merged:
            _copy_folder(checkpoint_model, folder)
            return
        base = load_model(self.base, revision=self.base_revision, remote_code=_runs_own_code(self.model))
        merged = merge_adapter(base, checkpoint_model)
        cast_parameters(merged, self.dtype)
        merged.generation_config = self.model.generation_config
        save_model(merged, self.tokenizer, folder)


def _trained(model: PreTrainedModel) -> dict[str, Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _runs_own_code(model: PreTrainedModel) -> bool:
    """Whether a model was loaded with code shipped with it: then that code is trusted for its checkpoints too."""
    return type(model).is_remote_code()


def _stream(parameters: Mapping[str, Parameter], folder: Path) -> bool:
    """Copy each parameter from its tensor of the same name; False, with nothing changed, where one has none."""
    files: dict[str, Path] = {}
    for file in _weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                mine = parameters.get(name)
                if mine is not None and tuple(tensors.get_slice(name).get_shape()) == tuple(mine.shape):
                    files[name] = file
    if files.keys() != parameters.keys():
        return False
    with torch.no_grad():
        for file in sorted(set(files.values())):
            with safe_open(file, "pt") as tensors:
                for name in (name for name, where in files.items() if where == file):
                    parameters[name].copy_(tensors.get_tensor(name))
    return True


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [file for file in [folder / "model.safetensors"] if file.is_file()]
    names: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(names.values()))]


def _copy_folder(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_copy_or_link)


def _copy_or_link(source: str, target: str) -> None:
    """Weights are linked where the file system can: they are large, and never changed in place."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            return
    shutil.copy2(source, target)
