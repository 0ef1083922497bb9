"""Preference reward: a reward model scores the chat that an answer ends.

Source: Language Self-Play, arXiv 2509.07414: R(q, a) from Skywork-Reward-V2-Llama-3.2-3B. Any sequence classifier with
one label will do. Its own chat template writes the conversation, and its score is read where transformers reads it for
that conversation alone. Scores are logits on no fixed scale: see `scale.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparring.types import Message

Conversation = Sequence[Message]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Conversations as ids: each text once, and for each conversation its place in `ids` (None: over-long)."""

    ids: tuple[Ids, ...]
    places: tuple[int | None, ...]

    def spread(self, scores: Sequence[float]) -> list[float | None]:
        """One score a row → one a conversation, in the order given."""
        assert len(scores) == len(self.ids)
        return [None if place is None else scores[place] for place in self.places]


class Reader:
    """Conversations to ids by a reward model's own chat template; over-long ones are counted, not cut.

    Args:
        tokenizer: the reward model's, with its chat template.
        longest: most tokens that the model takes; None: no bound.
        template_kwargs: passed to the chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        longest: int | None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template_kwargs = dict(template_kwargs or {})
        self._longest = longest
        self._read = self._over_long = 0

    def rows(self, conversations: Sequence[Conversation]) -> Rows:
        """Encode, each text once."""
        places: dict[Ids, int] = {}
        found: list[int | None] = []
        for conversation in conversations:
            ids = self._encode(conversation)
            fits = self._longest is None or len(ids) <= self._longest
            found.append(places.setdefault(ids, len(places)) if fits else None)
        self._read += len(found)
        self._over_long += sum(place is None for place in found)
        return Rows(tuple(places), tuple(found))

    def drain(self) -> dict[str, float]:
        """The share of over-long conversations since the last call; empty where there were none to read."""
        share = {"over_long": self._over_long / self._read} if self._read else {}
        self._read = self._over_long = 0
        return share

    def _encode(self, conversation: Conversation) -> Ids:
        # In one go: encoding the template's text would add a second bos where the template writes one.
        ids = self._tokenizer.apply_chat_template(
            [dict(message) for message in conversation],
            tokenize=True,
            add_generation_prompt=False,
            return_dict=False,
            **self._template_kwargs,
        )
        return tuple(int(token) for token in cast(list[int], ids))


class PreferenceModel:
    """A reward model, loaded here: float32 scores (logits), None for a conversation that is over-long.

    Args:
        model: a sequence classifier with one label.
        tokenizer: its tokenizer, with its chat template.
        token_budget: most padded tokens (rows times longest) of one forward pass; a longer row goes alone.
        max_tokens: a longer conversation is not scored; None: the model's max_position_embeddings.
        template_kwargs: passed to the chat template.

    Raises:
        ValueError: the model has not exactly one label, or a bound is below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        token_budget: int = 16384,
        max_tokens: int | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if model.config.num_labels != 1:
            raise ValueError(
                f"{model.config.name_or_path or type(model).__name__} has {model.config.num_labels} labels; "
                "game.reward.model takes a sequence-classification model with one (num_labels=1), its score"
            )
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {token_budget}")
        self._model = model.eval()
        self._config: Any = model.config.get_text_config()
        _score_in_float32(model)
        self._config.use_cache = False  # a classifier's forward has no argument for it that all families know
        self._reader = Reader(
            tokenizer, bound(max_tokens, getattr(self._config, "max_position_embeddings", None)), template_kwargs
        )
        self._token_budget = token_budget

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
        revision: str | None = None,
        token_budget: int = 16384,
        max_tokens: int | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """From a folder or hub id, as `sparring.lm.load` checks them."""
        from sparring.lm.load import load_reward_model, load_tokenizer

        model = load_reward_model(path, device=device, dtype=dtype, attention=attention, revision=revision)
        tokenizer = load_tokenizer(path, revision=revision)
        return cls(model, tokenizer, token_budget=token_budget, max_tokens=max_tokens, template_kwargs=template_kwargs)

    def __call__(
        self, queries: Sequence[str], answers: Sequence[str], conversations: Sequence[Conversation]
    ) -> list[float | None]:
        """A score a conversation; queries and answers are in the conversations already."""
        rows = self._reader.rows(conversations)
        scores = [0.0] * len(rows.ids)
        for batch in _batches(rows.ids, self._token_budget):
            for index, score in zip(batch, self._forward([rows.ids[index] for index in batch]), strict=True):
                scores[index] = score
        return rows.spread(scores)

    def drain(self) -> dict[str, float]:
        """`over_long`: the share of conversations not scored since the last call."""
        return self._reader.drain()

    def _forward(self, rows: Sequence[Ids]) -> list[float]:
        with torch.inference_mode(), self._padding(rows) as pad:
            ids_BT = torch.full((len(rows), max(map(len, rows))), pad)
            for b, row in enumerate(rows):
                ids_BT[b, : len(row)] = torch.tensor(row)
            length_B = torch.tensor([len(row) for row in rows])
            mask_BT = (torch.arange(ids_BT.shape[1]) < length_B[:, None]).long()
            device = self._model.device
            output = self._model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device))
            return output.logits.flatten().tolist()

    @contextmanager
    def _padding(self, rows: Sequence[Ids]) -> Iterator[int]:
        """The id to pad these rows with, and the model's config set to it for the time of the forward pass.

        transformers scores at the last token that is not config.pad_token_id, in a batch as for one row alone, so a
        model that has such an id is padded with that and no other. A model without one scores at the last token:
        there any id does that ends none of these rows. Its tokenizer's pad token may not: it often is the
        end-of-sequence token, and each conversation's own would pass for padding.
        """
        own = self._config.pad_token_id
        last = {row[-1] for row in rows}
        pad = next(token for token in count() if token not in last) if own is None else own
        self._config.pad_token_id = pad
        try:
            yield pad
        finally:
            self._config.pad_token_id = own


def _score_in_float32(model: PreTrainedModel) -> None:
    """The last product in float32 under a bfloat16 model: rounded there, a score of 20 is a multiple of 1/8, and
    answers that differ tie."""
    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear) and head.weight.dtype != torch.float32:
        head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def bound(*most: int | None) -> int | None:
    """The smallest of several bounds, None being none.

    >>> bound(4096, None, 131072)
    4096

    Raises:
        ValueError: one is below 1.
    """
    known = [value for value in most if value is not None]
    if known and min(known) < 1:
        raise ValueError(f"max_tokens must be at least 1, not {min(known)}")
    return min(known, default=None)


def _batches(rows: Sequence[Ids], token_budget: int) -> Iterator[list[int]]:
    """Places of rows of like length, longest first: rows times longest within the budget."""
    held: list[int] = []
    for place in sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True):
        if held and len(rows[held[0]]) * (len(held) + 1) > token_budget:
            yield held
            held = []
        held.append(place)
    if held:
        yield held
