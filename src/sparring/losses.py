"""Losses: pure functions of log-probabilities, token by token.

Every argument is a float tensor [S] over scored positions (completion tokens); nothing here sums or averages:
`batching` owns the normalisers, so the loss of a batch is Σ_S weight_S · loss_S.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KLEstimator = Callable[[Tensor, Tensor], Tensor]
"""(logprob_S, ref_logprob_S) → penalty_S"""


def k1(logprob_S: Tensor, ref_logprob_S: Tensor) -> Tensor:
    """k1 = log π − log π_ref. Unbiased for KL(π ‖ π_ref) in value.

    Only for the reward: differentiated directly its mean gradient on-policy is zero, so as a loss it
    regularises nothing.
    """
    return logprob_S - ref_logprob_S


def k2(logprob_S: Tensor, ref_logprob_S: Tensor) -> Tensor:
    """k2 = ½ (log π − log π_ref)². Its on-policy gradient is the gradient of KL(π ‖ π_ref).

    Source: Schulman, "Approximating KL Divergence".
    """
    return 0.5 * (logprob_S - ref_logprob_S).square()


def k3(logprob_S: Tensor, ref_logprob_S: Tensor) -> Tensor:
    """k3 = π_ref/π − 1 − log(π_ref/π): unbiased in value, never negative; GRPO's choice.

    >>> round(k3(torch.tensor(0.0), torch.tensor(0.6931472)).item(), 4)
    0.3069
    """
    log_ratio_S = ref_logprob_S - logprob_S
    return log_ratio_S.exp() - 1 - log_ratio_S


def policy_gradient(
    logprob_S: Tensor,
    advantage_S: Tensor,
    old_logprob_S: Tensor | None = None,
    clip_low: float | None = None,
    clip_high: float | None = None,
    *,
    importance_S: Tensor | None = None,
) -> Tensor:
    """−w min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) with ρ = π / π_old.

    Without old log-probabilities ρ = π / ⊥π (⊥ = stop-gradient): value 1, on-policy REINFORCE, as in Language
    Self-Play, arXiv 2509.07414, Algorithm 1. Without clip bounds the ratio is not clipped. importance_S is w, of tokens
    that another sampler drew (`truncated_importance`); None: 1.

    >>> policy_gradient(torch.tensor([-2.0]), torch.tensor([0.5])).tolist()
    [-0.5]
    """
    old_logprob_S = logprob_S.detach() if old_logprob_S is None else old_logprob_S
    ratio_S = (logprob_S - old_logprob_S).exp()
    gain_S = ratio_S * advantage_S
    if clip_low is not None or clip_high is not None:
        low = 0.0 if clip_low is None else 1 - clip_low
        high = float("inf") if clip_high is None else 1 + clip_high
        gain_S = torch.minimum(gain_S, ratio_S.clamp(low, high) * advantage_S)
    return -gain_S if importance_S is None else -importance_S * gain_S


def truncated_importance(old_logprob_S: Tensor, sampler_logprob_S: Tensor, cap: float) -> Tensor:
    """w = min(cap, π_old / π_sampler), without gradient: what corrects tokens for the policy that drew them.

    π_old is the learner's own policy before the update, π_sampler the sampler's as it drew them (another engine, or
    weights one update old). Truncation bounds the variance, at the price of a bias towards the sampler's policy.
    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; truncation after
    Espeholt et al., IMPALA, arXiv 1802.01561.

    >>> truncated_importance(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -4.0]), 2.0).tolist()
    [1.0, 2.0]
    """
    return (old_logprob_S - sampler_logprob_S).detach().exp().clamp(max=cap)
