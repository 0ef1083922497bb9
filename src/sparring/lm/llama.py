"""A fast engine for the Llama and Qwen family: compute copies of the weights, and the passes over them.

The masters are the transformers model's own parameters (fp32). The compute copies hold them in the compute
dtype, with q/k/v and gate/up fused into one matrix each, so a layer is four matrix products.
`llama_score` computes log-probabilities for training, `llama_generate` writes completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from sparring.lm.base import Completion, LanguageModel, PromptGroup, SamplingParams, Scores

COVERED = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MistralForCausalLM)
FIXED_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Geometry:
    """Sizes and constants of one model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    eps: float
    scale: float
    padding_idx: int | None

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def packed_heads(self) -> int:
        """Heads in a fused projection: query, key, value."""
        return self.heads + 2 * self.kv_heads


@dataclass(frozen=True, eq=False)
class Layer:
    """Compute copies of one decoder layer; matrices are [out, in]."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class FastLlama:
    """LanguageModel over a LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM or MistralForCausalLM.

    `trainable` makes the compute copies leaves that require grad. Copies live on the model's device.
    Raises ValueError where `unsupported(model)` gives a reason.
    """

    shares_prompts: bool = True

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, trainable: bool) -> None:
        reason = self.unsupported(model)
        if reason is not None:
            raise ValueError(f"FastLlama cannot run this model: {reason}. Use the generic engine.")
        self.dtype = dtype
        self.trainable = trainable
        decoder: Any = model.get_decoder()
        embedding: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        self.device: torch.device = embedding.weight.device
        self.geometry = _geometry(model)
        self._sources: list[tuple[Tensor, list[Tensor]]] = []
        self.embedding = self._copy(embedding.weight)
        self.layers = [self._copy_layer(layer) for layer in decoder.layers]
        self.norm = self._copy(decoder.norm.weight)
        self.head = self.embedding if head.weight is embedding.weight else self._copy(head.weight)
        self._inv_freq: Tensor = decoder.rotary_emb.inv_freq
        self._rope_scaling = float(decoder.rotary_emb.attention_scaling)
        self._rope_table: tuple[Tensor, Tensor] | None = None
        self.refresh()

    @staticmethod
    def unsupported(model: PreTrainedModel) -> str | None:
        """Why this engine cannot run `model`, or None where it can."""
        return _unsupported(model)

    def _copy(self, *masters: Tensor) -> Tensor:
        shape = (sum(master.shape[0] for master in masters), *masters[0].shape[1:])
        leaf = torch.empty(shape, dtype=self.dtype, device=self.device, requires_grad=self.trainable)
        self._sources.append((leaf, list(masters)))
        return leaf

    def _copy_layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        biased = attention.q_proj.bias is not None
        normed = hasattr(attention, "q_norm")
        return Layer(
            attention_norm=self._copy(layer.input_layernorm.weight),
            qkv=self._copy(*(p.weight for p in projections)),
            qkv_bias=self._copy(*(p.bias for p in projections)) if biased else None,
            q_norm=self._copy(attention.q_norm.weight) if normed else None,
            k_norm=self._copy(attention.k_norm.weight) if normed else None,
            out=self._copy(attention.o_proj.weight),
            mlp_norm=self._copy(layer.post_attention_layernorm.weight),
            gate_up=self._copy(mlp.gate_proj.weight, mlp.up_proj.weight),
            down=self._copy(mlp.down_proj.weight),
        )

    def freeze(self) -> FastLlama:
        """Let go of the masters: nothing done to them reaches the copies any more. Returns itself."""
        self._sources.clear()
        return self

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the masters into the compute copies, in place."""
        for leaf, masters in self._sources:
            for part, master in zip(leaf.split([m.shape[0] for m in masters]), masters, strict=True):
                part.copy_(master)

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the copies' gradients to the masters' `.grad` in fp32 and clear the copies'."""
        for leaf, masters in self._sources:
            if leaf.grad is None:
                continue
            for part, master in zip(leaf.grad.split([m.shape[0] for m in masters]), masters, strict=True):
                if not master.requires_grad:
                    continue
                if master.grad is None:
                    master.grad = part.to(master.dtype, copy=True)
                else:
                    master.grad.add_(part)
            leaf.grad = None

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and signed sin [length, head_dim] in the compute dtype, for `llama_layers.rotate_`."""
        if self._rope_table is None or self._rope_table[0].shape[0] < length:
            positions_T = torch.arange(max(256, 2 * length), device=self.device, dtype=torch.float32)
            angles = positions_T[:, None] * self._inv_freq.to(self.device, torch.float32)
            cos, sin = angles.cos() * self._rope_scaling, angles.sin() * self._rope_scaling
            self._rope_table = (
                torch.cat((cos, cos), -1).to(self.dtype),
                torch.cat((-sin, sin), -1).to(self.dtype),
            )
        return self._rope_table[0][:length], self._rope_table[1][:length]

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, uniforms: np.ndarray
    ) -> list[list[Completion]]:
        """n completions of every prompt; see `LanguageModel.generate`."""
        from sparring.lm.llama_generate import generate

        return generate(self, prompts, n, params, uniforms)

    def score(
        self,
        groups: Sequence[PromptGroup],
        *,
        temperature: float = 1.0,
        reference: LanguageModel | None = None,
        entropy: bool = False,
    ) -> Scores:
        """Log-probabilities of every completion token; see `LanguageModel.score`.

        Raises TypeError where the reference is not a FastLlama.
        """
        from sparring.lm.llama_score import score

        if reference is not None and not isinstance(reference, FastLlama):
            raise TypeError(
                f"the reference of a FastLlama must be a FastLlama, not {type(reference).__name__}: "
                "load both models with the same engine"
            )
        return score(self, groups, temperature=temperature, reference=reference, entropy=entropy)


def _geometry(model: PreTrainedModel) -> Geometry:
    config: Any = model.config
    decoder: Any = model.get_decoder()
    embedding: Any = model.get_input_embeddings()
    attention = decoder.layers[0].self_attn
    return Geometry(
        layers=len(decoder.layers),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        hidden=config.hidden_size,
        vocab=embedding.weight.shape[0],
        eps=config.rms_norm_eps,
        scale=attention.scaling,
        padding_idx=embedding.padding_idx,
    )


def _unsupported(model: PreTrainedModel) -> str | None:
    if type(model) not in COVERED:
        return f"{type(model).__name__} is not one of {', '.join(kind.__name__ for kind in COVERED)}"
    checks: tuple[Callable[[PreTrainedModel], str | None], ...] = (_odd_config, _odd_modules, _odd_parameters)
    return next((reason for check in checks if (reason := check(model)) is not None), None)


def _odd_config(model: PreTrainedModel) -> str | None:
    config: Any = model.config
    decoder: Any = model.get_decoder()
    if getattr(config, "hidden_act", None) != "silu":
        return f"hidden_act is {config.hidden_act!r}, not 'silu'"
    layer_types = getattr(config, "layer_types", None) or ()
    if any(kind != "full_attention" for kind in layer_types):
        return "some layers attend to a sliding window"
    if isinstance(model, MistralForCausalLM) and config.sliding_window is not None:
        return f"sliding_window is {config.sliding_window}"
    rope_type = decoder.rotary_emb.rope_type
    if rope_type not in FIXED_ROPE:
        return f"rope type {rope_type!r} changes with the length of the text"
    return None


def _odd_modules(model: PreTrainedModel) -> str | None:
    if getattr(model, "hf_quantizer", None) is not None:
        return "its weights are quantised"
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("o_proj", "gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "lm_head"):
            if type(module) is not nn.Linear:
                return f"{name} is a {type(module).__name__} (adapter? quantised?), not a plain Linear"
            if module.bias is not None and last not in ("q_proj", "k_proj", "v_proj"):
                return f"{name} has a bias"
    return None


def _odd_parameters(model: PreTrainedModel) -> str | None:
    parameters = dict(model.named_parameters())
    if len({parameter.device for parameter in parameters.values()}) != 1:
        return "its parameters lie on several devices"
    for name, parameter in parameters.items():
        if parameter.device.type == "meta" or hasattr(parameter, "full_tensor"):
            return f"{name} is not a whole tensor on one device (meta or sharded)"
        if not parameter.is_floating_point():
            return f"{name} has dtype {parameter.dtype}"
    return None
