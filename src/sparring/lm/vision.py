"""Qwen2.5-VL and Qwen3-VL as a `LanguageModel`: prompts with images, on transformers' own modules.

A prompt's negative ids are images (see `images`). The tower encodes each image once; the language model reads what it
gives at the image's tokens, and at positions in time, height and width that transformers works out (`get_rope_index`).
Completions are text: their positions go on from the prompt's last, and so does the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sparring.images import ImageStore
from sparring.lm.base import Completion, LanguageModel, PromptGroup, SamplingParams, Scores
from sparring.lm.generic import GenericLM
from sparring.lm.lora import has_adapters
from sparring.lm.probe import checkpointed
from sparring.lm.rows import Row, right_padded
from sparring.lm.vision_cache import PromptCache, ShiftedCache
from sparring.lm.vision_encoder import Features, VisionEncoder, learns, runs
from sparring.lm.vision_parts import TOWER, is_vision_model, vision_tokens

Ids = tuple[int, ...]


class VisionLM(GenericLM):
    """A vision language model in compute precision `dtype`; the arguments are `GenericLM`'s and these.

    images: where the pixels of prompts are. feature_bytes: memory for encoded images that are kept while the weights
    that encoded them stand. lockstep: every scoring pass goes through the tower once, with all its images, or with a
    blank one that weighs nothing; ranks that share a sharded model must pass alike.

    A group's prompt is scored once: its keys and values are what every completion reads. Image tokens, video tokens and
    their bounds are never drawn. Raises ValueError as `GenericLM` does, for a model of another family, an image
    processor that isn't the model's, or adapters on the tower.
    """

    shares_prompts: bool = True

    def __init__(
        self,
        model: PreTrainedModel,
        dtype: torch.dtype,
        trainable: bool,
        images: ImageStore,
        *,
        checkpointing: bool = False,
        score_tokens: int = 2**14,
        generate_tokens: int = 2**18,
        feature_bytes: int = 2**30,
        lockstep: bool = False,
    ) -> None:
        if not is_vision_model(model):
            raise ValueError(f"{type(model).__name__} is no vision model that this engine runs")
        if has_adapters(model.get_submodule(TOWER)):
            raise ValueError("adapters are for the language model alone: take their targets from language_lora")
        super().__init__(model, dtype, trainable, checkpointing=checkpointing)
        assert self._plain_head, "transformers' Qwen-VL has a plain linear head"
        self._score_tokens = sys.maxsize if lockstep else score_tokens
        self._generate_tokens = generate_tokens
        self._lockstep = lockstep
        self.images = images
        self._never = vision_tokens(model)
        self._layers: int = model.config.get_text_config(decoder=True).num_hidden_layers
        self._encoder = VisionEncoder(self._module, images, keep_bytes=feature_bytes)

    def without_adapters(self) -> VisionLM:
        """The base under the adapters; see `GenericLM.without_adapters`. It shares the encoded images."""
        base = super().without_adapters()
        assert isinstance(base, VisionLM)
        return base

    def refresh(self) -> None:
        """Copy the masters into the compute copies."""
        super().refresh()
        if learns(self.master.base_model):
            self._encoder.forget()

    # Generation

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, uniforms: np.ndarray
    ) -> list[list[Completion]]:
        """n completions of every prompt; see `LanguageModel.generate`."""
        banned = tuple(dict.fromkeys((*params.banned_ids, *self._never)))
        return super().generate(prompts, n, replace(params, banned_ids=banned), uniforms)

    def _step(self, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """Logits at the last token [B, V], and the cache with these tokens added."""
        if cache is None:
            prompts = [tuple(ids[mask > 0].tolist()) for ids, mask in zip(ids_BT, mask_BT, strict=True)]
            features = self._encoder.encode(handle for ids in prompts for handle, _ in runs(ids))
            positions_3BT, shift_B = self._positions_of(ids_BT, mask_BT, prompts)
            cache = ShiftedCache(self._layers, shift_B)
            embedded = self._embedded(ids_BT, prompts, features)
        else:
            assert isinstance(cache, ShiftedCache)
            positions_3BT = (positions_BT + cache.shift_B.unsqueeze(1)).expand(3, -1, -1)
            embedded = _Embedded(self._embedding(ids_BT))
        hidden_BTD = self._read(embedded, mask_BT, positions_3BT, cache)
        return hidden_BTD[:, -1] @ self._head_weight.T, cache

    # Scoring

    def score(
        self,
        groups: Sequence[PromptGroup],
        *,
        temperature: float = 1.0,
        reference: LanguageModel | None = None,
        entropy: bool = False,
    ) -> Scores:
        """Log-probabilities of every completion token; see `LanguageModel.score`."""
        if reference is not None and not isinstance(reference, VisionLM):
            raise TypeError(f"a VisionLM needs a VisionLM as its reference, not {type(reference).__name__}")
        return super().score(groups, temperature=temperature, reference=reference, entropy=entropy)

    def _states(self, rows: Sequence[Row], plain: bool) -> Tensor:
        """Final hidden states [S, D] that predict each completion token, in row order."""
        assert plain
        for prompt, ids in rows:
            self._check_length(len(prompt), len(ids), "the completion's length")
        again = checkpointed(self._module) if self._checkpointing and torch.is_grad_enabled() else nullcontext()
        with self._as_set(), again:
            return self._pass(lambda: self._states_of(rows))

    def _pass(self, work: Callable[[], Tensor]) -> Tensor:
        """Where a scoring pass is done."""
        return work()

    def _features(self, rows: Sequence[Row]) -> tuple[Mapping[int, Features], Tensor | None]:
        """The encoded images of a scoring pass; in lockstep without images, a zero that hangs on the tower."""
        wanted = list(dict.fromkeys(handle for prompt in dict(rows) for handle, _ in runs(prompt)))
        if not self._lockstep:
            return self._encoder.encode(wanted), None
        if wanted:
            return dict(zip(wanted, self._encoder.together(self._encoder.patches(wanted)), strict=True)), None
        (blank,) = self._encoder.together([self._encoder.blank()])
        return {}, 0 * torch.stack([part.sum() for part in blank]).sum()

    def _states_of(self, rows: Sequence[Row]) -> Tensor:
        features, zero = self._features(rows)
        start_of = np.concatenate([[0], np.cumsum([len(ids) for _, ids in rows])])
        parts: list[Tensor] = []
        slots: list[np.ndarray] = []
        for batch in _batches(rows, self._score_tokens):
            parts.append(self._continued(list(batch), [[rows[i][1] for i in at] for at in batch.values()], features))
            slots += [np.arange(start_of[i], start_of[i + 1]) for i in chain(*batch.values())]
        order = torch.from_numpy(np.argsort(np.concatenate(slots))).to(parts[0].device)
        states_SD = torch.cat(parts).index_select(0, order)
        return states_SD if zero is None else states_SD + zero

    def _continued(self, prompts: list[Ids], told: list[list[Ids]], features: Mapping[int, Features]) -> Tensor:
        """Hidden states [S, D] of completions, by prompt, then completion, then token.

        One pass over the prompts G and one over the completions R, which read the prompts' keys and values. Both are
        padded on the right: there causality hides padding from the prompts themselves, and the mask from completions.
        """
        device = self._module.device
        ids_GT = right_padded(prompts).to(device)
        length_G = torch.tensor([len(ids) for ids in prompts], device=device)
        mask_GT = (torch.arange(ids_GT.shape[1], device=device) < length_G.unsqueeze(1)).long()
        positions_3GT, shift_G = self._positions_of(ids_GT, mask_GT, prompts)
        cache = PromptCache(self._layers)
        hidden_GTD = self._read(self._embedded(ids_GT, prompts, features), None, positions_3GT, cache)
        completions = list(chain(*told))
        source_R = torch.tensor([g for g, each in enumerate(told) for _ in each], device=device)
        states_RTD = hidden_GTD[source_R, length_G[source_R] - 1].unsqueeze(1)
        # The last token predicts nothing that is scored, so it isn't fed.
        if most := max(map(len, completions)) - 1:
            fed_RT = right_padded([ids[:-1] for ids in completions]).to(device)
            assert fed_RT.min() >= 0, "completions are text"
            after_T = torch.arange(most, device=device)
            positions_RT = (length_G + shift_G)[source_R].unsqueeze(1) + after_T
            mask_RT = torch.cat([mask_GT[source_R], mask_GT.new_ones(len(completions), most)], 1)
            embedded, read = _Embedded(self._embedding(fed_RT)), cache.continued(source_R)
            more_RTD = self._read(embedded, mask_RT, positions_RT.expand(3, -1, -1), read)
            states_RTD = torch.cat([states_RTD, more_RTD], 1)
        picked = np.concatenate([r * (most + 1) + np.arange(len(ids)) for r, ids in enumerate(completions)])
        return states_RTD.flatten(0, 1).index_select(0, torch.from_numpy(picked).to(device))

    # What both need

    def _positions_of(self, ids_BT: Tensor, mask_BT: Tensor, prompts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Positions [3, B, T] in time, height and width, and [B] by how much the next one differs from the length."""
        model: Any = self._module.base_model
        ids_BT, mask_BT = ids_BT.cpu(), mask_BT.cpu()  # transformers goes through them token by token
        positions_3BT, shift_B1 = model.get_rope_index(
            ids_BT.clamp(min=0),
            mm_token_type_ids=(ids_BT < 0).int(),
            image_grid_thw=self._encoder.grids(prompts),
            attention_mask=mask_BT,
        )
        device = self._module.device
        return positions_3BT.to(device), shift_B1.squeeze(1).to(device)

    def _embedding(self, ids_BT: Tensor) -> Tensor:
        return self._module.get_input_embeddings()(ids_BT)

    def _embedded(self, ids_BT: Tensor, prompts: Sequence[Ids], features: Mapping[int, Features]) -> _Embedded:
        """Prompts as the language model reads them: images in place of their tokens."""
        seen_BT = ids_BT < 0
        embedded_BTD = self._embedding(torch.where(seen_BT, self._module.config.image_token_id, ids_BT))
        shown = [features[handle] for ids in prompts for handle, _ in runs(ids)]
        if not shown:
            return _Embedded(embedded_BTD)
        first, *deep = (torch.cat(parts).to(embedded_BTD.dtype) for parts in zip(*shown, strict=True))
        return _Embedded(embedded_BTD.masked_scatter(seen_BT.unsqueeze(-1), first), seen_BT, deep)

    def _read(self, embedded: _Embedded, mask_BT: Tensor | None, positions_3BT: Tensor, cache: Cache) -> Tensor:
        """Final hidden states [B, T, D] of the language model, whose keys and values go into the cache."""
        model: Any = self._module.base_model
        deep = {"visual_pos_masks": embedded.seen_BT, "deepstack_visual_embeds": embedded.deep} if embedded.deep else {}
        return model.language_model(
            inputs_embeds=embedded.tokens_BTD,
            attention_mask=mask_BT,
            position_ids=positions_3BT,
            past_key_values=cache,
            **deep,
        ).last_hidden_state


@dataclass(frozen=True)
class _Embedded:
    """Tokens as the first layer reads them; seen_BT where they are images', deep what is added there after layers."""

    tokens_BTD: Tensor
    seen_BT: Tensor | None = None
    deep: Sequence[Tensor] = ()


def _batches(rows: Sequence[Row], budget: int) -> Iterator[dict[Ids, list[int]]]:
    """Row indices by prompt: prompts times the longest and rows times the longest within the budget.

    A prompt with more rows than fit is split; a row that is longer goes alone.
    """
    rows_of: dict[Ids, list[int]] = {}
    for i, (prompt, _) in enumerate(rows):
        rows_of.setdefault(prompt, []).append(i)
    batch: dict[Ids, list[int]] = {}
    longest = most = count = 0
    for prompt, at in sorted(rows_of.items(), key=lambda item: len(item[0])):
        for i in at:
            longest, most, count = max(longest, len(prompt)), max(most, len(rows[i][1])), count + 1
            if batch and longest * len(batch.keys() | {prompt}) + most * count > budget:
                yield batch
                batch, longest, most, count = {}, len(prompt), len(rows[i][1]), 1
            batch.setdefault(prompt, []).append(i)
    yield batch
