"""Decoding: each distinct prompt computed once, then one lockstep pass per token over rows still writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as fn

from sparring.lm.base import Completion, PromptGroup, SamplingParams
from sparring.lm.llama import FastLlama, Geometry
from sparring.lm.llama_layers import mlp, project_qkv, rotate_
from sparring.lm.llama_sample import draw, filter_logprobs, id_mask
from sparring.lm.llama_score import final_norm, forward, pack

# Suffix slots added at a time (or a quarter of what there is). Unused ones are masked, and cost time.
GROWTH = 16
# On a CPU a very short cache is faster in fp32: up to this many slots fixed costs outweigh the bytes.
FP32_SLOTS = 48
# Finished rows are dropped once this share of the batch has finished.
COMPACT_SHARE = 1 / 8


@dataclass
class Cache:
    """Keys and values: prompts once (N, right-padded to P), then what each of B live rows wrote since.

    A layer: prefix_keys, prefix_values [K N, P, head_dim]; suffix (keys, values) [2, K, B, slots, head_dim].
    prefix_mask [K N, 1, P] and suffix_mask [slots] are 0 or −inf.
    pad [N G] is the row at each place of a rectangle of G rows a prompt, place [B] the place of each row;
    both None where rows fill the rectangle in order.
    """

    prefix_keys: list[Tensor]
    prefix_values: list[Tensor]
    suffix: list[Tensor]
    prefix_mask: Tensor
    suffix_mask: Tensor
    pad: Tensor | None = None
    place: Tensor | None = None

    def cast(self, dtype: torch.dtype) -> None:
        """Hold keys, values and masks in this dtype; bf16 through fp32 loses nothing."""
        self.prefix_keys, self.prefix_values, self.suffix = (
            [x.to(dtype) for x in tensors] for tensors in (self.prefix_keys, self.prefix_values, self.suffix)
        )
        self.prefix_mask, self.suffix_mask = self.prefix_mask.to(dtype), self.suffix_mask.to(dtype)

    def open_slot(self, slot: int, limit: int, dtype: torch.dtype) -> None:
        """Make `slot` usable, with new slots (`limit` at most in all) where there is none left.

        dtype: the model's, which a cache too long for fp32 goes back to.
        """
        slots = len(self.suffix_mask)
        if slot >= slots:
            in_all = self.prefix_mask.shape[-1] + slots
            self.cast(torch.float32 if in_all <= FP32_SLOTS and self.prefix_mask.device.type == "cpu" else dtype)
            more = min(max(GROWTH, slots // 4), limit - slots)
            self.suffix = [fn.pad(x, (0, 0, 0, more)) for x in self.suffix]
            self.suffix_mask = fn.pad(self.suffix_mask, (0, more), value=float("-inf"))
        self.suffix_mask[slot] = 0

    def keep(self, rows_B: np.ndarray, prompt_B: np.ndarray, prompts: int, kv_heads: int) -> np.ndarray:
        """Keep these rows, of these prompts (ascending), and drop prompts with no row left.

        Returns the rows' new prompt indices.
        """
        device = self.suffix_mask.device
        rows = torch.from_numpy(rows_B).to(device)
        self.suffix = [x.index_select(2, rows) for x in self.suffix]
        left, prompt_B = np.unique(prompt_B, return_inverse=True)
        if len(left) < prompts:
            kept = torch.from_numpy(left).to(device)

            def select(x: Tensor) -> Tensor:
                return x.unflatten(0, (kv_heads, -1)).index_select(1, kept).flatten(0, 1)

            self.prefix_keys = [select(x) for x in self.prefix_keys]
            self.prefix_values = [select(x) for x in self.prefix_values]
            self.prefix_mask = select(self.prefix_mask)
        self.arrange(prompt_B)
        return prompt_B

    def arrange(self, prompt_B: np.ndarray) -> None:
        """Lay rows of these prompts (ascending, none missing) into the rectangle."""
        counts = np.bincount(prompt_B)
        width = int(counts.max())
        self.pad = self.place = None
        if (counts == width).all():
            return
        place_B = prompt_B * width + np.arange(len(prompt_B)) - (np.cumsum(counts) - counts)[prompt_B]
        pad = np.zeros(len(counts) * width, np.int64)
        pad[place_B] = np.arange(len(prompt_B))
        self.pad = torch.from_numpy(pad).to(self.suffix_mask.device)
        self.place = torch.from_numpy(place_B).to(self.suffix_mask.device)


@torch.inference_mode()
def generate(
    model: FastLlama, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, uniforms: np.ndarray
) -> list[list[Completion]]:
    """See `LanguageModel.generate`. Raises ValueError for uniforms of the wrong shape or range."""
    if not prompts or n == 0:
        return [[] for _ in prompts]
    rows, limit, vocab = len(prompts) * n, params.max_new_tokens, model.geometry.vocab
    uniforms_TB = _check_uniforms(uniforms, rows, params)
    stops_V = id_mask(params.stop_ids, vocab, "stop_ids")
    banned_V = id_mask(params.banned_ids, vocab, "banned_ids")
    if banned_V.all():
        raise ValueError("banned_ids leaves no token to draw")
    banned = torch.from_numpy(banned_V).to(model.device) if banned_V.any() else None
    distinct = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    prompt_B = np.repeat([distinct[tuple(prompt)] for prompt in prompts], n)
    live = np.argsort(prompt_B, kind="stable")  # row of the batch → row of the answer; finished ones leave
    prompt_B = prompt_B[live]
    logits_NV, cache, lengths_N = _prefill(model, list(distinct), rows)
    logits_BV = logits_NV[torch.from_numpy(prompt_B).to(model.device)]
    cache.arrange(prompt_B)

    # What a step needs of the rows stays on the device: only the tokens drawn come back, to see who has finished.
    draws_TB = torch.from_numpy(uniforms_TB).to(model.device)
    rows_B = torch.from_numpy(live).to(model.device)
    starts_B = torch.from_numpy(lengths_N[prompt_B]).to(model.device)
    tables = model.rope(int(lengths_N.max()) + limit)
    written = Written(rows, limit)
    for step in range(limit):
        logprobs_BV = torch.log_softmax(_scaled(logits_BV, params), -1)
        choice_BV = filter_logprobs(logprobs_BV, params, banned)
        if params.temperature == 0:
            tokens_B = choice_BV.argmax(-1)
        else:
            tokens_B = draw(torch.softmax(choice_BV, -1), draws_TB[step].index_select(0, rows_B))
        chosen_B = logprobs_BV.gather(1, tokens_B[:, None])[:, 0]
        writing_B = written.add(live, step, tokens_B.cpu().numpy(), chosen_B, stops_V)
        if step + 1 == limit or not writing_B.any():
            break
        if writing_B.sum() <= (1 - COMPACT_SHARE) * len(live):
            keep = np.flatnonzero(writing_B)
            kept = torch.from_numpy(keep).to(model.device)
            tokens_B, rows_B, starts_B = (x.index_select(0, kept) for x in (tokens_B, rows_B, starts_B))
            live = live[keep]
            prompt_B = cache.keep(keep, prompt_B[keep], int(prompt_B[-1]) + 1, model.geometry.kv_heads)
        cache.open_slot(step, limit - 1, model.dtype)
        rope = tuple(table.index_select(0, starts_B + step)[:, None] for table in tables)
        logits_BV = _decode(model, cache, tokens_B, rope, step)
    flat = written.completions()
    return [flat[i : i + n] for i in range(0, rows, n)]


class Written:
    """What every answer holds so far."""

    def __init__(self, rows: int, limit: int) -> None:
        self.ids_BT = np.zeros((rows, limit), np.int64)
        self.lengths_B, self.stopped_B = np.full(rows, limit), np.zeros(rows, bool)
        self._steps: list[tuple[np.ndarray, Tensor]] = []

    def add(
        self, live: np.ndarray, step: int, ids_B: np.ndarray, logprobs_B: Tensor, stops_V: np.ndarray
    ) -> np.ndarray:
        """Note one token for each live row; returns which of them go on writing."""
        self.ids_BT[live, step] = ids_B
        self._steps.append((live, logprobs_B))
        stopping = live[stops_V[ids_B] & ~self.stopped_B[live]]
        self.lengths_B[stopping], self.stopped_B[stopping] = step + 1, True
        return ~self.stopped_B[live]

    def completions(self) -> list[Completion]:
        """One per row."""
        logprobs_BT = np.zeros(self.ids_BT.shape, np.float32)
        fetched = torch.cat([logprobs_B for _, logprobs_B in self._steps]).cpu().numpy()
        start = 0
        for step, (live, _) in enumerate(self._steps):
            logprobs_BT[live, step] = fetched[start : start + len(live)]
            start += len(live)
        return [
            Completion(tuple(ids[:length].tolist()), logprobs[:length].copy(), "stop" if stopped else "length")
            for ids, logprobs, length, stopped in zip(
                self.ids_BT, logprobs_BT, self.lengths_B, self.stopped_B, strict=True
            )
        ]


def _check_uniforms(uniforms: np.ndarray, rows: int, params: SamplingParams) -> np.ndarray:
    """Checked, in a copy of its own [max_new_tokens, rows] (none where greedy)."""
    if params.temperature == 0:
        return np.zeros((0, 0), np.float32)
    if uniforms.shape[0] != rows or uniforms.ndim != 2 or uniforms.shape[1] < params.max_new_tokens:
        raise ValueError(
            f"uniforms must be [{rows}, {params.max_new_tokens}] (prompts · n, max_new_tokens), "
            f"not {list(uniforms.shape)}"
        )
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("uniforms must lie in [0, 1)")
    return np.array(uniforms[:, : params.max_new_tokens].T, np.float32, order="C")


def _scaled(logits_BV: Tensor, params: SamplingParams) -> Tensor:
    logits_BV = logits_BV.float()
    return logits_BV if params.temperature in (0, 1) else logits_BV.div_(params.temperature)


def _prefill(model: FastLlama, prompts: list[tuple[int, ...]], rows: int) -> tuple[Tensor, Cache, np.ndarray]:
    """First logits [N, V] of every prompt, a cache for this many rows, and prompt lengths [N]."""
    packed = pack(model, [PromptGroup(prompt, ()) for prompt in prompts])
    n, p, _, _ = packed.layout.sizes
    k, d = model.geometry.kv_heads, model.geometry.head_dim
    at_keys, at_values = packed.layout.gather[n * p * model.geometry.heads :].view(2, n, k, p).transpose(1, 2)
    nothing = torch.zeros(2, k, rows, 0, d, dtype=model.dtype, device=model.device)
    cache = Cache(
        prefix_keys=[],
        prefix_values=[],
        suffix=[nothing] * model.geometry.layers,
        prefix_mask=packed.layout.prefix_mask.view(n, k, 1, p).transpose(0, 1).flatten(0, 1),
        suffix_mask=nothing.new_zeros(0),
    )

    def fill(_: int, qkv: Tensor) -> None:
        heads = qkv.view(-1, d)
        cache.prefix_keys.append(heads.index_select(0, at_keys.flatten()).view(k * n, p, d))
        cache.prefix_values.append(heads.index_select(0, at_values.flatten()).view(k * n, p, d))

    h_TD = forward(model, packed, fill)
    lengths_N = np.array([len(prompt) for prompt in prompts])
    last_N = torch.from_numpy(np.cumsum(lengths_N) - 1).to(model.device)
    return fn.linear(final_norm(model, h_TD.index_select(0, last_N)), model.head), cache, lengths_N


def _decode(model: FastLlama, cache: Cache, tokens_B: Tensor, rope: tuple[Tensor, ...], slot: int) -> Tensor:
    """Logits [B, V] after these tokens, which enter the cache at `slot`; rope: cos, signed sin of their positions."""
    geometry = model.geometry
    b, k, d = len(tokens_B), geometry.kv_heads, geometry.head_dim
    h_BD = fn.embedding(tokens_B, model.embedding)
    for i, layer in enumerate(model.layers):
        heads = project_qkv(h_BD, layer, geometry).view(b, geometry.packed_heads, d)
        rotate_(heads[:, : geometry.heads + k], *rope)
        cache.suffix[i][:, :, :, slot] = heads[:, geometry.heads :].view(b, 2, k, d).permute(1, 2, 0, 3)
        query = cache.suffix_mask.new_empty(k, b, geometry.heads_per_kv * d)
        query.copy_(heads[:, : geometry.heads].view(b, k, -1).transpose(0, 1))
        attended = h_BD.new_empty(b, k, geometry.heads_per_kv * d)
        attended.copy_(_attend(query, cache, i, geometry).transpose(0, 1))
        h_BD = mlp(layer.out.onto(h_BD, attended.view(b, -1)), layer, geometry)
    return fn.linear(final_norm(model, h_BD), model.head)


def _attend(query: Tensor, cache: Cache, i: int, geometry: Geometry) -> Tensor:
    """Attention of queries [K, B, R · head_dim] to layer i's cache: scores side by side, one softmax.

    The rows of one prompt meet its keys as one matrix: a step reads the prompt once, not once a row.
    """
    k, b, _ = query.shape
    r, d = geometry.heads_per_kv, geometry.head_dim
    prefix_keys, prefix_values, (keys, values) = cache.prefix_keys[i], cache.prefix_values[i], cache.suffix[i]
    groups, p, _ = prefix_keys.shape
    to_prompts = query if cache.pad is None else query.index_select(1, cache.pad)
    s_prefix = torch.baddbmm(cache.prefix_mask, to_prompts.view(groups, -1, d), prefix_keys.mT, alpha=geometry.scale)
    if cache.place is not None:
        s_prefix = s_prefix.view(k, -1, r * p).index_select(1, cache.place)
    s_own = torch.baddbmm(cache.suffix_mask, query.view(k * b, r, d), keys.view(k * b, -1, d).mT, alpha=geometry.scale)
    weights = torch.softmax(torch.cat((s_prefix.view(k * b, r, p), s_own), -1), -1)
    w_prefix = weights[:, :, :p]
    if cache.pad is not None:
        w_prefix = w_prefix.reshape(k, b, -1).index_select(1, cache.pad)
    out = torch.bmm(w_prefix.reshape(groups, -1, p), prefix_values)
    if cache.place is not None:
        out = out.view(k, -1, r * d).index_select(1, cache.place)
    out = torch.baddbmm(out.view(k * b, r, d), weights[:, :, p:], values.view(k * b, -1, d))
    return out.view(k, b, r * d)
