"""The training forward: each group's prompt once, its answers behind it, log-probabilities where scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as fn
from torch.utils.checkpoint import checkpoint

from sparring.lm.base import PromptGroup, Scores
from sparring.lm.head import head_scores
from sparring.lm.llama import FastLlama
from sparring.lm.llama_layers import Layout, SharedPrefixAttention, lay_out, mlp, project_qkv, rms_norm

# Attention weights of all layers held at once that a backward pass may keep (and one layer's that may exist at all).
KEPT_WEIGHTS = 2**29


@dataclass(frozen=True, eq=False)
class Packed:
    """Groups as one packed sequence: prompts, then answers without their last token.

    ids_T, positions_T: packed tokens. length: positions in use, known without asking the device.
    scored_S: packed position that predicts each completion token; targets_S: that token. Both in the order of `Scores`.
    """

    ids_T: Tensor
    positions_T: Tensor
    length: int
    scored_S: Tensor
    targets_S: Tensor
    layout: Layout


def pack(model: FastLlama, groups: Sequence[PromptGroup]) -> Packed:
    """Check and pack groups. Raises ValueError for an empty prompt or an id outside the vocabulary."""
    for i, group in enumerate(groups):
        if not group.prompt_ids:
            raise ValueError(f"group {i} has an empty prompt: a prompt needs at least one token")
    prompts = [np.asarray(group.prompt_ids, np.int64) for group in groups]
    answers = [[np.asarray(ids, np.int64) for ids in group.completions] for group in groups]
    prompt_lengths = np.array([len(ids) for ids in prompts])
    prompt_ends = np.cumsum(prompt_lengths)
    ids, positions, scored, targets = [*prompts], [np.arange(n) for n in prompt_lengths], [], []
    inputs: list[np.ndarray] = []
    start = int(prompt_ends[-1])
    for prompt_length, prompt_end, rows in zip(prompt_lengths, prompt_ends, answers, strict=True):
        lengths = []
        for row in rows:
            if len(row) == 0:
                continue
            ids.append(row[:-1])
            positions.append(np.arange(prompt_length, prompt_length + len(row) - 1))
            scored.append(np.concatenate(([prompt_end - 1], np.arange(start, start + len(row) - 1))))
            targets.append(row)
            if len(row) > 1:
                lengths.append(len(row) - 1)
            start += len(row) - 1
        inputs.append(np.array(lengths, np.int64))
    empty = [np.zeros(0, np.int64)]
    ids_T, positions_T, targets_S = (np.concatenate(parts) for parts in (ids, positions, targets or empty))
    for array in (ids_T, targets_S):
        if array.size and not 0 <= array.min() <= array.max() < model.geometry.vocab:
            raise ValueError(f"token ids must lie in [0, {model.geometry.vocab}): the model's vocabulary")

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(model.device)

    return Packed(
        ids_T=tensor(ids_T),
        positions_T=tensor(positions_T),
        length=int(positions_T.max()) + 1,
        scored_S=tensor(np.concatenate(scored or empty)),
        targets_S=tensor(targets_S),
        layout=lay_out(model.geometry, prompt_lengths, inputs, model.dtype, model.device),
    )


def forward(
    model: FastLlama,
    packed: Packed,
    on_qkv: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Hidden states [T, D] of packed tokens after the last layer, before the final norm.

    on_qkv(layer, qkv) sees every layer's rotated projections (generation fills its cache from them).
    """
    geometry = model.geometry
    n, p, g, t = packed.layout.sizes
    weights = n * geometry.heads * (p * p + g * t * (p + t))
    recompute = model.checkpointing and model.trainable and torch.is_grad_enabled()
    held_layers = geometry.layers if torch.is_grad_enabled() and not recompute else 1
    keep = weights * held_layers <= KEPT_WEIGHTS
    rope = tuple(table.index_select(0, packed.positions_T)[:, None] for table in model.rope(packed.length))

    def run(i: int, h_TD: Tensor) -> Tensor:
        layer = model.layers[i]
        qkv = project_qkv(h_TD, layer, geometry)
        attended = SharedPrefixAttention.apply(qkv, rope, packed.layout, geometry, keep)
        if on_qkv is not None:
            on_qkv(i, qkv)
        return mlp(layer.out.onto(h_TD, attended), layer, geometry)

    h_TD = fn.embedding(packed.ids_T, model.embedding, geometry.padding_idx)
    step = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False) if recompute else run
    for i in range(geometry.layers):
        h_TD = step(i, h_TD)
    return h_TD


def final_norm(model: FastLlama, h_SD: Tensor) -> Tensor:
    """The norm before the head."""
    return rms_norm(h_SD, model.norm, model.geometry.eps)


def score(
    model: FastLlama,
    groups: Sequence[PromptGroup],
    *,
    temperature: float,
    reference: FastLlama | None,
    entropy: bool,
) -> Scores:
    """See `LanguageModel.score`. Temperature 0 (greedy) scores at 1; a reference has the same vocabulary."""
    if not any(group.scored_tokens for group in groups):
        nothing_S = torch.zeros(0, device=model.device)
        return Scores(nothing_S, nothing_S if reference is not None else None, nothing_S if entropy else None)
    packed = pack(model, groups)
    ref_hidden_SD = None
    if reference is not None:
        with torch.no_grad():
            same = (reference.dtype, reference.geometry) == (model.dtype, model.geometry)
            ref_packed = packed if same else pack(reference, groups)
            ref_SD = forward(reference, ref_packed).index_select(0, packed.scored_S)
            ref_hidden_SD = final_norm(reference, ref_SD)
    hidden_SD = final_norm(model, forward(model, packed).index_select(0, packed.scored_S))
    return head_scores(
        hidden_SD,
        model.head,
        packed.targets_S,
        temperature=temperature or 1.0,
        ref_hidden_SD=ref_hidden_SD,
        ref_weight_VD=reference.head if reference is not None else None,
        entropy=entropy,
    )
