"""The untrained model, its image processor and its prompts."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sparring.pictures.tokenizer import END, IMAGE, NEVER_WRITTEN, PAD, VIDEO, VISION_END, VISION_START
from sparring.pictures.world import CELL_PIXELS, PICTURE_PIXELS

IMAGE_TOKENS = (PICTURE_PIXELS // CELL_PIXELS) ** 2
PATCH = CELL_PIXELS // 2


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """One merged token a cell; every picture is brought to 84 by 84 pixels."""
    pixels = PICTURE_PIXELS**2
    return Qwen2VLImageProcessorPil(size={"shortest_edge": pixels, "longest_edge": pixels})


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model, fp32; what it must never write is kept from it in its generation config."""
    torch.manual_seed(seed)
    vocabulary = tokenizer.get_vocab()
    special = {token: vocabulary[token] for token in (PAD, END, *NEVER_WRITTEN)}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": special[END],
            "pad_token_id": special[PAD],
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": PATCH,
            "fullatt_block_indexes": [0],
        },
        image_token_id=special[IMAGE],
        video_token_id=special[VIDEO],
        vision_start_token_id=special[VISION_START],
        vision_end_token_id=special[VISION_END],
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    assert model.generation_config is not None
    model.generation_config.update(
        eos_token_id=special[END],
        pad_token_id=special[PAD],
        suppress_tokens=sorted(special[token] for token in NEVER_WRITTEN),
    )
    return model


def expand(prompt: str) -> str:
    """A rendered prompt with its image placeholders expanded to the model's number of tokens."""
    return prompt.replace(IMAGE, IMAGE * IMAGE_TOKENS)


def patches(pixels_BYXC: np.ndarray) -> torch.Tensor:
    """What the image processor makes of pictures of 84 by 84 pixels, all at once: [36 B, 1176] float32."""
    processor = build_image_processor()
    mean, std = (np.array(values, np.float32) for values in (processor.image_mean, processor.image_std))
    scaled = ((pixels_BYXC.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    pairs = PICTURE_PIXELS // CELL_PIXELS
    cut = scaled.reshape(-1, 3, pairs, 2, PATCH, pairs, 2, PATCH).transpose(0, 2, 5, 3, 6, 1, 4, 7)
    doubled = np.repeat(cut[:, :, :, :, :, :, None], 2, axis=6)  # a still picture fills both frames of a patch
    return torch.from_numpy(doubled.reshape(-1, 3 * 2 * PATCH * PATCH))


def grids(pictures: int) -> torch.Tensor:
    """The patches of each picture in time, height and width: [B, 3]."""
    side = PICTURE_PIXELS // PATCH
    return torch.tensor([[1, side, side]]).repeat(pictures, 1)
