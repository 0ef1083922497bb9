"""Decoding: each distinct prompt computed once, then one lockstep pass per token over the rows still writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparring.lm.base import Completion, PromptGroup, SamplingParams
from sparring.lm.llama import FastLlama
from sparring.lm.llama_layers import mlp, project_qkv, rotate_
from sparring.lm.llama_sample import draw, filter_logprobs, id_mask
from sparring.lm.llama_score import final_norm, forward, pack

# Cache slots added at a time. Unused ones are masked, so a larger step wastes more work.
GROWTH = 32
# Finished rows are dropped once this share of the batch has finished.
COMPACT_SHARE = 1 / 8


@dataclass
class Cache:
    """Keys and values of all live rows: per layer [B K, slots, head_dim], contiguous.

    Slots hold the right-padded prompt, then the completion. mask [B K, 1, slots] is 0 or −inf.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor

    def grow(self, slots: int) -> None:
        """Add masked slots."""
        self.keys = [F.pad(x, (0, 0, 0, slots)) for x in self.keys]
        self.values = [F.pad(x, (0, 0, 0, slots)) for x in self.values]
        self.mask = F.pad(self.mask, (0, slots), value=float("-inf"))

    def keep(self, rows: Tensor, kv_heads: int) -> None:
        """Keep these rows only."""

        def select(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, kv_heads)).index_select(0, rows).flatten(0, 1)

        self.keys, self.values = [select(x) for x in self.keys], [select(x) for x in self.values]
        self.mask = select(self.mask)


@torch.inference_mode()
def generate(
    model: FastLlama, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, uniforms: np.ndarray
) -> list[list[Completion]]:
    """See `LanguageModel.generate`. Raises ValueError for uniforms of the wrong shape or range."""
    if not prompts or n == 0:
        return [[] for _ in prompts]
    rows, limit = len(prompts) * n, params.max_new_tokens
    uniforms_BT = _check_uniforms(uniforms, rows, params)
    distinct = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    prompt_of_row = np.repeat([distinct[tuple(prompt)] for prompt in prompts], n)
    logits_BV, cache, lengths_N = _prefill(model, list(distinct), prompt_of_row)
    positions_B = lengths_N[prompt_of_row]
    banned_V = id_mask(params.banned_ids, model.geometry.vocab, "banned_ids")
    if banned_V.all():
        raise ValueError("banned_ids leaves no token to draw")
    stops_V = id_mask(params.stop_ids, model.geometry.vocab, "stop_ids")
    banned = torch.from_numpy(banned_V).to(model.device) if banned_V.any() else None

    ids_BT, logprobs_BT = np.zeros((rows, limit), np.int64), np.zeros((rows, limit), np.float32)
    lengths_B = np.full(rows, limit)
    stopped_B = np.zeros(rows, bool)
    live = np.arange(rows)  # row of the batch → row of the answer; finished ones leave in `_compact`
    prefix = cache.mask.shape[-1]
    for step in range(limit):
        logprobs_BV = torch.log_softmax(_scaled(logits_BV, params), -1)
        choice = filter_logprobs(logprobs_BV, params, banned)
        if params.temperature == 0:
            tokens_B = choice.argmax(-1)
        else:
            tokens_B = draw(choice, torch.from_numpy(uniforms_BT[live, step]).to(model.device))
        ids_BT[live, step] = tokens_B.cpu().numpy()
        logprobs_BT[live, step] = logprobs_BV.gather(1, tokens_B[:, None])[:, 0].cpu().numpy()
        newly = stops_V[ids_BT[live, step]] & ~stopped_B[live]
        lengths_B[live[newly]] = step + 1
        stopped_B[live[newly]] = True
        writing = ~stopped_B[live]
        if step + 1 == limit or not writing.any():
            break
        if writing.sum() <= (1 - COMPACT_SHARE) * len(live):
            keep = torch.from_numpy(np.flatnonzero(writing)).to(model.device)
            cache.keep(keep, model.geometry.kv_heads)
            tokens_B, live = tokens_B.index_select(0, keep), live[writing]
        if prefix + step >= cache.mask.shape[-1]:
            cache.grow(min(GROWTH, limit - 1 - step))
        positions = torch.from_numpy(positions_B[live] + step).to(model.device)
        logits_BV = _decode(model, cache, tokens_B, positions, prefix + step)

    flat = [
        Completion(
            tuple(ids[:length].tolist()), logprobs[:length].copy(), "stop" if stopped else "length"
        )
        for ids, logprobs, length, stopped in zip(ids_BT, logprobs_BT, lengths_B, stopped_B, strict=True)
    ]
    return [flat[i : i + n] for i in range(0, rows, n)]


def _check_uniforms(uniforms: np.ndarray, rows: int, params: SamplingParams) -> np.ndarray:
    if params.temperature == 0:
        return uniforms
    if uniforms.shape[0] != rows or uniforms.ndim != 2 or uniforms.shape[1] < params.max_new_tokens:
        raise ValueError(
            f"uniforms must be [{rows}, {params.max_new_tokens}] (prompts · n, max_new_tokens), "
            f"not {list(uniforms.shape)}"
        )
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("uniforms must lie in [0, 1)")
    return uniforms.astype(np.float32, copy=False)


def _scaled(logits_BV: Tensor, params: SamplingParams) -> Tensor:
    logits_BV = logits_BV.float()
    return logits_BV if params.temperature in (0, 1) else logits_BV.div_(params.temperature)


def _prefill(
    model: FastLlama, prompts: list[tuple[int, ...]], prompt_of_row: np.ndarray
) -> tuple[Tensor, Cache, np.ndarray]:
    """First logits [B, V] of every row, its cache, and prompt lengths [N]."""
    packed = pack(model, [PromptGroup(prompt, ()) for prompt in prompts])
    n, p, _, _ = packed.layout.sizes
    k, d = model.geometry.kv_heads, model.geometry.head_dim
    rows_B = torch.from_numpy(prompt_of_row).to(model.device)
    queries = n * p * model.geometry.heads
    at_keys, at_values = packed.layout.gather[queries:].view(2, -1)
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def fill(_: int, qkv: Tensor) -> None:
        heads = qkv.view(-1, d)
        for at, cache in ((at_keys, keys), (at_values, values)):
            per_prompt = heads.index_select(0, at).view(n, k, p, d)
            cache.append(per_prompt.index_select(0, rows_B).view(-1, p, d))

    h_TD = forward(model, packed, fill)
    lengths_N = np.array([len(prompt) for prompt in prompts])
    last = torch.from_numpy(np.cumsum(lengths_N) - 1).to(model.device)
    logits_NV = F.linear(final_norm(model, h_TD.index_select(0, last)), model.head)
    valid = np.arange(p) < lengths_N[prompt_of_row, None]
    mask = torch.from_numpy(np.where(valid, np.float32(0), -np.inf)).to(model.device, model.dtype)
    return logits_NV.index_select(0, rows_B), Cache(keys, values, mask.repeat_interleave(k, 0)[:, None]), lengths_N


def _decode(model: FastLlama, cache: Cache, tokens_B: Tensor, positions_B: Tensor, slot: int) -> Tensor:
    """Logits [B, V] after these tokens, which enter the cache at `slot`."""
    geometry = model.geometry
    b, k, d = len(tokens_B), geometry.kv_heads, geometry.head_dim
    cos, signed_sin = (
        table.index_select(0, positions_B)[:, None] for table in model.rope(int(positions_B.max()) + 1)
    )
    cache.mask[:, :, slot] = 0
    h_BD = F.embedding(tokens_B, model.embedding)
    for layer, keys, values in zip(model.layers, cache.keys, cache.values, strict=True):
        heads = project_qkv(h_BD, layer, geometry).view(b, geometry.packed_heads, d)
        rotate_(heads[:, : geometry.heads + k], cos, signed_sin)
        keys.view(b, k, -1, d)[:, :, slot] = heads[:, geometry.heads : -k]
        values.view(b, k, -1, d)[:, :, slot] = heads[:, -k:]
        q = heads[:, : geometry.heads].reshape(b * k, -1, d)
        weights = torch.baddbmm(cache.mask, q, keys.mT, alpha=geometry.scale)
        attended = torch.bmm(torch.softmax(weights, -1), values).view(b, -1)
        h_BD = mlp(torch.addmm(h_BD, attended, layer.out.t()), layer, geometry)
    return F.linear(final_norm(model, h_BD), model.head)
