"""Choosing the next token: bans, top-k, top-p and the inverse CDF."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparring.lm.base import SamplingParams


def id_mask(ids: tuple[int, ...], vocab: int, setting: str) -> np.ndarray:
    """Boolean mask [V] of these ids. Raises ValueError, naming the setting, for ids outside [0, V)."""
    mask_V = np.zeros(vocab, bool)
    if any(not 0 <= i < vocab for i in ids):
        raise ValueError(f"{setting} must lie in [0, {vocab}), not {[i for i in ids if not 0 <= i < vocab]}")
    mask_V[list(ids)] = True
    return mask_V


def filter_logprobs(logprobs_BV: Tensor, params: SamplingParams, banned_V: Tensor | None) -> Tensor:
    """Log-probabilities (not normalised) with −inf for what is banned, outside top-k, outside top-p.

    top-k keeps the k likeliest (and what ties with the last); top-p the fewest likeliest tokens whose
    probabilities, of what is left by then, reach p. Returns the input itself where no filter is on.
    """
    floor = float("-inf")
    if banned_V is not None:
        logprobs_BV = logprobs_BV.masked_fill(banned_V, floor)
    if params.temperature == 0:
        return logprobs_BV
    if 0 < params.top_k < logprobs_BV.shape[-1]:
        least = logprobs_BV.topk(params.top_k).values[:, -1:]
        logprobs_BV = logprobs_BV.masked_fill(logprobs_BV < least, floor)
    if params.top_p < 1:
        ordered_BV, order_BV = torch.softmax(logprobs_BV, -1).sort(descending=True, stable=True)
        before_BV = ordered_BV.cumsum(-1) - ordered_BV
        drop_BV = torch.empty_like(order_BV, dtype=torch.bool).scatter_(1, order_BV, before_BV >= params.top_p)
        logprobs_BV = logprobs_BV.masked_fill(drop_BV, floor)
    return logprobs_BV


def draw(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token at which the cumulative probability, in id order, first exceeds u · total. [B] int64.

    Inverse CDF: torch.multinomial takes many times longer and cannot give each row its own stream.
    A token of probability 0 is never drawn.
    """
    cdf_BV = probabilities_BV.cumsum(-1)
    total_B = cdf_BV[:, -1:]
    below_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    target_B = torch.minimum(uniforms_B[:, None] * total_B, below_B)
    # Broken weights (NaN) find no token: any will do, as their log-probability says what happened.
    return torch.searchsorted(cdf_BV, target_B, right=True)[:, 0].clamp_(max=cdf_BV.shape[-1] - 1)
