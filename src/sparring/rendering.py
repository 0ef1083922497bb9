"""Messages to ids and back: the only tokenisation in the project."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparring.types import Message


class PromptTooLongError(ValueError):
    """A prompt leaves no room for a completion in the model's context."""


class Renderer:
    """The tokenizer's own chat template, applied the same way for sampling and training.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        max_prompt_tokens: longest prompt allowed; None for no limit.
        template_kwargs: passed to the chat template (enable_thinking=False, say).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.template_kwargs = dict(template_kwargs or {})
        # Games ask the same prompts again and again (the Challenger's above all).
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt ids up to where the model speaks.

        Raises:
            PromptTooLongError: longer than max_prompt_tokens.
        """
        return self._encode(json.dumps([dict(message) for message in messages]))

    def decode(self, ids: Sequence[int]) -> str:
        """A completion's text without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _encode_uncached(self, messages: str) -> tuple[int, ...]:
        ids = self.tokenizer.apply_chat_template(
            json.loads(messages),
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
            **self.template_kwargs,
        )
        if self.max_prompt_tokens is not None and len(ids) > self.max_prompt_tokens:
            raise PromptTooLongError(
                f"a prompt has {len(ids)} tokens, more than the {self.max_prompt_tokens} that the model's context "
                "leaves beside max_new_tokens: shorten the prompt or lower max_new_tokens"
            )
        return tuple(int(token) for token in ids)
