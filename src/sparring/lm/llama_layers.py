"""Tensor work that scoring and generation share: rotary embedding, layout and shared-prefix attention.

Tokens of many sequences travel packed, without padding, through every matrix product:
first all prompts, then all answers. Only attention needs a rectangular layout. Its rows are
ordered (group N, key/value head K, answer G, query head of that key R, token T), so that the prompt's keys
meet all answers of a group in one product and no key is copied per answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sparring.lm.llama import Geometry, Layer


def rotate_(x_SHD: Tensor, cos: Tensor, signed_sin: Tensor) -> None:
    """Rotary embedding in place. x [S, heads, head_dim]; cos, signed_sin [S, 1, head_dim]; sin is (−sin, sin)."""
    half = x_SHD.shape[-1] // 2
    swapped = x_SHD.unflatten(-1, (2, half)).flip(-2).flatten(-2)
    x_SHD.mul_(cos).addcmul_(swapped, signed_sin)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where packed heads go for attention. Row indices are into packed tokens × packed heads.

    sizes: N groups, P padded prompt length, G padded answers, T padded answer length (G T = 0: prompts alone).
    gather: prompt q, prompt k, prompt v, answer q, answer k, answer v rows, in this order.
    scatter: for each packed head row, where it lies in that order (the inverse of `gather`).
    out: for each packed query-head row, where it lies in (prompt q, answer q).
    prompt_mask [R P, P], prefix_mask [N K, 1, P] and answer_mask [R T, T] are 0 or −inf.
    """

    sizes: tuple[int, int, int, int]
    gather: Tensor
    scatter: Tensor
    out: Tensor
    prompt_mask: Tensor
    prefix_mask: Tensor | None
    answer_mask: Tensor


def lay_out(
    geometry: Geometry,
    prompt_lengths: np.ndarray,
    answer_lengths: list[np.ndarray],
    dtype: torch.dtype,
    device: torch.device,
) -> Layout:
    """The layout of prompts [N] and, per group, answers of these lengths, packed in this order."""
    n_groups, p_max = len(prompt_lengths), int(prompt_lengths.max())
    g_max = max(map(len, answer_lengths), default=0)
    grid_NG = np.zeros((n_groups, g_max), np.int64)
    for row, lengths in zip(grid_NG, answer_lengths, strict=True):
        row[: len(lengths)] = lengths
    t_max = int(grid_NG.max(initial=0))
    prompt_NP, prompt_valid = _token_grid(prompt_lengths, p_max, 0)
    answer_NGT, answer_valid = _token_grid(grid_NG, t_max, int(prompt_lengths.sum()))

    r, k, c = geometry.heads_per_kv, geometry.kv_heads, geometry.packed_heads
    key_K = geometry.heads + np.arange(k)
    query_KR = np.arange(geometry.heads).reshape(k, r)
    parts = [
        (prompt_NP[:, None, None, :], prompt_valid[:, None, None, :], query_KR[:, :, None]),
        *((prompt_NP[:, None, :], prompt_valid[:, None, :], key_K[:, None] + i * k) for i in (0, 1)),
        (answer_NGT[:, None, :, None, :], answer_valid[:, None, :, None, :], query_KR[:, None, :, None]),
        *(
            (answer_NGT[:, None], answer_valid[:, None], key_K[:, None, None] + i * k)
            for i in (0, 1)
        ),
    ]
    rows = [np.broadcast_arrays(token * c + head, valid) for token, valid, head in parts]
    gather = np.concatenate([index.ravel() for index, _ in rows])
    valid = np.concatenate([ok.ravel() for _, ok in rows])
    n_tokens = int(prompt_lengths.sum() + grid_NG.sum())
    scatter = np.empty(n_tokens * c, np.int64)
    scatter[gather[valid]] = np.flatnonzero(valid)
    queries = scatter.reshape(n_tokens, c)[:, : geometry.heads].ravel()
    prompt_queries, key_rows = rows[0][0].size, 2 * rows[1][0].size
    queries = np.where(queries < prompt_queries, queries, queries - key_rows)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    ragged = bool((prompt_lengths != p_max).any())
    return Layout(
        sizes=(n_groups, p_max, g_max, t_max),
        gather=tensor(gather),
        scatter=tensor(scatter),
        out=tensor(queries),
        prompt_mask=_causal(p_max, dtype, device).repeat(r, 1),
        prefix_mask=_bias(tensor(prompt_valid), dtype).repeat_interleave(k, 0)[:, None] if ragged else None,
        answer_mask=_causal(t_max, dtype, device).repeat(r, 1),
    )


def _token_grid(lengths: np.ndarray, width: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed token index and validity [*lengths.shape, width] of sequences packed one after the other."""
    ends = np.cumsum(lengths.ravel()).reshape(lengths.shape) + start
    steps = np.arange(width)
    valid = steps < lengths[..., None]
    return np.where(valid, (ends - lengths)[..., None] + steps, 0), valid


def _bias(keep: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill_(~keep, float("-inf"))


def _causal(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _bias(torch.ones(length, length, dtype=torch.bool, device=device).tril_(), dtype)


class SharedPrefixAttention(torch.autograd.Function):
    """Rotary embedding and causal attention of prompts to themselves, of answers to their prompt and themselves.

    qkv [S, (H + 2 K) · head_dim] packed (rotated in place: the projection's output is needed by nobody else);
    cos, signed_sin [S, 1, head_dim]. Returns [S, H · head_dim].
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, signed_sin: Tensor, layout: Layout, geometry: Geometry
    ) -> Tensor:
        d, k = geometry.head_dim, geometry.kv_heads
        n, p, g, t = layout.sizes
        heads = qkv.view(qkv.shape[0], geometry.packed_heads, d)
        rotate_(heads[:, : geometry.heads + k], cos, signed_sin)
        rows = heads.view(-1, d).index_select(0, layout.gather)
        q_p, k_p, v_p, q_a, k_a, v_a = _parts(rows, layout, geometry)
        out = rows.new_empty(q_p.numel() // d + q_a.numel() // d, d)
        w_p = torch.baddbmm(layout.prompt_mask, q_p, k_p.mT, alpha=geometry.scale)
        w_p = torch.softmax(w_p, -1)
        out[: n * geometry.heads * p] = torch.bmm(w_p, v_p).view(-1, d)
        w_a = None
        if g * t:
            if layout.prefix_mask is None:
                s_prefix = torch.bmm(q_a, k_p.mT).mul_(geometry.scale)
            else:
                s_prefix = torch.baddbmm(layout.prefix_mask, q_a, k_p.mT, alpha=geometry.scale)
            s_own = torch.baddbmm(
                layout.answer_mask, q_a.view(n * k * g, -1, d), k_a.mT, alpha=geometry.scale
            )
            w_a = torch.softmax(torch.cat((s_prefix.view(-1, p), s_own.view(-1, t)), -1), -1)
            w_prefix, w_own = w_a[:, :p].reshape(n * k, -1, p), w_a[:, p:].reshape(n * k * g, -1, t)
            o_a = torch.bmm(w_own, v_a).view(n * k, -1, d)
            out[n * geometry.heads * p :] = torch.baddbmm(o_a, w_prefix, v_p).view(-1, d)
        ctx.save_for_backward(rows, w_p, w_a, cos, signed_sin)
        ctx.layout, ctx.geometry = layout, geometry
        return out.index_select(0, layout.out).view(-1, geometry.heads * d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, w_p, w_a, cos, signed_sin = ctx.saved_tensors
        layout, geometry = ctx.layout, ctx.geometry
        d, k = geometry.head_dim, geometry.kv_heads
        n, p, g, t = layout.sizes
        q_p, k_p, v_p, q_a, k_a, v_a = _parts(rows, layout, geometry)
        prompt_rows = n * geometry.heads * p
        # Padded queries get gradient 0, and so pass none on.
        g_out = grad.new_zeros(prompt_rows + q_a.numel() // d, d)
        g_out.index_copy_(0, layout.out, grad.reshape(-1, d))
        g_p = g_out[:prompt_rows].view_as(q_p)
        g_rows = torch.empty_like(rows)
        gq_p, gk_p, gv_p, gq_a, gk_a, gv_a = _parts(g_rows, layout, geometry)
        s_p = torch._softmax_backward_data(torch.bmm(g_p, v_p.mT), w_p, -1, w_p.dtype).mul_(geometry.scale)
        torch.bmm(s_p, k_p, out=gq_p)
        torch.bmm(s_p.mT, q_p, out=gk_p)
        torch.bmm(w_p.mT, g_p, out=gv_p)
        if g * t:
            own = (n * k * g, -1)
            g_a = g_out[prompt_rows:].view_as(q_a)
            g_w = torch.cat(
                (torch.bmm(g_a, v_p.mT).view(-1, p), torch.bmm(g_a.view(*own, d), v_a.mT).view(-1, t)), -1
            )
            s_a = torch._softmax_backward_data(g_w, w_a, -1, w_a.dtype).mul_(geometry.scale)
            s_prefix, s_own = s_a[:, :p].reshape(n * k, -1, p), s_a[:, p:].reshape(*own, t)
            w_prefix, w_own = w_a[:, :p].reshape(n * k, -1, p), w_a[:, p:].reshape(*own, t)
            torch.bmm(s_own, k_a, out=gq_a.view(*own, d))
            gq_a.baddbmm_(s_prefix, k_p)
            torch.bmm(s_own.mT, q_a.view(*own, d), out=gk_a)
            torch.bmm(w_own.mT, g_a.view(*own, d), out=gv_a)
            gk_p.baddbmm_(s_prefix.mT, q_a)
            gv_p.baddbmm_(w_prefix.mT, g_a)
        g_heads = g_rows.index_select(0, layout.scatter).view(-1, geometry.packed_heads, d)
        rotate_(g_heads[:, : geometry.heads + k], cos, -signed_sin)
        return g_heads.view(g_heads.shape[0], -1), None, None, None, None


def _parts(rows: Tensor, layout: Layout, geometry: Geometry) -> tuple[Tensor, ...]:
    n, p, g, t = layout.sizes
    k, r, d = geometry.kv_heads, geometry.heads_per_kv, geometry.head_dim
    shapes = [(n * k, r * p), (n * k, p), (n * k, p), (n * k, g * r * t), (n * k * g, t), (n * k * g, t)]
    parts = rows.split([a * b for a, b in shapes])
    return tuple(part.view(a, b, d) for part, (a, b) in zip(parts, shapes, strict=True))


def project_qkv(h_SD: Tensor, layer: Layer, geometry: Geometry) -> Tensor:
    """Normed, projected and (Qwen3) head-normed q, k, v [S, (H + 2 K) · head_dim], before rotation."""
    x_SD = F.rms_norm(h_SD, (geometry.hidden,), layer.attention_norm, geometry.eps)
    qkv = F.linear(x_SD, layer.qkv, layer.qkv_bias)
    if layer.q_norm is None or layer.k_norm is None:
        return qkv
    heads = qkv.view(qkv.shape[0], geometry.packed_heads, geometry.head_dim)
    q, k, v = heads.split((geometry.heads, geometry.kv_heads, geometry.kv_heads), 1)
    q = F.rms_norm(q, (geometry.head_dim,), layer.q_norm, geometry.eps)
    k = F.rms_norm(k, (geometry.head_dim,), layer.k_norm, geometry.eps)
    return torch.cat((q, k, v), 1).view_as(qkv)


def mlp(h_SD: Tensor, layer: Layer, geometry: Geometry) -> Tensor:
    """h plus its gated MLP."""
    x_SD = F.rms_norm(h_SD, (geometry.hidden,), layer.mlp_norm, geometry.eps)
    gate, up = F.linear(x_SD, layer.gate_up).chunk(2, -1)
    return torch.addmm(h_SD, F.silu(gate) * up, layer.down.t())
