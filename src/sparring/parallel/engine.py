"""A model sharded over the ranks as a `LanguageModel`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparring.lm.generic import GenericLM
from sparring.lm.probe import check_cache, has_plain_head
from sparring.parallel.sharding import ShardedModel, gathered, is_sharded_model, let_go


class ShardedLM(GenericLM):
    """The general engine over a model that has been sharded in place (`parallel.sharding.shard`).

    The shards are the masters: there are no copies. `score` is a meeting of all ranks, and one forward pass however
    many rows it has, so that ranks which score equally often pass equally often. `generate` needs the weights put
    together before: `gathered` does it.
    """

    def __init__(
        self, model: ShardedModel, dtype: torch.dtype, trainable: bool, *, checkpointing: bool = False
    ) -> None:
        super().__init__(model, dtype, trainable, checkpointing=checkpointing, score_tokens=sys.maxsize)

    def gathered(self) -> AbstractContextManager[None]:
        """The weights put together: in here `generate` needs no other rank. To enter is a meeting."""
        return gathered(self._sharded)

    def refresh(self) -> None:
        """Let go of what was put together of the weights before the optimiser's step."""
        let_go(self._sharded)

    @property
    def _sharded(self) -> ShardedModel:
        assert is_sharded_model(self._module)
        return self._module

    def _computing(self, model: PreTrainedModel, dtype: torch.dtype, trainable: bool) -> PreTrainedModel:
        return model

    def _probe(self) -> bool:
        with self.gathered():
            check_cache(self._module)
            return has_plain_head(self._module)

    def _hidden(self, ids_BT: Tensor) -> Tensor:
        """By way of the whole model, whose forward puts its weights together, and leaves the head's so."""
        head = self._module.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        with _passing(head):
            hidden_BTD = self._module(input_ids=ids_BT, use_cache=False).logits
        return hidden_BTD.to(head.weight.dtype)


@contextmanager
def _passing(head: nn.Module) -> Iterator[None]:
    """The head gives what it is given, in storage of its own."""
    head.forward = torch.clone
    try:
        yield
    finally:
        del head.forward
