"""Log-probabilities, KL and entropy straight from hidden states, without the full fp32 logits.

Logits [S, V] in fp32 are the largest tensor of a training step. Here they exist one chunk at a time:
the forward pass walks over rows, the backward pass over blocks of the vocabulary, where each block of
the weight gradient is written once instead of being added up row chunk by row chunk.

    z = H Wᵀ / τ        log π = z − logsumexp(z)        KL = Σ_v π (log π − log π_ref)
    ∂ log π(y) / ∂z = 1_y − π                           ∂ KL / ∂z = π (log π − log π_ref − KL)
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparring.lm.base import Scores


def head_scores(
    hidden_SD: Tensor,
    weight_VD: Tensor,
    targets_S: Tensor,
    *,
    temperature: float = 1.0,
    ref_hidden_SD: Tensor | None = None,
    ref_weight_VD: Tensor | None = None,
    entropy: bool = False,
    chunk_elements: int | None = None,
) -> Scores:
    """log π(target), and on request KL(π ‖ π_ref) and entropy, at S positions.

    hidden_SD [S, D] and weight_VD [V, D] (the output embedding) share one floating dtype, targets_S [S]
    is int64. The matrix products run in that dtype, the softmax in float32 (float64 inputs stay float64).
    The reference's [S, D'] and [V, D'] get no gradient; its width may differ, its vocabulary may not.
    `temperature` divides the logits of both. No more than about `chunk_elements` logits exist at once
    (None: what stays in a CPU's caches, more on an accelerator); where all fit, they are kept for the
    backward pass rather than computed again.

    Raises ValueError for a temperature that is not positive, half a reference, or shapes that disagree.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 to score (greedy: score at 1), not {temperature}")
    if (ref_hidden_SD is None) != (ref_weight_VD is None):
        raise ValueError("a reference needs both ref_hidden_SD and ref_weight_VD")
    if hidden_SD.shape[:1] != targets_S.shape or hidden_SD.shape[1:] != weight_VD.shape[1:]:
        raise ValueError(
            f"shapes disagree: hidden {tuple(hidden_SD.shape)}, weight {tuple(weight_VD.shape)}, "
            f"targets {tuple(targets_S.shape)}"
        )
    if ref_weight_VD is not None and ref_weight_VD.shape[0] != weight_VD.shape[0]:
        raise ValueError(
            f"the reference has {ref_weight_VD.shape[0]} logits, the policy {weight_VD.shape[0]}: "
            "a KL needs one vocabulary"
        )
    if chunk_elements is None:
        # Fewer than 64 rows would read the whole weight for too little work.
        chunk_elements = max(2**20 if hidden_SD.device.type == "cpu" else 2**24, 64 * weight_VD.shape[0])
    logprobs_S, kl_S, entropy_S = _HeadScores.apply(
        hidden_SD,
        weight_VD,
        targets_S,
        None if ref_hidden_SD is None else ref_hidden_SD.detach(),
        None if ref_weight_VD is None else ref_weight_VD.detach(),
        temperature,
        entropy,
        chunk_elements,
    )
    return Scores(logprobs_S, kl_S, entropy_S)


def _logits(hidden_SD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    """z = H Wᵀ / τ: the product in the inputs' dtype, the division in at least float32."""
    z_SV = hidden_SD @ weight_VD.T
    z_SV = z_SV.to(torch.promote_types(z_SV.dtype, torch.float32))
    return z_SV if temperature == 1.0 else z_SV.div_(temperature)


class _HeadScores(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any,
        hidden_SD: Tensor,
        weight_VD: Tensor,
        targets_S: Tensor,
        ref_hidden_SD: Tensor | None,
        ref_weight_VD: Tensor | None,
        temperature: float,
        entropy: bool,
        chunk_elements: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        S, V = hidden_SD.shape[0], weight_VD.shape[0]
        rows = max(1, chunk_elements // V)
        wide = torch.promote_types(hidden_SD.dtype, torch.float32)
        logprobs_S, lse_S = (torch.empty(S, dtype=wide, device=hidden_SD.device) for _ in range(2))
        entropy_S = torch.empty_like(lse_S) if entropy else None
        kl_S = ref_lse_S = logp_SV = diff_SV = None
        if ref_hidden_SD is not None:
            kl_S, ref_lse_S = torch.empty_like(lse_S), torch.empty_like(lse_S)
        for start in range(0, S, rows):
            at = slice(start, start + rows)
            z_SV = _logits(hidden_SD[at], weight_VD, temperature)
            logp_SV = torch.log_softmax(z_SV, -1)
            target_S1 = targets_S[at].unsqueeze(1)
            chosen_S1 = logp_SV.gather(1, target_S1)
            logprobs_S[at] = chosen_S1.squeeze(1)
            lse_S[at] = (z_SV.gather(1, target_S1) - chosen_S1).squeeze(1)
            del z_SV
            p_SV = logp_SV.exp() if entropy or kl_S is not None else logp_SV
            if entropy_S is not None:
                entropy_S[at] = -torch.linalg.vecdot(p_SV, logp_SV)
            if kl_S is not None and ref_lse_S is not None:
                ref_SV = _logits(cast(Tensor, ref_hidden_SD)[at], cast(Tensor, ref_weight_VD), temperature)
                ref_lse_S[at] = ref_SV.logsumexp(-1)
                diff_SV = logp_SV - ref_SV.sub_(ref_lse_S[at].unsqueeze(1))
                kl_S[at] = torch.linalg.vecdot(p_SV, diff_SV)
        ctx.temperature = temperature
        ctx.block = V
        if rows < S:
            ctx.block = max(1, chunk_elements // S)
            logp_SV = diff_SV = None
        ctx.save_for_backward(hidden_SD, weight_VD, targets_S, lse_S, logp_SV,
                              ref_hidden_SD, ref_weight_VD, ref_lse_S, kl_S, diff_SV)  # fmt: skip
        ctx.set_materialize_grads(False)
        if entropy_S is not None:
            ctx.mark_non_differentiable(entropy_S)
        return logprobs_S, kl_S, entropy_S

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_SD, weight_VD, _, lse_S, *_ = ctx.saved_tensors
        grad_logprobs_S, grad_kl_S, _ = grad_outputs
        if grad_logprobs_S is None:
            grad_logprobs_S = torch.zeros_like(lse_S)
        V = weight_VD.shape[0]
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden_SD = torch.zeros_like(hidden_SD, dtype=lse_S.dtype) if want_hidden else None
        grad_weight_VD = torch.empty_like(weight_VD) if want_weight else None
        for start in range(0, V, ctx.block):
            at = slice(start, min(start + ctx.block, V))
            grad_SV = _logit_gradient(ctx, at, grad_logprobs_S, grad_kl_S).to(hidden_SD.dtype)
            if grad_weight_VD is not None:
                torch.mm(grad_SV.T, hidden_SD, out=grad_weight_VD[at])
            if grad_hidden_SD is not None:
                grad_hidden_SD += grad_SV @ weight_VD[at]
        if grad_hidden_SD is not None:
            grad_hidden_SD = grad_hidden_SD.to(hidden_SD.dtype)
        return (grad_hidden_SD, grad_weight_VD, *[None] * 6)


def _logit_gradient(ctx: Any, at: slice, grad_logprobs_S: Tensor, grad_kl_S: Tensor | None) -> Tensor:
    """∂loss/∂(H Wᵀ) [S, block] in one block of the vocabulary.

    [g_lp (1_y − π) + g_kl π (log π − log π_ref − KL)] / τ
    """
    hidden_SD, weight_VD, targets_S, lse_S, logp_SV, *reference = ctx.saved_tensors
    ref_hidden_SD, ref_weight_VD, ref_lse_S, kl_S, diff_SV = reference
    g_lp_S1 = grad_logprobs_S.unsqueeze(1) / ctx.temperature
    if logp_SV is None:
        logp_SV = _logits(hidden_SD, weight_VD[at], ctx.temperature).sub_(lse_S.unsqueeze(1))
    p_SV = logp_SV.exp()
    if grad_kl_S is None:
        grad_SV = p_SV.mul_(-g_lp_S1)
    else:
        if diff_SV is None:
            ref_SV = _logits(ref_hidden_SD, ref_weight_VD[at], ctx.temperature)
            diff_SV = logp_SV.sub_(ref_SV.sub_(ref_lse_S.unsqueeze(1)))
        g_kl_S1 = grad_kl_S.unsqueeze(1) / ctx.temperature
        grad_SV = p_SV.mul_(torch.addcmul(-g_kl_S1 * kl_S.unsqueeze(1) - g_lp_S1, diff_SV, g_kl_S1))
    # A target outside this block adds zero to column 0.
    inside_S = (targets_S >= at.start) & (targets_S < at.stop)
    column_S1 = torch.where(inside_S, targets_S - at.start, 0).unsqueeze(1)
    return grad_SV.scatter_add_(1, column_S1, torch.where(inside_S.unsqueeze(1), g_lp_S1, 0.0))
