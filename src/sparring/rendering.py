"""Messages to ids and back: the only tokenisation in the project."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sparring.images import ImageStore, Picture
from sparring.types import Message

OPEN, CLOSE = "<think>", "</think>"
IMAGE, VISION = "<|image_pad|>", ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
_TAIL = 16  # tokens at a prompt's end that can hold an open tag, even letter by letter, and the blank after it


class Renderer:
    """The tokenizer's own chat template, applied the same way for sampling and training.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        template_kwargs: passed to the chat template (enable_thinking=False, say).
        images: keeps the pictures of prompts and knows how many tokens each takes; None: prompts are text.

    In a prompt's ids each token of an image is the image's handle, a negative int.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any] | None = None,
        images: ImageStore | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        self.images = images
        # Games ask the same prompts again and again (the Challenger's above all).
        self._encode = lru_cache(maxsize=4096)(self._encode_uncached)
        self._decode = lru_cache(maxsize=4096)(self._decode_uncached)
        self._ends_open = lru_cache(maxsize=4096)(self._ends_open_uncached)
        self._open, self._close = self._token(OPEN), self._token(CLOSE)
        self._image = None if images is None else self._token(IMAGE)
        if images is not None and self._image is None:
            raise ValueError(f"the tokenizer has no {IMAGE} token: take the one that belongs to the vision model")

    def encode(self, messages: Sequence[Message], *, ended: bool = False) -> tuple[int, ...]:
        """Prompt ids up to where the model speaks. ended: as they stand, with nothing opened for a reply."""
        return self._encode(json.dumps([dict(message) for message in messages], default=self._kept), ended)

    def write(self, text: str) -> tuple[int, ...]:
        """Ids of a text that goes on a prompt, without special tokens of the tokenizer's own."""
        written = text if self.images is None else _apart(text)
        return tuple(self.tokenizer.encode(written, add_special_tokens=False))

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
        opened = self._ends_open(tuple(token for token in prompt_ids[-_TAIL:] if token >= 0))
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

    def _encode_uncached(self, messages: str, ended: bool) -> tuple[int, ...]:
        written: list[dict[str, Any]] = json.loads(messages)
        handles = _handles(written)
        try:
            ids = self.tokenizer.apply_chat_template(
                written if self.images is None else [_spelt_apart(message) for message in written],
                tokenize=True,
                add_generation_prompt=not ended,
                return_dict=False,
                **self.template_kwargs,
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"the chat template can't write this prompt ({type(error).__name__}: {error}): {messages[:200]}; "
                "look at model.chat_template, model.template_kwargs and roles it doesn't know (game.<role>.system)"
            ) from error
        found = tuple(int(token) for token in cast(list[int], ids))
        return self._expanded(found, handles) if handles else found

    def _expanded(self, ids: tuple[int, ...], handles: Sequence[int]) -> tuple[int, ...]:
        """Each image's placeholder as its handle, once for every token of the image."""
        assert self.images is not None
        if ids.count(cast(int, self._image)) != len(handles):
            raise ValueError(
                f"the chat template writes {ids.count(cast(int, self._image))} image placeholders for {len(handles)} "
                "images: take the template that belongs to the vision model (model.chat_template)"
            )
        waiting = iter(handles)
        expanded: list[int] = []
        for token in ids:
            if token == self._image:
                handle = next(waiting)
                expanded += [handle] * self.images.tokens(handle)
            else:
                expanded.append(token)
        return tuple(expanded)

    def _kept(self, picture: object) -> int:
        """A picture's handle, which stands for it; the store keeps the picture."""
        if not isinstance(picture, Picture):
            raise TypeError(f"a message holds a {type(picture).__name__}; images must be sparring.images.Picture")
        if self.images is None:
            raise ValueError(
                f"the prompt shows a picture ({picture.name}), and the model reads text only: choose a vision model"
            )
        return self.images.add(picture)[0]


def _handles(messages: Sequence[Message]) -> list[int]:
    """The images of messages, in order."""
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [part["image"] for part in parts if part["type"] == "image"]


def _spelt_apart(message: Message) -> dict[str, Any]:
    """A message whose text spells no vision token."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": _apart(content)}
    parts = [{**part, "text": _apart(part["text"])} if part["type"] == "text" else part for part in content]
    return {**message, "content": parts}


def _apart(text: str) -> str:
    """Vision tokens that a text spells, written apart: the tokenizer would read them, and no image belongs to them."""
    for token in VISION:
        text = text.replace(token, f"{token[:2]} {token[2:-2]} {token[-2:]}")
    return text
