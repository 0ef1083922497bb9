"""Messages to ids and back: the only tokenisation in the project."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sparring.types import Message

OPEN, CLOSE = "<think>", "</think>"
_TAIL = 16  # tokens at a prompt's end that can hold an open tag, even letter by letter, and the blank after it


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
        self._ends_open = lru_cache(maxsize=4096)(self._ends_open_uncached)
        self._open, self._close = self._token(OPEN), self._token(CLOSE)

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt ids up to where the model speaks."""
        return self._encode(json.dumps([dict(message) for message in messages]))

    def decode(self, ids: Sequence[int]) -> str:
        """A completion's text without special tokens."""
        return self._decode(tuple(ids))

    def read(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> tuple[str | None, str]:
        """A completion's thought (None: the model did not think) and the text that it says to the reader.

        The model thinks where its prompt ends in an open <think>, as some templates write it, or its completion begins
        with one. A tag anywhere else is part of an ordinary answer. A thought ends at the first </think>, so that an
        answer may quote the tag; one that is never closed, cut off at max_new_tokens, leaves the text empty. Where the
        vocabulary has both tags, only those tokens count, not the same letters written out.
        """
        ids = tuple(completion_ids)
        opened = self._ends_open(tuple(prompt_ids[-_TAIL:]))
        head, answer, begun = self._by_text(ids) if self._open is None or self._close is None else self._by_token(ids)
        if not (opened or begun):
            return None, self.decode(ids)
        return head.strip() or None, answer.lstrip()

    def _by_token(self, ids: tuple[int, ...]) -> tuple[str, str, bool]:
        """What is before the first </think>, without an opening tag; what is after it; whether there was an opening."""
        end = ids.index(self._close) if self._close in ids else len(ids)
        answer = self.decode(ids[end + 1 :])
        if self._open in ids[:end]:
            start = ids.index(self._open)
            if not self.decode(ids[:start]).strip():
                return self.decode(ids[start + 1 : end]), answer, True
        return self.decode(ids[:end]), answer, False

    def _by_text(self, ids: tuple[int, ...]) -> tuple[str, str, bool]:
        """The same by letters."""
        head, _, answer = self.decode(ids).partition(CLOSE)
        bare = head.lstrip()
        return bare.removeprefix(OPEN), answer, bare.startswith(OPEN)

    def _ends_open_uncached(self, tail: tuple[int, ...]) -> bool:
        text = str(self.tokenizer.decode(list(tail), skip_special_tokens=False))
        return text.rstrip().endswith(OPEN)

    def _token(self, tag: str) -> int | None:
        """The tag's own id; None where the vocabulary has none."""
        found = cast(int | None, self.tokenizer.convert_tokens_to_ids(tag))
        return None if found == self.tokenizer.unk_token_id else found

    def _decode_uncached(self, ids: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _encode_uncached(self, messages: str) -> tuple[int, ...]:
        try:
            ids = self.tokenizer.apply_chat_template(
                json.loads(messages),
                tokenize=True,
                add_generation_prompt=True,
                return_dict=False,
                **self.template_kwargs,
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"the chat template can't write this prompt ({type(error).__name__}: {error}): {messages[:200]}; "
                "look at model.chat_template, model.template_kwargs and roles it doesn't know (game.<role>.system)"
            ) from error
        return tuple(int(token) for token in cast(list[int], ids))
