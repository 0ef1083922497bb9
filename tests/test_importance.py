"""The truncated importance weight: what tokens count that another sampler drew."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparring.learner import Update
from sparring.losses import policy_gradient, truncated_importance
from test_learner import logprobs, make_examples, make_learner, recorded

CAP = 0.05  # what the random model gives its tokens, over what the examples say: some are above
logs = st.floats(-30, 0, width=32)


def test_by_hand() -> None:
    """π_old = ½, ¼, ⅛ and π_sampler = ¼ each: 2, 1, ½; the cap of 1.5 cuts the first."""
    old_S, sampler_S = torch.tensor([0.5, 0.25, 0.125]).log(), torch.full((3,), 0.25).log()
    assert truncated_importance(old_S, sampler_S, 10).tolist() == pytest.approx([2, 1, 0.5])
    assert truncated_importance(old_S, sampler_S, 1.5).tolist() == pytest.approx([1.5, 1, 0.5])
    advantage_S = torch.tensor([1.0, -2.0, 4.0])
    loss_S = policy_gradient(old_S, advantage_S, importance_S=truncated_importance(old_S, sampler_S, 1.5))
    assert loss_S.tolist() == pytest.approx([-1.5, 2, -2])


@given(st.lists(st.tuples(logs, logs), min_size=1, max_size=8), st.floats(0.125, 8, width=32))
def test_between_nothing_and_the_cap_and_never_nan(rows: list[tuple[float, float]], cap: float) -> None:
    old_S, sampler_S = (torch.tensor(column) for column in zip(*rows, strict=True))
    weight_S = truncated_importance(old_S, sampler_S, cap)
    assert bool((weight_S >= 0).all())
    assert bool((weight_S <= cap).all())
    for weight, (old, sampler) in zip(weight_S.tolist(), rows, strict=True):
        assert weight == pytest.approx(min(cap, math.exp(old - sampler)), rel=1e-4)


def test_a_token_the_sampler_hardly_allowed_weighs_the_cap() -> None:
    assert truncated_importance(torch.tensor([0.0]), torch.tensor([-200.0]), 2.0).tolist() == [2.0]


def test_it_scales_the_gradient_and_has_none_of_its_own() -> None:
    logprob_S = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    sampler_S, advantage_S = torch.tensor([-1.5, -1.0, -0.5]), torch.tensor([1.0, -2.0, 0.5])
    weight_S = truncated_importance(logprob_S, sampler_S, 1.2)
    assert not weight_S.requires_grad
    policy_gradient(logprob_S, advantage_S, importance_S=weight_S).sum().backward()
    assert logprob_S.grad is not None
    # ∂/∂ log π of −w (π / ⊥π) A is −w A at π = ⊥π.
    want = [-1.2 * 1.0, -math.exp(-1.0) * -2.0, -1.0 * 0.5]
    assert logprob_S.grad.tolist() == pytest.approx(want)


def test_it_multiplies_the_clipped_objective() -> None:
    logprob_S, old_S = torch.tensor([-0.5, -1.5]), torch.tensor([-1.0, -1.0])
    advantage_S, weight_S = torch.tensor([2.0, -3.0]), torch.tensor([0.5, 1.5])
    plain_S = policy_gradient(logprob_S, advantage_S, old_S, 0.2, 0.2)
    weighted_S = policy_gradient(logprob_S, advantage_S, old_S, 0.2, 0.2, importance_S=weight_S)
    assert weighted_S.tolist() == pytest.approx((weight_S * plain_S).tolist())


@pytest.mark.parametrize("steps", [{}, {"epochs": 2}])
def test_the_learner_weighs_by_its_own_policy_over_the_samplers(steps: dict[str, int]) -> None:
    examples = make_examples()
    learner = make_learner(Update(max_grad_norm=None, importance_cap=CAP, token_budget=60, **steps))
    figures = learner.update(examples, 1.0)
    model = make_learner(Update()).model
    for parameter in model.parameters():
        parameter.grad = None
    total, weights = torch.zeros(()), []
    for e in examples:
        logprob_T = logprobs(model, e)
        weight_T = (logprob_T.detach() - torch.from_numpy(e.sampler_logprobs)).exp().clamp(max=CAP)
        weights.append(weight_T)
        total = total - (weight_T * logprob_T).sum() * e.advantage * e.token_weight
    total.backward()
    for step in recorded(learner):  # the recorder leaves the parameters alone, so that every step is the first
        for got, parameter in zip(step, model.parameters(), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(got, parameter.grad, atol=1e-6, rtol=1e-4)
    weight_S = torch.cat(weights)
    assert figures["importance/mean/solver"] == pytest.approx(weight_S.mean().item(), rel=1e-4)
    assert 0 < figures["importance/clipped/solver"] < 1
    assert figures["importance/clipped/solver"] == pytest.approx((weight_S >= CAP).float().mean().item())


def test_without_a_cap_nothing_is_weighed() -> None:
    figures = make_learner(Update()).update(make_examples(), 1.0)
    assert not any(name.startswith("importance") for name in figures)
