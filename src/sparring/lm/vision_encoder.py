"""Images through a vision tower, each no more often than it must be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparring.images import ByteLRU, ImageStore, Patches

Features = tuple[Tensor, ...]
"""One image as the language model reads it: [tokens, D] in place of its embeddings, then (Qwen3-VL's DeepStack) one
[tokens, D] for each of the first layers, added to their outputs."""


def runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The images of a prompt in order: handle and number of tokens.

    >>> list(runs((1, -7, -7, 2, -9)))
    [(-7, 2), (-9, 1)]
    """
    for token, group in groupby(ids):
        if token < 0:
            yield token, sum(1 for _ in group)


def learns(base_model: Any) -> bool:
    """Whether tower or projector has a trained parameter."""
    return any(parameter.requires_grad for parameter in base_model.visual.parameters())


class VisionEncoder:
    """The tower and projector of one model.

    Where a gradient is to reach them, an image is encoded once a call. Else features are kept, up to `keep_bytes`, and
    shared until `forget`.

    encode_patches bounds the patches of one pass without gradient.
    """

    def __init__(
        self, module: PreTrainedModel, images: ImageStore, *, keep_bytes: int, encode_patches: int = 2**15
    ) -> None:
        self._model: Any = module.base_model
        self._images = images
        self._encode_patches = encode_patches
        self._kept: ByteLRU[int, Features] = ByteLRU(keep_bytes, lambda made: sum(part.nbytes for part in made))
        vision = module.config.vision_config
        processor = images.processor
        mine = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        theirs = (processor.patch_size, processor.temporal_patch_size, processor.merge_size)
        if mine != theirs:
            raise ValueError(
                f"the image processor makes patches of {theirs} (side, time, merged), the model reads {mine}: "
                "take the image processor that belongs to the model"
            )

    def encode(self, handles: Iterable[int]) -> dict[int, Features]:
        """Every image's features, each encoded at most once."""
        wanted = list(dict.fromkeys(handles))
        if torch.is_grad_enabled() and learns(self._model):
            return dict(zip(wanted, self.together(self.patches(wanted)), strict=True))
        found = {handle: self._kept.get(handle) for handle in wanted}
        with torch.no_grad():
            for batch in self._batches([handle for handle, kept in found.items() if kept is None]):
                made = self.together(self.patches(batch))
                for handle, features in zip(batch, made, strict=True):
                    found[handle] = features
                    self._kept.put(handle, features)
        return {handle: features for handle, features in found.items() if features is not None}

    def together(self, patches: Sequence[Patches]) -> list[Features]:
        """Features of images in one pass; none of none."""
        if not patches:
            return []
        visual: Any = self._model.visual
        device = next(visual.parameters()).device
        pixels_ND = torch.cat([each.pixel_values for each in patches]).to(device)
        grids = torch.tensor([each.grid_thw for each in patches], device=device)
        out = self._model.get_image_features(pixels_ND, grids, return_dict=True)
        parts = [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]
        # Split views would keep the whole batch in memory as long as one image of it is kept.
        return [tuple(part[i].clone() if len(patches) > 1 else part[i] for part in parts) for i in range(len(patches))]

    def blank(self) -> Patches:
        """The smallest image, all grey."""
        side = self._images.processor.merge_size
        patch = self._images.processor.patch_size**2 * self._images.processor.temporal_patch_size * 3
        return Patches(torch.zeros(side**2, patch), (1, side, side))

    def patches(self, handles: Iterable[int]) -> list[Patches]:
        """What the tower reads of each image."""
        return [self._images.patches(handle) for handle in handles]

    def grids(self, rows: Iterable[Sequence[int]]) -> Tensor | None:
        """Patches in time, height and width of every image of prompts [images, 3]; None where there are none.

        Raises ValueError where a prompt has another number of tokens for an image than the image takes.
        """
        grids: list[tuple[int, int, int]] = []
        for ids in rows:
            for handle, tokens in runs(ids):
                if tokens != self._images.tokens(handle):
                    raise ValueError(
                        f"a prompt has {tokens} tokens in a row for the image {handle}, which takes "
                        f"{self._images.tokens(handle)}: render it with this model's image processor"
                    )
                grids.append(self._images.grid(handle))
        return torch.tensor(grids) if grids else None

    def forget(self) -> None:
        """Let go of what was encoded: the weights have changed."""
        self._kept.clear()

    def _batches(self, handles: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        held = 0
        for handle in handles:
            _, height, width = self._images.grid(handle)
            if batch and held + height * width > self._encode_patches:
                yield batch
                batch, held = [], 0
            batch.append(handle)
            held += height * width
        if batch:
            yield batch
