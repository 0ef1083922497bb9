"""A model's shape from its config alone: built on torch's meta device, where no weight takes any memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from sparring.lm.hub import (
    adapter_base,
    check_language_model,
    check_reward_model,
    find_folder,
    is_adapter,
    read_config,
    sees,
)
from sparring.lm.llama import FastLlama

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Linear:
    """One matrix of the layers."""

    name: str
    into: int
    out: int

    @property
    def parameters(self) -> int:
        """Of the matrix, without a bias."""
        return self.into * self.out

    def called(self, targets: tuple[str, ...]) -> bool:
        """Whether one of the targets is the ending of its name (`model.lora.targets`); none: every one is meant."""
        return not targets or any(self.name == target or self.name.endswith(f".{target}") for target in targets)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    parameters: all, tied ones once. head: vocabulary × hidden, of the output matrix. embeddings: of input and output,
    once where they are tied. linears: the layers' matrices. fast: whether `lm.llama` covers it.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    feed_forward: int
    vocab: int
    parameters: int
    head: int
    embeddings: int
    linears: tuple[Linear, ...]
    head_normed: bool
    fast: bool

    @property
    def body(self) -> int:
        """Parameters of the layers' matrices: what a token costs one multiplication and one addition each."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the input embedding."""
        return self.embeddings == self.head

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return (self.parameters - self.embeddings) // self.layers

    @property
    def query_width(self) -> int:
        """Outputs of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Outputs of all key heads."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Outputs of query, key and value together."""
        return self.query_width + 2 * self.key_width

    @property
    def largest_linear(self) -> int:
        """Parameters of the layers' largest matrix."""
        return max(linear.parameters for linear in self.linears)

    def adapted(self, targets: tuple[str, ...]) -> tuple[Linear, ...]:
        """The matrices that LoRA gives a pair.

        Raises ValueError for a target that names none.
        """
        for target in targets:
            if not any(linear.called((target,)) for linear in self.linears):
                raise ValueError(f"model.lora.targets: {self.name} has no linear layer called {target}")
        return tuple(linear for linear in self.linears if linear.called(targets))


def language_model(path: str | Path, *, revision: str | None = None, remote_code: bool = False) -> ModelShape:
    """The shape of the language model in a folder or at a hub id; of an adapter's base model, as that is what runs.

    Raises LoadError (a ValueError) as `lm.load.load_model` does for what can be seen without weights, ValueError for a
    model that a plan can't describe: a mixture of experts, or a config without the usual sizes.
    """
    folder = find_folder(path, revision, weights=False, code=remote_code)
    if is_adapter(folder):
        base, base_revision = adapter_base(folder)
        return language_model(base, revision=base_revision)
    check_language_model(path, read_config(folder), remote_code=remote_code, four_bit=True)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code, local_files_only=True)
    with torch.device("meta"):
        kind = AutoModelForImageTextToText if sees(config.to_dict()) else AutoModelForCausalLM
        model = kind.from_config(config, trust_remote_code=remote_code)
    return shape_of(model, str(path))


def reward_model(path: str | Path, *, revision: str | None = None) -> ModelShape:
    """The shape of the reward model (a sequence classifier) in a folder or at a hub id; raises as language_model."""
    folder = find_folder(path, revision, weights=False)
    check_reward_model(path, read_config(folder))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    return shape_of(model, str(path))


def shape_of(model: Any, name: str) -> ModelShape:
    """The shape of a transformers model, on whatever device."""
    config = model.config.get_text_config(decoder=True)
    if any(getattr(config, experts, None) for experts in EXPERTS):
        raise ValueError(f"{name}: is a mixture of experts, which a plan can't describe")
    sizes = {key: getattr(config, key, None) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")}
    if absent := [key for key, size in sizes.items() if not isinstance(size, int)]:
        raise ValueError(f"{name}: its config.json has no {absent[0]}, without which a plan can't describe it")
    layers, heads, hidden = config.num_hidden_layers, config.num_attention_heads, config.hidden_size
    linears = tuple(_linears(model))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embedding.weight
    return ModelShape(
        name=name,
        layers=layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        hidden=hidden,
        feed_forward=getattr(config, "intermediate_size", None) or max(linear.out for linear in linears),
        vocab=embedding.weight.shape[0],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        head=embedding.weight.numel(),
        embeddings=embedding.weight.numel() * (1 if tied else 2),
        linears=linears,
        head_normed=any(module.endswith(".q_norm") for module, _ in model.named_modules()),
        fast=_is_fast(model),
    )


def _linears(model: Any) -> list[Linear]:
    """All linear layers but the heads, language model's and classifier's."""
    outside = (model.get_output_embeddings(), getattr(model, "score", None))
    found: list[Linear] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module not in outside:
            found.append(Linear(name, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):  # GPT-2's, which lies transposed
            found.append(Linear(name, module.weight.shape[0], module.weight.shape[1]))
    return found


def _is_fast(model: Any) -> bool:
    """Whether the fast path covers it: that it lies on the meta device is the last thing it would mind."""
    reason = FastLlama.unsupported(model)
    return reason is None or "meta" in reason
