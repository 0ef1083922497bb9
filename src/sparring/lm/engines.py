"""Which engine writes and scores for a loaded model: the fast path where it covers the model, else the general one."""

from __future__ import annotations

import copy
import logging
from typing import Literal, Protocol, cast

import torch
from transformers import PreTrainedModel

from sparring.images import ImageStore
from sparring.lm.base import LanguageModel
from sparring.lm.generic import GenericLM
from sparring.lm.llama import FastLlama
from sparring.lm.lora import has_adapters
from sparring.lm.probe import agrees, base_dtype
from sparring.lm.vision import VisionLM
from sparring.lm.vision_parts import is_vision_model

logger = logging.getLogger(__name__)

Engine = Literal["auto", "generic"]
PROVEN = ("cpu",)  # devices on which the fast path needs no check before it is used


class Adapted(Protocol):
    """A language model with adapters, which can compute without them."""

    def without_adapters(self) -> LanguageModel:
        """The base, frozen, sharing all memory with this model."""
        ...


def open_lm(
    model: PreTrainedModel,
    dtype: torch.dtype,
    trainable: bool,
    *,
    path: Engine = "auto",
    checkpointing: bool = False,
    images: ImageStore | None = None,
) -> LanguageModel:
    """The fast path where it covers this model, else (or with path="generic") the general one. A vision model has its
    own.

    checkpointing: the backward pass computes activations again, layer by layer, instead of keeping them. Off the CPU
    the fast path is used only where it agrees with transformers on a few tokens. images: the pictures of prompts, which
    a vision model needs.
    """
    if path not in {"auto", "generic"}:
        raise ValueError(f'path must be "auto" or "generic", not {path!r}')
    if is_vision_model(model):
        if images is None:
            raise ValueError(f"{type(model).__name__} reads images: open it with the image store of its renderer")
        return VisionLM(model, dtype, trainable, images, checkpointing=checkpointing)
    reason = "asked for" if path == "generic" else FastLlama.unsupported(model)
    if reason is None:
        fast = FastLlama(model, dtype, trainable, checkpointing=checkpointing)
        gap = None if model.device.type in PROVEN else agrees(fast, model)
        if gap is None:
            return fast
        del fast  # frees its copies before the generic path makes its own
        logger.warning("%s: the fast path is not used, as %s; the generic path is", type(model).__name__, gap)
    else:
        logger.info("%s: the generic path (%s)", type(model).__name__, reason)
    return GenericLM(model, dtype, trainable, checkpointing=checkpointing)


def open_frozen(
    model: PreTrainedModel, dtype: torch.dtype, *, path: Engine = "auto", images: ImageStore | None = None
) -> LanguageModel:
    """The model as it is now, in one copy in `dtype` that no later update of `model` reaches: the reference."""
    if path == "auto" and FastLlama.unsupported(model) is None:
        return FastLlama(model, dtype, trainable=False).freeze()
    # The generic path copies only where it converts.
    converts = base_dtype(model) != dtype
    return open_lm(model if converts else frozen_copy(model), dtype, trainable=False, path=path, images=images)


def open_reference(
    policy: LanguageModel, model: PreTrainedModel, dtype: torch.dtype, *, path: Engine = "auto"
) -> LanguageModel:
    """The frozen start that a policy is compared with, on the policy's own engine.

    model: what the policy computes, or another model. Where it has adapters, the reference is the policy without them
    and takes no memory; else it is a frozen copy. Raises ValueError where another model can't run on that engine.
    """
    if has_adapters(model):
        return cast(Adapted, policy).without_adapters()
    if isinstance(policy, VisionLM):
        if not is_vision_model(model):
            raise ValueError("model.reference reads text only, and the policy reads images: take another reference")
        return open_frozen(model, dtype, images=policy.images)
    if isinstance(policy, GenericLM):
        path = "generic"
    elif reason := FastLlama.unsupported(model):
        raise ValueError(f"model.reference can't run on the policy's engine ({reason}): set model.engine=generic")
    return open_frozen(model, dtype, path=path)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that no update can reach: own storage, eval mode, no gradients. Tied weights stay tied."""
    frozen = copy.deepcopy(model).eval()
    frozen.requires_grad_(False)
    return frozen
