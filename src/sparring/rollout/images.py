"""Prompts that show images, as vLLM takes them: one placeholder token an image, and the image beside the ids.

vLLM puts as many placeholders there as its own image processor says. It is given images that are resized already, and
bounds by which it resizes no more; the prompt that it made of them comes back with the completions and is compared.
So sampler and trainer read the same pixels at the same places, or the run stops.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from sparring.images import ImageStore
from sparring.lm.base import SamplingParams
from sparring.lm.vision_encoder import runs


@dataclass(frozen=True)
class PromptImages:
    """How the images of a run's prompts are told to an engine.

    store: holds them. placeholder: the id that stands for an image in the model's own prompts. never: ids that no
    completion may have (image and video tokens and their bounds), as `lm.vision.VisionLM` never draws them.
    """

    store: ImageStore
    placeholder: int
    never: tuple[int, ...]

    @property
    def pixels(self) -> dict[str, int]:
        """vLLM's mm_processor_kwargs: bounds within which every resized image is, so that it stays as it is."""
        return {"min_pixels": self.store.min_pixels, "max_pixels": self.store.max_pixels}

    def params(self, params: SamplingParams) -> SamplingParams:
        """The same, with the tokens that stand for images banned."""
        return replace(params, banned_ids=tuple(dict.fromkeys((*params.banned_ids, *self.never))))

    def unexpanded(self, ids: Sequence[int]) -> list[int]:
        """A prompt with one placeholder an image."""
        parts = ([self.placeholder] if token < 0 else list(group) for token, group in groupby(ids))
        return list(chain.from_iterable(parts))

    def expanded(self, ids: Sequence[int]) -> list[int]:
        """A prompt as vLLM must make it: a placeholder for every token of an image."""
        return [self.placeholder if token < 0 else token for token in ids]

    def in_process(self, ids: Sequence[int]) -> dict[str, Any]:
        """vLLM's TokensPrompt."""
        handles = shown(ids)
        return {
            "prompt_token_ids": self.unexpanded(ids),
            "multi_modal_data": {"image": [self._resized(handle) for handle in handles]},
            "multi_modal_uuids": {"image": [self._name(handle) for handle in handles]},
        }

    def over_http(self, ids: Sequence[int]) -> dict[str, Any]:
        """The prompt's part of a request to /inference/v1/generate."""
        parts = [
            {"type": "image_url", "url": _data_uri(self._resized(handle)), "uuid": self._name(handle)}
            for handle in shown(ids)
        ]
        return {"token_ids": self.unexpanded(ids), "content_parts": parts, "return_token_ids": True}

    def difference(self, ids: Sequence[int], theirs: Sequence[int] | None) -> str | None:
        """What is wrong with the prompt that vLLM made of this one; None: nothing."""
        mine = self.expanded(ids)
        if theirs is not None and list(theirs) == mine:
            return None
        return (
            f"of a prompt of {len(mine)} tokens with {len(shown(ids))} images it made "
            f"{'none that it tells' if theirs is None else f'one of {len(theirs)}'}: its image processor and the "
            f"run's differ; it needs --mm-processor-kwargs '{json.dumps(self.pixels)}'"
        )

    def _resized(self, handle: int) -> Image.Image:
        """The pixels that the trainer reads. Raises ValueError where vLLM would resize them once more."""
        image, low, high = self.store.resized(handle), self.store.min_pixels, self.store.max_pixels
        if smart_resize(image.height, image.width, self.store.factor, low, high) != (image.height, image.width):
            raise ValueError(
                f"an image of {image.width} x {image.height} pixels, as it is within model.vision.min_pixels={low} and "
                f"max_pixels={high}, would be resized again by vLLM: set the two further apart"
            )
        return image

    def _name(self, handle: int) -> str:
        """What vLLM's caches know an image by: its pixels before, and its patches after it was resized."""
        _, height, width = self.store.grid(handle)
        return f"{-handle:x}-{height}x{width}"


def shown(ids: Sequence[int]) -> list[int]:
    """The handles of a prompt's images, in order."""
    return [handle for handle, _ in runs(ids)] if min(ids, default=0) < 0 else []


def check_shown(model: str, most: int, prompts: Sequence[Sequence[int]]) -> None:
    """Raise ValueError where a prompt shows more images than the served model takes."""
    found = max((len(shown(ids)) for ids in prompts), default=0)
    if found > most:
        raise ValueError(
            f"a prompt shows {found} images, and {model} takes {most} a prompt: serve a vision model, with a larger "
            "--limit-mm-per-prompt (sparring serve-command says how)"
        )


def _data_uri(image: Image.Image) -> str:
    """Without loss, and quickly rather than small."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
