"""The KL taken off the payoffs, before they are centred; in place of a term in the loss."""

from __future__ import annotations

import torch

from sparring.batching import Example
from sparring.learner import Learner
from sparring.losses import k1
from sparring.types import Payoffs


def less_kl(payoffs: Payoffs, learner: Learner, beta: float) -> Payoffs:
    """k1 in the reward: r − β Σ_t (log π − log π_ref), as the payoff part "kl" of what the policy says for training."""
    if not beta:
        return payoffs
    examples = {
        turn: Example(turn.prompt_ids, turn.completion_ids, 0.0, 0.0, turn.logprobs, turn.role.name)
        for turn in payoffs
        if turn.model == "policy" and turn.role.weight > 0 and turn.completion_ids
    }
    reference = learner.reference_logprobs(list(examples.values()))
    penalty: dict[Example, float] = {}
    for example, reference_T in zip(examples.values(), reference, strict=True):
        ratio_T = k1(torch.as_tensor(example.sampler_logprobs), torch.as_tensor(reference_T))
        penalty[example] = float(ratio_T.sum()) * beta
    return {
        turn: payoff.plus("kl", -penalty[examples[turn]]) if turn in examples else payoff
        for turn, payoff in payoffs.items()
    }
