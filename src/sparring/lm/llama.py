"""A fast engine for the Llama and Qwen family: compute copies of the weights, and the passes over them.

The masters are the transformers model's own parameters (fp32 where they are trained). The compute copies hold them in
the compute dtype, with q/k/v and gate/up fused into one matrix each, so a layer is four matrix products. What is frozen
and in the compute dtype already is not copied but shared: then the model's own parameters become views of the fused
matrices. LoRA adapters stay low-rank beside them (`llama_adapters`).
`llama_score` computes log-probabilities for training, `llama_generate` writes completions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from sparring.lm.llama_adapters import Copies, Projection, base_layer, is_adapted, odd_adapter

COVERED = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MistralForCausalLM)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
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
    """One decoder layer in the compute dtype."""

    attention_norm: Tensor
    qkv: Projection
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection

    @property
    def adapted(self) -> bool:
        """Whether any of its projections carries an adapter."""
        return any(p.adapter is not None for p in (self.qkv, self.out, self.gate_up, self.down))

    def bare(self) -> Layer:
        """The same tensors without adapters."""
        parts = {"qkv": self.qkv, "out": self.out, "gate_up": self.gate_up, "down": self.down}
        return replace(self, **{name: part.bare() for name, part in parts.items()})


class FastLlama:
    """LanguageModel over a LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM or MistralForCausalLM.

    `trainable` makes copies of parameters that require grad leaves that do too. Parameters that don't when the engine
    is built are constants to it: shared with the model where they have `dtype`, else converted once. Everything lies
    on the model's device. `checkpointing` has each layer computed again in the backward pass rather than kept: less
    memory, about a third more time. The model may carry one plain LoRA adapter over a frozen base
    (`peft.inject_adapter_in_model`). Raises ValueError where `unsupported(model)` gives a reason.
    """

    shares_prompts: bool = True

    def __init__(
        self, model: PreTrainedModel, dtype: torch.dtype, trainable: bool, *, checkpointing: bool = False
    ) -> None:
        reason = self.unsupported(model)
        if reason is not None:
            raise ValueError(f"FastLlama cannot run this model: {reason}. Use the generic engine.")
        self.dtype = dtype
        self.trainable = trainable
        self.checkpointing = checkpointing
        decoder: Any = model.get_decoder()
        embedding: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        self.device: torch.device = embedding.weight.device
        self.geometry = _geometry(model)
        self._copies = Copies(dtype, self.device, trainable)
        self.embedding = self._copies.take(embedding.weight)
        self.layers = [_layer(layer, self._copies) for layer in decoder.layers]
        self.norm = self._copies.take(decoder.norm.weight)
        self.head = self.embedding if head.weight is embedding.weight else self._copies.take(head.weight)
        self._inv_freq: Tensor = decoder.rotary_emb.inv_freq
        self._rope_scaling = float(decoder.rotary_emb.attention_scaling)
        self._rope_table: tuple[Tensor, Tensor] | None = None
        self.refresh()

    @staticmethod
    def unsupported(model: PreTrainedModel) -> str | None:
        """Why this engine cannot run `model`, or None where it can."""
        return _unsupported(model)

    def freeze(self) -> FastLlama:
        """Let go of the masters: no update of what was trainable reaches the copies any more. Returns itself."""
        self._copies.let_go()
        return self

    def without_adapters(self) -> FastLlama:
        """The base under the adapters, frozen: it shares every tensor but theirs.

        Raises ValueError for a model without adapters, whose base is what is trained.
        """
        if not any(layer.adapted for layer in self.layers):
            raise ValueError("the model carries no adapters: its reference must be a frozen copy (open_frozen)")
        base = copy.copy(self)
        base.layers = [layer.bare() for layer in self.layers]
        base.trainable = False
        base._copies = Copies(self.dtype, self.device, trainable=False)
        return base

    def refresh(self) -> None:
        """Copy the masters into the compute copies, in place."""
        self._copies.refresh()

    def collect_gradients(self) -> None:
        """Add the copies' gradients to the masters' `.grad` in fp32 and clear the copies'."""
        self._copies.collect_gradients()

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


def _layer(layer: Any, copies: Copies) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    normed = hasattr(attention, "q_norm")
    return Layer(
        attention_norm=copies.take(layer.input_layernorm.weight),
        qkv=copies.projection(attention.q_proj, attention.k_proj, attention.v_proj),
        q_norm=copies.take(attention.q_norm.weight) if normed else None,
        k_norm=copies.take(attention.k_norm.weight) if normed else None,
        out=copies.projection(attention.o_proj),
        mlp_norm=copies.take(layer.post_attention_layernorm.weight),
        gate_up=copies.projection(mlp.gate_proj, mlp.up_proj),
        down=copies.projection(mlp.down_proj),
    )


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
        if last in PROJECTIONS:
            if is_adapted(module) and (reason := odd_adapter(module)) is not None:
                return f"{name} {reason}"
            if (reason := _odd_linear(base_layer(module))) is not None:
                return f"{name} {reason}"
            if base_layer(module).bias is not None and last not in ("q_proj", "k_proj", "v_proj"):
                return f"{name} has a bias"
        elif hasattr(module, "base_layer") or hasattr(module, "original_module"):
            return f"{name} is wrapped in a {type(module).__name__}: only the layers' projections may be adapted"
    head: Any = model.get_output_embeddings()
    if (reason := _odd_linear(head)) is not None:
        return f"lm_head {reason}"
    return "lm_head has a bias" if head.bias is not None else None


def _odd_linear(module: nn.Module) -> str | None:
    if type(module) is nn.Linear:
        return None
    if hasattr(module, "base_layer"):
        return f"carries an adapter ({type(module).__module__}) other than one LoRA"
    return f"is a {type(module).__name__} (adapter? quantised?), not a plain Linear"


def _odd_parameters(model: PreTrainedModel) -> str | None:
    parameters = dict(model.named_parameters())
    if len({parameter.device for parameter in parameters.values()}) != 1:
        return "its parameters lie on several devices"
    for name, parameter in parameters.items():
        if parameter.device.type == "meta" or hasattr(parameter, "full_tensor"):
            return f"{name} is not a whole tensor on one device (meta or sharded)"
        if not parameter.is_floating_point():
            return f"{name} has dtype {parameter.dtype}"
    adapted = any(is_adapted(module) for module in model.modules())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad and ".lora_" not in name]
    return f"{trained[0]} is trained beside the adapters: freeze it" if adapted and trained else None
