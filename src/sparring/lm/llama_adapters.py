"""The weights `FastLlama` computes with: what is trained is copied, what is frozen is shared, LoRA stays beside it.

LoRA (arXiv 2106.09685) as peft puts it into a transformers model: each adapted projection is wrapped in a module
with the frozen `base_layer` and, under the adapter's name, `lora_A` [r, in], `lora_B` [out, r] and `scaling` s:

    y = x Wᵀ + (x Aᵀ)(s B)ᵀ
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as fn


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA of fused projections in the compute dtype.

    down [Σ r, in] holds their A one under the other, up [out, Σ r] their s · B as blocks on a diagonal: one pair of
    small products serves all of them.
    """

    down: Tensor
    up: Tensor

    def add_(self, y_SO: Tensor, x_SI: Tensor) -> Tensor:
        """y + (x Aᵀ)(s B)ᵀ, in place: a wide y is not written twice."""
        return y_SO.addmm_(fn.linear(x_SI, self.down), self.up.t())


@dataclass(frozen=True, eq=False)
class Projection:
    """One matrix product of a layer: weight [out, in], bias [out], adapter."""

    weight: Tensor
    bias: Tensor | None
    adapter: Adapter | None

    def of(self, x_SI: Tensor) -> Tensor:
        """x Wᵀ + bias, with the adapter's share."""
        y_SO = fn.linear(x_SI, self.weight, self.bias)
        return y_SO if self.adapter is None else self.adapter.add_(y_SO, x_SI)

    def onto(self, h_SO: Tensor, x_SI: Tensor) -> Tensor:
        """h + x Wᵀ, with the adapter's share, of a projection without bias."""
        h_SO = torch.addmm(h_SO, x_SI, self.weight.t())
        return h_SO if self.adapter is None else self.adapter.add_(h_SO, x_SI)

    def bare(self) -> Projection:
        """The same tensors without the adapter."""
        return replace(self, adapter=None)


@dataclass(frozen=True, eq=False)
class Part:
    """Where a master lies in its compute copy: copy[at] = scale · master."""

    master: Tensor
    at: tuple[slice, ...]
    scale: float = 1.0


class Copies:
    """Makes the tensors to compute with from a model's parameters (the masters), and keeps them in step.

    A parameter that doesn't require grad when it is taken is a constant: it is shared where it has the compute dtype
    already, else converted once. The others are copied; where `trainable`, the copies of those are leaves.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, trainable: bool) -> None:
        self.dtype, self.device, self.trainable = dtype, device, trainable
        self._copies: list[tuple[Tensor, list[Part]]] = []

    def take(self, *masters: Tensor) -> Tensor:
        """Masters, one under the other, as one tensor."""
        if not any(master.requires_grad for master in masters):
            return self._constant(masters)
        parts: list[Part] = []
        row = 0
        for master in masters:
            parts.append(Part(master, (slice(row, row + master.shape[0]),)))
            row += master.shape[0]
        return self._copy((row, *masters[0].shape[1:]), parts)

    def projection(self, *modules: nn.Module) -> Projection:
        """Linear modules that see the same input, adapted or not, as one projection."""
        bases: list[Any] = [base_layer(module) for module in modules]
        biases = [base.bias for base in bases if base.bias is not None]
        return Projection(
            weight=self.take(*(base.weight for base in bases)),
            bias=self.take(*biases) if biases else None,
            adapter=self._adapter(modules),
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the masters into the copies, in place."""
        for copy, parts in self._copies:
            for part in parts:
                copy[part.at].copy_(part.master if part.scale == 1 else part.master * part.scale)

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the copies' gradients to the masters' `.grad`, in the masters' precision, and clear the copies'."""
        for copy, parts in self._copies:
            if copy.grad is None:
                continue
            for part in parts:
                if not part.master.requires_grad:
                    continue
                gradient = copy.grad[part.at]
                if part.master.grad is not None:
                    part.master.grad.add_(gradient, alpha=part.scale)
                    continue
                part.master.grad = gradient.to(part.master.dtype, copy=True)
                if part.scale != 1:
                    part.master.grad.mul_(part.scale)
            copy.grad = None

    def let_go(self) -> None:
        """Forget the masters."""
        self._copies.clear()

    def _copy(self, shape: tuple[int, ...], parts: list[Part]) -> Tensor:
        requires_grad = self.trainable and any(part.master.requires_grad for part in parts)
        copy = torch.zeros(shape, dtype=self.dtype, device=self.device, requires_grad=requires_grad)
        self._copies.append((copy, parts))
        return copy

    def _adapter(self, modules: Sequence[nn.Module]) -> Adapter | None:
        downs: list[Part] = []
        ups: list[Part] = []
        row = column = 0
        for module in modules:
            out = base_layer(module).weight.shape[0]
            if is_adapted(module):
                a, b, scale = _low_rank(module)
                columns = slice(column, column + a.shape[0])
                downs.append(Part(a, (columns,)))
                ups.append(Part(b, (slice(row, row + out), columns), scale))
                column = columns.stop
            row += out
        if not downs:
            return None
        return Adapter(self._copy((column, downs[0].master.shape[1]), downs), self._copy((row, column), ups))

    def _constant(self, masters: Sequence[Tensor]) -> Tensor:
        if any(master.dtype != self.dtype for master in masters):
            return torch.cat([master.detach().to(self.dtype) for master in masters])
        if len(masters) == 1:
            return masters[0].detach()
        fused = _adjacent(masters)
        if fused is None:
            fused = torch.cat([master.detach() for master in masters])
            # The fused tensor becomes the only storage: a large base must not lie in memory twice.
            for master, rows in zip(masters, fused.split([m.shape[0] for m in masters]), strict=True):
                master.data = rows
        return fused


def _adjacent(masters: Sequence[Tensor]) -> Tensor | None:
    """These tensors as one, where they lie one after the other in one storage (an engine fused them before)."""
    first = masters[0].detach()
    end = first.storage_offset()
    for master in masters:
        same_storage = master.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same_storage and master.is_contiguous() and master.storage_offset() == end):
            return None
        end += master.numel()
    return first.as_strided((sum(master.shape[0] for master in masters), *first.shape[1:]), first.stride())


def is_adapted(module: nn.Module) -> bool:
    """Whether peft wrapped this module in LoRA."""
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")


def base_layer(module: Any) -> Any:
    """The frozen layer inside an adapted module; the module itself where it isn't adapted."""
    return module.base_layer if is_adapted(module) else module


def _low_rank(module: Any) -> tuple[Tensor, Tensor, float]:
    """A [r, in], B [out, r] and the scale s of an adapted module's only adapter."""
    ((name, a),) = module.lora_A.items()
    return a.weight, module.lora_B[name].weight, float(module.scaling[name])


def odd_adapter(module: Any) -> str | None:
    """What makes an adapted module other than one plain LoRA over a plain layer, or None."""
    names = list(module.lora_A.keys())
    if len(names) != 1:
        return f"has {len(names)} adapters ({', '.join(names)}): keep one"
    name = names[0]
    if module.merged:
        return "has its adapter merged into the weights: unmerge it"
    if module.disable_adapters or name not in module.active_adapters:
        return f"has its adapter {name!r} switched off: switch it on, or remove it"
    if getattr(module.lora_dropout[name], "p", 0) > 0:
        return "has LoRA dropout: sampler and learner would be two policies; set lora_dropout=0"
    if name in module.lora_variant:
        variant = type(module.lora_variant[name]).__name__.removesuffix("LinearVariant")
        return f"has an adapter of the variant {variant}, not plain LoRA"
    if type(module.lora_A[name]) is not nn.Linear or type(module.lora_B[name]) is not nn.Linear:
        return f"has adapter matrices of type {type(module.lora_A[name]).__name__}, not plain LoRA"
    if module.lora_B[name].bias is not None:
        return "has an adapter with a bias: set lora_bias=False"
    return None
