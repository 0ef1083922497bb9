"""Tiny random Qwen2.5-VL and Qwen3-VL that look like the real ones: tokenizer, template, image processor, folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sparring.images import ImageStore, Picture
from sparring.lm.load import save_model
from sparring.lm.vision_files import Processor
from tiny_models import chat_tokenizer

VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

# The shape of Qwen2.5-VL's: a content is a text or a list of parts.
VISION_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


@cache
def _vision_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in VISION], special_tokens=True)
    tokenizer.chat_template = VISION_TEMPLATE
    return tokenizer


def vision_tokenizer() -> PreTrainedTokenizerFast:
    """The qwen3 tokenizer with vision tokens and a chat template that knows images. Shared: don't change it."""
    return _vision_tokenizer()


def image_processor(patch_size: int = 4, **config: Any) -> Qwen2VLImageProcessorPil:
    """Patches of 4 pixels, merged 2 by 2: a token for 8 x 8 pixels; from 1 to 64 tokens an image."""
    return Qwen2VLImageProcessorPil(
        **{"patch_size": patch_size, "min_pixels": 64, "max_pixels": 64 * 64, **config},
    )


def tiny_store(**config: Any) -> ImageStore:
    """The store of a tiny model's images."""
    return ImageStore(image_processor(**config))


def _config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in VISION}
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
}
_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}


def tiny_qwen25vl(seed: int = 0, **text: Any) -> Qwen2_5_VLForConditionalGeneration:
    """A random Qwen2.5-VL in eval mode: windows of 4 x 4 patches in one layer of its tower, all in the other."""
    tokenizer = vision_tokenizer()
    text = {**_TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **text}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    vision = {**_VISION, "window_size": 16, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_config(tokenizer))
    return _spread(Qwen2_5_VLForConditionalGeneration, config, seed)


def tiny_qwen3vl(seed: int = 0, **text: Any) -> Qwen3VLForConditionalGeneration:
    """A random Qwen3-VL in eval mode: what its tower's first layer sees goes in after the first text layer."""
    tokenizer = vision_tokenizer()
    text = {**_TEXT, "vocab_size": len(tokenizer), "head_dim": 16, **text}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    vision = {**_VISION, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_config(tokenizer))
    return _spread(Qwen3VLForConditionalGeneration, config, seed)


def _spread(kind: Any, config: Any, seed: int) -> Any:
    """Weights large enough that logits differ, and that images matter."""
    torch.manual_seed(seed)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def save_tiny_qwen25vl(folder: Path, seed: int = 0, **text: Any) -> Path:
    """A random Qwen2.5-VL with tokenizer and image processor, in a folder."""
    save_model(tiny_qwen25vl(seed, **text), Processor(vision_tokenizer(), image_processor()), folder)
    return folder


def save_tiny_qwen3vl(folder: Path, seed: int = 0, **text: Any) -> Path:
    """A random Qwen3-VL with tokenizer and image processor, in a folder."""
    save_model(tiny_qwen3vl(seed, **text), Processor(vision_tokenizer(), image_processor()), folder)
    return folder


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Picture:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture.open(Image.fromarray(pixels), name=f"{width}x{height} of seed {seed}")
