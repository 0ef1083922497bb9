"""Messages to ids and back: the only tokenisation in the project."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from sparring.types import Message


class Renderer:
    """The tokenizer's own chat template, applied the same way for sampling and training.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        template_kwargs: passed to the chat template (enable_thinking=False, say).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        # Games ask the same prompts again and again (the Challenger's above all).
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)
        self._decode = lru_cache(maxsize=4096)(self._decode_uncached)

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt ids up to where the model speaks."""
        return self._encode(json.dumps([dict(message) for message in messages]))

    def decode(self, ids: Sequence[int]) -> str:
        """A completion's text without special tokens."""
        return self._decode(tuple(ids))

    def _decode_uncached(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _encode_uncached(self, messages: str) -> tuple[int, ...]:
        ids = self.tokenizer.apply_chat_template(
            json.loads(messages),
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
            **self.template_kwargs,
        )
        return tuple(int(token) for token in cast(list[int], ids))
