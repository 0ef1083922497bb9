"""What a run trains and saves: all weights, whole or sharded over ranks, or LoRA adapters.

A checkpoint's model folder holds what is trained, bit for bit. The export made from it at the end of a run is a plain
transformers folder (or, where the adapters are kept, PEFT's).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from sparring.lm.hub import LoadError, find_folder, is_adapter
from sparring.lm.load import Saved, load_model, save_model
from sparring.lm.lora import merge_adapter, restore_adapter, save_adapter
from sparring.lm.probe import cast_parameters
from sparring.parallel.parts import Digest, FromFirst, TensorFiles, write_tensors
from sparring.parallel.ranks import ALONE, Ranks
from sparring.parallel.tensors import placed_like


class Weights(Protocol):
    """The trained part of a model, and how it is written. Among several ranks all call each of these.

    model: the transformers model with the fp32 masters inside. ranks: who they are.
    """

    model: PreTrainedModel
    ranks: Ranks

    def parameters(self) -> dict[str, Parameter]:
        """What is trained, by name."""
        ...

    def save(self, folder: Path) -> Mapping[str, Digest]:
        """Write what is trained, and the tokenizer, into a checkpoint's model folder.

        Gives size and hash of files that were hashed while they were written.
        """
        ...

    def restore(self, folder: Path) -> None:
        """Read what `save` wrote into the parameters, bit for bit."""
        ...

    def publish(self, folder: Path, dtype: torch.dtype) -> None:
        """Write what is trained, as it is now, for another engine: whole weights in `dtype`, or the adapters."""
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
    tokenizer: Saved
    dtype: torch.dtype
    ranks: Ranks = ALONE

    def parameters(self) -> dict[str, Parameter]:
        """What is trained, by name."""
        return _trained(self.model)

    def save(self, folder: Path) -> Mapping[str, Digest]:
        """Write the whole model."""
        self.ranks.first("saving the model", lambda: save_model(self.model, self.tokenizer, folder))
        return {}

    def restore(self, folder: Path) -> None:
        """Read saved weights into the parameters: tensor by tensor where the file has them under the same names.

        transformers renames or rearranges some models' weights when it saves them; those it must load itself.
        Raises LoadError where the folder holds another model.
        """
        parameters = self.parameters()
        saved: list[Mapping[str, Tensor]] = []
        self.ranks.first("opening the saved model", lambda: saved.append(_saved(self.model, parameters, folder)))
        tensors = FromFirst(saved[0] if saved else None, self.ranks, self.model.device)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(placed_like(tensors[name], parameter))

    def publish(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the whole model, without its tokenizer."""
        self.ranks.first("publishing the weights", lambda: self._publish(folder, dtype))

    def _publish(self, folder: Path, dtype: torch.dtype) -> None:
        model: Any = self.model
        model.save_pretrained(folder, state_dict={name: t.to(dtype) for name, t in model.state_dict().items()})

    def export(self, checkpoint_model: Path, folder: Path) -> None:
        """Copy the checkpoint's model, or write it anew in another dtype."""
        self.ranks.first("exporting the model", lambda: self._export(checkpoint_model, folder))

    def _export(self, checkpoint_model: Path, folder: Path) -> None:
        if self.dtype == torch.float32:
            _copy_folder(checkpoint_model, folder)
            return
        model = load_model(checkpoint_model, dtype=self.dtype, remote_code=_runs_own_code(self.model))
        save_model(model, self.tokenizer, folder)


@dataclass
class ShardedWeights(FullWeights):
    """All weights, sharded over the ranks; files hold them whole."""

    def parameters(self) -> dict[str, Parameter]:
        """What is trained, by name: this rank's shards."""
        from sparring.parallel.sharding import is_sharded_model, let_go

        assert is_sharded_model(self.model)
        let_go(self.model)
        return super().parameters()

    def save(self, folder: Path) -> Mapping[str, Digest]:
        """Write the whole model, each writing rank a part."""
        digests = self._write(folder, self.model.dtype)
        self.ranks.first("saving the tokenizer", lambda: self.tokenizer.save_pretrained(folder))
        return digests

    def publish(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the whole model, each writing rank a part, without its tokenizer."""
        self._write(folder, dtype)

    def _write(self, folder: Path, dtype: torch.dtype) -> Mapping[str, Digest]:
        self.parameters()
        kept = self.model.state_dict().keys()
        tensors: dict[str, Tensor] = {name: p.detach().to(dtype) for name, p in self.model.named_parameters()}
        tensors |= {name: buffer for name, buffer in self.model.named_buffers() if name in kept}
        self.ranks.first("describing the model", lambda: self._describe(folder, dtype))
        return write_tensors(folder, "model", tensors, self.ranks)

    def _describe(self, folder: Path, dtype: torch.dtype) -> None:
        config = copy.deepcopy(self.model.config)
        config.dtype = dtype
        config.save_pretrained(folder)
        if self.model.generation_config is not None:
            self.model.generation_config.save_pretrained(folder)


@dataclass
class LoraWeights:
    """Adapters are trained over a frozen base.

    base, base_revision: folder or hub id of the base model, as `load_model` takes them. dtype: of the exported weights
    where the adapters are `merged` into the base; kept adapters stay fp32. Raises ValueError where what is asked for
    could not be exported at the end.
    """

    model: PreTrainedModel
    tokenizer: Saved
    base: str
    base_revision: str | None
    dtype: torch.dtype
    merged: bool
    ranks: Ranks = ALONE

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

    def save(self, folder: Path) -> Mapping[str, Digest]:
        """Write the adapters in PEFT's format, and the tokenizer."""
        self.ranks.first("saving the adapter", lambda: self._save(folder))
        return {}

    def publish(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the adapters, in float32 whatever dtype says, and the tokenizer."""
        self.save(folder)

    def restore(self, folder: Path) -> None:
        """Read saved adapters into the parameters."""
        self.ranks.first("reading the adapter", lambda: restore_adapter(self.model, folder))
        for parameter in self.parameters().values():
            self.ranks.broadcast_(parameter.data)

    def export(self, checkpoint_model: Path, folder: Path) -> None:
        """Merge the checkpoint's adapters into the base, loaded anew in fp32 on the CPU; or copy the adapters."""
        self.ranks.first("exporting the model", lambda: self._export(checkpoint_model, folder))

    def _save(self, folder: Path) -> None:
        save_adapter(self.model, folder, self.base, self.base_revision)
        self.tokenizer.save_pretrained(folder)

    def _export(self, checkpoint_model: Path, folder: Path) -> None:
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


def _saved(model: PreTrainedModel, parameters: Mapping[str, Parameter], folder: Path) -> Mapping[str, Tensor]:
    """A folder's tensors for each parameter: from its files where they are there by name, else as transformers loads
    them."""
    files = TensorFiles(weight_files(folder))
    if all(name in files and files.kind(name)[0] == tuple(p.shape) for name, p in parameters.items()):
        return files
    saved = dict(load_model(folder, remote_code=_runs_own_code(model)).named_parameters())
    if odd := [name for name, p in parameters.items() if name not in saved or saved[name].shape != p.shape]:
        raise LoadError(f"{folder}: holds another model than the one that is trained ({odd[0]} doesn't fit)")
    return {name: tensor.detach() for name, tensor in saved.items()}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder; none where there are none."""
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
