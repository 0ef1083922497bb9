"""k1, k2, k3, ratio and clip: values by hand, gradients against autograd's definition and the exact KL."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparring.losses import k1, k2, k3, policy_gradient

LN2 = math.log(2)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradient(of: Tensor, at: Tensor) -> list[float]:
    return torch.autograd.grad(of.sum(), at)[0].tolist()


def test_k1_k2_k3_by_hand() -> None:
    # π = ½ and π_ref = ¼, then π_ref = 1: log π − log π_ref = ln 2, then −ln 2
    logprob, reference = tensor(math.log(0.5), math.log(0.5)), tensor(math.log(0.25), 0.0).detach()
    assert k1(logprob, reference).tolist() == pytest.approx([LN2, -LN2])
    assert k2(logprob, reference).tolist() == pytest.approx([LN2**2 / 2, LN2**2 / 2])
    assert k3(logprob, reference).tolist() == pytest.approx([0.5 - 1 + LN2, 2 - 1 - LN2])


def test_their_gradients_by_hand() -> None:
    logprob, reference = tensor(math.log(0.5), math.log(0.5)), tensor(math.log(0.25), 0.0).detach()
    assert gradient(k1(logprob, reference), logprob) == pytest.approx([1, 1])
    assert gradient(k2(logprob, reference), logprob) == pytest.approx([LN2, -LN2])
    assert gradient(k3(logprob, reference), logprob) == pytest.approx([1 - 0.5, 1 - 2])


def test_expectations_over_the_policy_against_the_exact_kl() -> None:
    """In value k1 and k3 are unbiased; in gradient k2 is, and k1 gives zero, as its docstring warns."""
    logits, other = tensor(0.3, -1.0, 0.8, 0.1), tensor(-0.2, 0.5, 0.4, 0.0).detach()
    logp, logq = logits.log_softmax(0), other.log_softmax(0)
    p = logp.exp().detach()
    exact = (logp.exp() * (logp - logq)).sum()
    assert (p * k1(logp, logq)).sum().item() == pytest.approx(exact.item())
    assert (p * k3(logp, logq)).sum().item() == pytest.approx(exact.item())
    assert (p * k2(logp, logq)).sum().item() != pytest.approx(exact.item(), rel=1e-3)
    true = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    expected = {k: torch.autograd.grad((p * k(logp, logq)).sum(), logits, retain_graph=True)[0] for k in (k1, k2, k3)}
    torch.testing.assert_close(expected[k2], true)
    torch.testing.assert_close(expected[k1], torch.zeros(4, dtype=torch.float64))
    assert not torch.allclose(expected[k3], true, rtol=1e-2)


def test_the_on_policy_ratio_is_one_and_its_gradient_the_score() -> None:
    logprob, advantage = tensor(-2.0, -0.1), tensor(0.5, -3.0).detach()
    loss = policy_gradient(logprob, advantage)
    assert loss.tolist() == [-0.5, 3.0]
    assert gradient(loss, logprob) == [-0.5, 3.0]


# ratio, advantage → −min(ρ A, clip(ρ, 0.8, 1.3) A) and whether a gradient is left
CLIPPED = [
    (1.5, 2.0, -2.6, False),
    (1.5, -2.0, 3.0, True),
    (0.5, 2.0, -1.0, True),
    (0.5, -2.0, 1.6, False),
    (1.2, 2.0, -2.4, True),
    (0.9, -2.0, 1.8, True),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "moves"), CLIPPED)
def test_the_clipped_ratio_by_hand(ratio: float, advantage: float, loss: float, moves: bool) -> None:
    old = tensor(-1.0).detach()
    logprob = tensor(-1.0 + math.log(ratio))
    got = policy_gradient(logprob, tensor(advantage).detach(), old, 0.2, 0.3)
    assert got.item() == pytest.approx(loss)
    assert gradient(got, logprob)[0] == pytest.approx(-ratio * advantage if moves else 0.0)


def test_one_sided_and_no_clipping() -> None:
    old, up, down = tensor(0.0).detach(), tensor(math.log(4.0)), tensor(math.log(0.25))
    plus, minus = tensor(1.0).detach(), tensor(-1.0).detach()
    assert policy_gradient(up, plus, old).item() == pytest.approx(-4)
    assert policy_gradient(up, plus, old, clip_high=0.2).item() == pytest.approx(-1.2)
    assert policy_gradient(up, plus, old, clip_low=0.2).item() == pytest.approx(-4)
    assert policy_gradient(down, minus, old, clip_high=0.2).item() == pytest.approx(0.25)
    assert policy_gradient(down, minus, old, clip_low=0.2).item() == pytest.approx(0.8)
