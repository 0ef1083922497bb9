"""Keys and values of prompts, computed once and read by every completion, with gradients.

transformers' own caches grow in place, so a layer that is computed again in the backward pass (checkpointing) would
find in them what it wrote the first time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PromptCache(Cache):
    """Takes down the keys and values of a pass over prompts; the pass reads nothing but itself."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_Written() for _ in range(layers)])

    def continued(self, source_R: Tensor) -> Cache:
        """What rows R read that continue these prompts: source_R [R] is each row's prompt."""
        written = [layer for layer in self.layers if isinstance(layer, _Written)]
        return Cache(layers=[_Read(_filled(layer.keys), _filled(layer.values), source_R) for layer in written])


class _Written(DynamicLayer):
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0


class _Read(DynamicLayer):
    def __init__(self, keys: Tensor, values: Tensor, source_R: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self._source_R = keys, values, source_R

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        both = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([_filled(old).index_select(0, self._source_R), new], -2) for old, new in both)
        return keys, values

    def get_seq_length(self) -> int:
        return _filled(self.keys).shape[-2]


def _filled(states: Tensor | None) -> Tensor:
    assert states is not None
    return states


class ShiftedCache(Cache):
    """A cache that grows as answers are written, and knows how far each row's positions are from its token count.

    shift_B [B]: an image takes fewer positions than tokens.
    """

    def __init__(self, layers: int, shift_B: Tensor) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(layers)])
        self.shift_B = shift_B

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """The rows that go on."""
        super().reorder_cache(beam_idx)
        self.shift_B = self.shift_B[beam_idx]
