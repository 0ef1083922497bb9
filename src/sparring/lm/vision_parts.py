"""The parts of a vision language model: what they are called, which of them learn, which tokens stand for images.

Tower (the vision transformer), projector (the mergers that turn patches into tokens) and language model.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sparring.lm.hub import VISION_FAMILIES
from sparring.lm.lora import LoraSettings

TOWER, LANGUAGE = "model.visual", "model.language_model"
_PROJECTORS = (f"{TOWER}.merger.", f"{TOWER}.deepstack_merger_list.")


def is_vision_model(model: PreTrainedModel) -> bool:
    """Whether a model reads images, and is of a family that `lm.vision.VisionLM` runs."""
    return model.config.model_type in VISION_FAMILIES


def freeze_vision(model: PreTrainedModel, *, tower: bool, projector: bool) -> None:
    """Freeze or train a vision model's tower and projector; the language model is as it was.

    Call it before the model is opened.
    """
    for name, parameter in model.named_parameters():
        if name.startswith(_PROJECTORS):
            parameter.requires_grad_(not projector)
        elif name.startswith(f"{TOWER}."):
            parameter.requires_grad_(not tower)


def language_lora(model: PreTrainedModel, settings: LoraSettings) -> LoraSettings:
    """The same settings, for the language model alone: every target by its full name.

    Raises ValueError for targets that name no linear layer of the language model.
    """
    linears = [
        name
        for name, module in model.named_modules()
        if name.startswith(f"{LANGUAGE}.") and isinstance(module, nn.Linear)
    ]
    found = {target: [n for n in linears if n == target or n.endswith(f".{target}")] for target in settings.targets}
    if unknown := sorted(target for target, names in found.items() if not names):
        there = sorted({name.rpartition(".")[2] for name in linears})
        raise ValueError(
            f"model.lora.targets: no linear layer of the language model is called {', '.join(unknown)}; "
            f"it has {', '.join(there)}"
        )
    chosen = {name for names in found.values() for name in names} if settings.targets else set(linears)
    return replace(settings, targets=tuple(name for name in linears if name in chosen))


def own_name(name: str) -> str:
    """The name in the model of a tensor in a file. Files of Qwen2.5-VL have names from before transformers 5.

    >>> [own_name(name) for name in ("visual.pos_embed.weight", "model.norm.weight", "lm_head.weight")]
    ['model.visual.pos_embed.weight', 'model.language_model.norm.weight', 'lm_head.weight']
    >>> own_name("model.language_model.norm.weight")
    'model.language_model.norm.weight'
    """
    if name.startswith("visual."):
        return f"model.{name}"
    return re.sub(r"^model\.(?!language_model\.|visual\.)", f"{LANGUAGE}.", name)


def vision_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that stand for images and videos or their bounds: no model is to write them."""
    config: Any = model.config
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return tuple(sorted({int(getattr(config, name)) for name in names}))
