"""A vision model sharded over the ranks as a `LanguageModel`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparring.images import ImageStore
from sparring.lm.vision import VisionLM
from sparring.parallel.engine import ShardedLM
from sparring.parallel.sharding import ShardedModel


class ShardedVisionLM(VisionLM, ShardedLM):
    """The vision engine over a model that has been sharded in place (`parallel.sharding.shard`); see `ShardedLM`.

    Every scoring pass of every rank goes through the tower once, whether its prompts have images or not.
    """

    def __init__(
        self,
        model: ShardedModel,
        dtype: torch.dtype,
        trainable: bool,
        images: ImageStore,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(model, dtype, trainable, images, checkpointing=checkpointing, lockstep=True)

    def _pass(self, work: Callable[[], Tensor]) -> Tensor:
        """As the whole model's forward, which puts its weights together, and leaves the head's so."""
        self._module.forward = work
        try:
            return self._module()
        finally:
            del self._module.forward
