"""Tensor work that scoring and generation share: rotary embedding, layout and shared-prefix attention.

Tokens of many sequences travel packed, without padding, through every matrix product:
first all prompts, then all answers. Only attention needs a rectangular layout. Its rows are
ordered (group N, key/value head K, answer G, query head of that key R, token T), so that the prompt's keys
meet all answers of a group in one product and no key is copied per answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as fn

from sparring.lm.llama import Geometry, Layer


def rotate_(x_SHD: Tensor, cos: Tensor, signed_sin: Tensor) -> None:
    """Rotary embedding in place. x [S, heads, head_dim]; cos, signed_sin = (−sin, sin) [S, 1, head_dim]."""
    half = x_SHD.shape[-1] // 2
    swapped = x_SHD.unflatten(-1, (2, half)).flip(-2).flatten(-2)
    x_SHD.mul_(cos).addcmul_(swapped, signed_sin)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where packed heads go for attention. Row indices are into packed tokens × packed heads.

    sizes: N groups, P padded prompt length, G padded answers, T padded answer length (G T = 0: prompts only).
    prompt_lengths: N lengths without padding.
    gather: prompt q, prompt k, prompt v, answer q, answer k, answer v rows, in this order.
    scatter: for each packed head row, where it lies in that order (the inverse of `gather`).
    out: for each packed query-head row, where it lies in (prompt q, answer q).
    prompt_mask [R P, P], prefix_mask [N K, 1, P] and answer_mask [R T, T] are 0 or −inf.
    """

    sizes: tuple[int, int, int, int]
    prompt_lengths: tuple[int, ...]
    gather: Tensor
    scatter: Tensor
    out: Tensor
    prompt_mask: Tensor
    prefix_mask: Tensor
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
        *((answer_NGT[:, None], answer_valid[:, None], key_K[:, None, None] + i * k) for i in (0, 1)),
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

    return Layout(
        sizes=(n_groups, p_max, g_max, t_max),
        prompt_lengths=tuple(prompt_lengths.tolist()),
        gather=tensor(gather),
        scatter=tensor(scatter),
        out=tensor(queries),
        prompt_mask=_causal(p_max, dtype, device).repeat(r, 1),
        prefix_mask=_bias(tensor(prompt_valid), dtype).repeat_interleave(k, 0)[:, None],
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
    """Rotary embedding, then causal attention: prompts to themselves, answers to their prompt and themselves.

    qkv [S, (H + 2 K) · head_dim] packed (rotated in place: the projection's output is needed by nobody else);
    cos, signed_sin [S, 1, head_dim]. Returns [S, H · head_dim]. Keeps the attention weights for the backward
    pass, the fastest way on a CPU, unless `keep_weights` is False: then they are computed again.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any,
        qkv: Tensor,
        rope: tuple[Tensor, Tensor],
        layout: Layout,
        geometry: Geometry,
        keep_weights: bool,
    ) -> Tensor:
        d = geometry.head_dim
        heads = qkv.view(qkv.shape[0], geometry.packed_heads, d)
        rotate_(heads[:, : geometry.heads + geometry.kv_heads], *rope)
        rows = heads.view(-1, d).index_select(0, layout.gather)
        weights: tuple[Tensor, ...] = ()
        if keep_weights:
            out, weights = _attend(rows, layout, geometry)
        else:
            out = _attend_by_group(rows, layout, geometry)
        ctx.save_for_backward(rows, *rope, *weights)
        ctx.layout, ctx.geometry = layout, geometry
        return out.index_select(0, layout.out).view(-1, geometry.heads * d)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, cos, signed_sin, *weights = ctx.saved_tensors
        layout, geometry = ctx.layout, ctx.geometry
        d = geometry.head_dim
        n, p, g, t = layout.sizes
        # Padded queries get gradient 0, and so pass none on.
        g_out = rows.new_zeros(n * geometry.heads * (p + g * t), d)
        g_out.index_copy_(0, layout.out, grads[0].reshape(-1, d))
        if weights:
            g_rows = _attend_backward(g_out, rows, weights, layout, geometry)
        else:
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                (g_rows,) = torch.autograd.grad(_attend_by_group(leaf, layout, geometry), leaf, g_out)
        g_heads = g_rows.index_select(0, layout.scatter).view(-1, geometry.packed_heads, d)
        rotate_(g_heads[:, : geometry.heads + geometry.kv_heads], cos, -signed_sin)
        return g_heads.view(g_heads.shape[0], -1), None, None, None, None


def _attend(rows: Tensor, layout: Layout, geometry: Geometry) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Attended rows (prompt q, answer q order) and the attention weights, all groups at once."""
    d, k = geometry.head_dim, geometry.kv_heads
    n, p, g, t = layout.sizes
    q_p, k_p, v_p, q_a, k_a, v_a = _parts(rows, layout, geometry)
    w_p = torch.softmax(torch.baddbmm(layout.prompt_mask, q_p, k_p.mT, alpha=geometry.scale), -1)
    o_p = torch.bmm(w_p, v_p).view(-1, d)
    if not g * t:
        return o_p, (w_p,)
    s_prefix = torch.baddbmm(layout.prefix_mask, q_a, k_p.mT, alpha=geometry.scale)
    s_own = torch.baddbmm(layout.answer_mask, q_a.view(n * k * g, -1, d), k_a.mT, alpha=geometry.scale)
    w_a = torch.softmax(torch.cat((s_prefix.view(-1, p), s_own.view(-1, t)), -1), -1)
    w_prefix, w_own = w_a[:, :p].reshape(n * k, -1, p), w_a[:, p:].reshape(n * k * g, -1, t)
    o_a = torch.bmm(w_own, v_a).view(n * k, -1, d).baddbmm_(w_prefix, v_p)
    return torch.cat((o_p, o_a.view(-1, d))), (w_p, w_a)


def _attend_backward(
    g_out: Tensor, rows: Tensor, weights: Sequence[Tensor], layout: Layout, geometry: Geometry
) -> Tensor:
    """Gradient of `rows` from that of the attended rows."""
    d, k = geometry.head_dim, geometry.kv_heads
    n, p, g, t = layout.sizes
    q_p, k_p, v_p, q_a, k_a, v_a = _parts(rows, layout, geometry)
    g_rows = torch.empty_like(rows)
    gq_p, gk_p, gv_p, gq_a, gk_a, gv_a = _parts(g_rows, layout, geometry)
    g_p, g_a = g_out.split([q_p.numel() // d, q_a.numel() // d])
    g_p, w_p = g_p.view_as(q_p), weights[0]
    s_p = _softmax_backward(torch.bmm(g_p, v_p.mT), w_p).mul_(geometry.scale)
    torch.bmm(s_p, k_p, out=gq_p)
    torch.bmm(s_p.mT, q_p, out=gk_p)
    torch.bmm(w_p.mT, g_p, out=gv_p)
    if not g * t:
        return g_rows
    g_a, w_a, own = g_a.view_as(q_a), weights[1], (n * k * g, -1)
    g_prefix, g_own = torch.bmm(g_a, v_p.mT), torch.bmm(g_a.view(*own, d), v_a.mT)
    g_w = torch.cat((g_prefix.view(-1, p), g_own.view(-1, t)), -1)
    s_a = _softmax_backward(g_w, w_a).mul_(geometry.scale)
    s_prefix, s_own = s_a[:, :p].reshape(n * k, -1, p), s_a[:, p:].reshape(*own, t)
    w_prefix, w_own = w_a[:, :p].reshape(n * k, -1, p), w_a[:, p:].reshape(*own, t)
    torch.bmm(s_own, k_a, out=gq_a.view(*own, d))
    gq_a.baddbmm_(s_prefix, k_p)
    torch.bmm(s_own.mT, q_a.view(*own, d), out=gk_a)
    torch.bmm(w_own.mT, g_a.view(*own, d), out=gv_a)
    gk_p.baddbmm_(s_prefix.mT, q_a)
    gv_p.baddbmm_(w_prefix.mT, g_a)
    return g_rows


def _softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.aten._softmax_backward_data.default(grad, weights, -1, weights.dtype)


def _attend_by_group(rows: Tensor, layout: Layout, geometry: Geometry) -> Tensor:
    """As `_attend` by torch's fused attention, one group at a time: no weights are ever held."""
    h, k, r, d = geometry.heads, geometry.kv_heads, geometry.heads_per_kv, geometry.head_dim
    n, p, g, t = layout.sizes
    q_p, k_p, v_p, q_a, k_a, v_a = _parts(rows, layout, geometry)
    k_p, v_p = k_p.view(n, k, p, d), v_p.view(n, k, p, d)

    attention = partial(fn.scaled_dot_product_attention, scale=geometry.scale)
    out = [attention(q_p.view(n, h, p, d), k_p, v_p, is_causal=True, enable_gqa=r > 1).reshape(-1, d)]
    for i in range(n if g * t else 0):
        length = layout.prompt_lengths[i]
        # The query heads of one key head as one long query: on a GPU flash attention takes no mask, and the
        # memory-efficient kernel no enable_gqa, so both together would hold all weights after all.
        q = q_a.view(n, k, g, r * t, d)[i].transpose(0, 1)
        keys, values = (
            torch.cat((prefix[i, :, :length].expand(g, -1, -1, -1), own.view(n, k, g, t, d)[i].transpose(0, 1)), 2)
            for prefix, own in ((k_p, k_a), (v_p, v_a))
        )
        mask = fn.pad(layout.answer_mask, (length, 0))
        out.append(attention(q, keys, values, mask).transpose(0, 1).reshape(-1, d))
    return torch.cat(out)


def _parts(rows: Tensor, layout: Layout, geometry: Geometry) -> tuple[Tensor, ...]:
    n, p, g, t = layout.sizes
    k, r, d = geometry.kv_heads, geometry.heads_per_kv, geometry.head_dim
    shapes = [(n * k, r * p), (n * k, p), (n * k, p), (n * k, g * r * t), (n * k * g, t), (n * k * g, t)]
    parts = rows.split([a * b for a, b in shapes])
    return tuple(part.view(a, b, d) for part, (a, b) in zip(parts, shapes, strict=True))


class _RMSNorm(torch.autograd.Function):
    """As torch's rms_norm, whose backward pass in bf16 on a CPU takes twice as long (on a GPU it is one kernel)."""

    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        norm_S = torch.linalg.vector_norm(x_SD, dim=-1, keepdim=True, dtype=torch.float32)
        inverse_S = norm_S.square_().div_(x_SD.shape[-1]).add_(eps).rsqrt_()
        unit_SD = (x_SD * inverse_S).to(x_SD.dtype)
        ctx.save_for_backward(unit_SD, weight_D, inverse_S)
        return unit_SD * weight_D

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        unit_SD, weight_D, inverse_S = ctx.saved_tensors
        along_SD = grads[0] * unit_SD
        mean_S = (along_SD @ weight_D).unsqueeze(-1) / -unit_SD.shape[-1]
        g_SD = (grads[0] * weight_D).addcmul_(unit_SD, mean_S).mul_(inverse_S.to(unit_SD.dtype))
        return g_SD, along_SD.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None


def rms_norm(x_SD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last axis, rms in fp32."""
    if torch.is_grad_enabled() and x_SD.dtype != torch.float64 and x_SD.device.type == "cpu":
        return _RMSNorm.apply(x_SD, weight_D, eps)
    return fn.rms_norm(x_SD, weight_D.shape, weight_D, eps)


def project_qkv(h_SD: Tensor, layer: Layer, geometry: Geometry) -> Tensor:
    """Normed, projected and (Qwen3) head-normed q, k, v [S, (H + 2 K) · head_dim], before rotation."""
    x_SD = rms_norm(h_SD, layer.attention_norm, geometry.eps)
    qkv = layer.qkv.of(x_SD)
    if layer.q_norm is None or layer.k_norm is None:
        return qkv
    heads = qkv.view(qkv.shape[0], geometry.packed_heads, geometry.head_dim)
    q, k, v = heads.split((geometry.heads, geometry.kv_heads, geometry.kv_heads), 1)
    q = rms_norm(q, layer.q_norm, geometry.eps)
    k = rms_norm(k, layer.k_norm, geometry.eps)
    return torch.cat((q, k, v), 1).view_as(qkv)


def mlp(h_SD: Tensor, layer: Layer, geometry: Geometry) -> Tensor:
    """h plus its gated MLP."""
    x_SD = rms_norm(h_SD, layer.mlp_norm, geometry.eps)
    gate, up = layer.gate_up.of(x_SD).chunk(2, -1)
    return layer.down.onto(h_SD, fn.silu(gate) * up)
