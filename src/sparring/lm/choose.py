"""Drawing the next token from logits: bans, temperature, top-k, top-p, inverse CDF."""

from __future__ import annotations

import torch
from torch import Tensor

from sparring.lm.base import SamplingParams

# The largest float32 below 1: a uniform that rounds up to 1 would fall off the end of the CDF.
BELOW_ONE = 1 - 2**-24


def choose(logits_BV: Tensor, params: SamplingParams, uniforms_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token per row, and its log-probability.

    logits_BV [B, V] any float; uniforms_B [B] in [0, 1) (None when greedy). Returns ids_B int64 and
    logprobs_B float32. The token is the first in id order at which the CDF of the filtered distribution
    exceeds the row's uniform; the log-probability is under the unfiltered one at the sampling temperature
    (greedy: temperature 1), as `Completion` promises. As in transformers, ties at the k-th logit all stay,
    and top-p keeps the smallest set of tokens that reaches p after top-k.
    """
    greedy = params.temperature == 0
    z_BV = logits_BV.float()
    if not greedy and params.temperature != 1:
        z_BV = z_BV / params.temperature
    logp_BV = torch.log_softmax(z_BV, -1)
    allowed_BV = logp_BV
    if params.banned_ids:
        banned = torch.tensor(params.banned_ids, device=z_BV.device)
        allowed_BV = logp_BV.index_fill(1, banned, -torch.inf)
    if greedy:
        ids_B = allowed_BV.argmax(-1)
    else:
        if uniforms_B is None:
            raise ValueError("sampling at a temperature above 0 needs uniforms, one per row")
        ids_B = _inverse_cdf(_filtered(allowed_BV, params).exp(), uniforms_B)
    return ids_B, logp_BV.gather(1, ids_B.unsqueeze(1)).squeeze(1)


def _filtered(logp_BV: Tensor, params: SamplingParams) -> Tensor:
    """Minus infinity wherever top-k or top-p leaves a token out."""
    if 0 < params.top_k < logp_BV.shape[1]:
        kth_B1 = logp_BV.topk(params.top_k, dim=-1).values[:, -1:]
        logp_BV = logp_BV.masked_fill(logp_BV < kth_B1, -torch.inf)
    if params.top_p < 1:
        p_BV, order_BV = torch.softmax(logp_BV, -1).sort(dim=-1, descending=True, stable=True)
        before_BV = p_BV.cumsum(-1) - p_BV
        outside_BV = torch.zeros_like(logp_BV, dtype=torch.bool).scatter_(1, order_BV, before_BV >= params.top_p)
        logp_BV = logp_BV.masked_fill(outside_BV, -torch.inf)
    return logp_BV


def _inverse_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """First index at which the running sum of (unnormalised) weights exceeds uniform · total."""
    cdf_BV = weights_BV.cumsum(-1)
    at_B = uniforms_B.to(cdf_BV).clamp(max=BELOW_ONE) * cdf_BV[:, -1]
    # Broken weights (NaN) find no token: any will do, as their log-probability says what happened.
    return torch.searchsorted(cdf_BV, at_B.unsqueeze(1), right=True).squeeze(1).clamp_(max=cdf_BV.shape[1] - 1)
