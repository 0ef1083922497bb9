"""sparring.lm.head: log-probabilities, KL, entropy and their gradients against plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparring.lm.head import head_scores


def plain(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    ref_hidden: Tensor,
    ref_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same numbers by ordinary autograd over the full logits."""
    logp = torch.log_softmax(hidden @ weight.T / temperature, -1)
    ref = torch.log_softmax(ref_hidden @ ref_weight.T / temperature, -1)
    kl = (logp.exp() * (logp - ref)).sum(-1)
    return logp.gather(1, targets[:, None]).squeeze(1), kl, -(logp.exp() * logp).sum(-1)


def random_case(S: int, V: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "hidden_SD": torch.randn(S, D, generator=rng, dtype=dtype).requires_grad_(),
        "weight_VD": torch.randn(V, D, generator=rng, dtype=dtype).requires_grad_(),
        "targets_S": torch.randint(0, V, (S,), generator=rng),
        "ref_hidden_SD": torch.randn(S, D + 1, generator=rng, dtype=dtype),
        "ref_weight_VD": torch.randn(V, D + 1, generator=rng, dtype=dtype),
    }


def test_two_tokens_by_hand():
    # Logits (ln 3, 0): π = (3/4, 1/4). Reference (0, 0): π_ref = (1/2, 1/2).
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[math.log(3.0)], [0.0]], requires_grad=True)
    scores = head_scores(
        hidden,
        weight,
        torch.tensor([1]),
        ref_hidden_SD=torch.ones(1, 1),
        ref_weight_VD=torch.zeros(2, 1),
        entropy=True,
    )
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert scores.kl_S is not None and scores.entropy_S is not None
    assert scores.logprobs_S.item() == pytest.approx(math.log(0.25))
    assert scores.kl_S.item() == pytest.approx(kl)
    assert scores.entropy_S.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert not scores.entropy_S.requires_grad
    (by_lp,) = torch.autograd.grad(scores.logprobs_S, weight, retain_graph=True)
    assert by_lp.flatten().tolist() == pytest.approx([-0.75, 0.75])
    (by_kl,) = torch.autograd.grad(scores.kl_S, weight)
    expected = [0.75 * (math.log(1.5) - kl), 0.25 * (math.log(0.5) - kl)]
    assert by_kl.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("chunk", [1, 9, 10_000], ids=["row by row", "blocks", "one chunk"])
def test_gradcheck(chunk: int):
    case = random_case(5, 7, 4)
    hidden, weight = case.pop("hidden_SD"), case.pop("weight_VD")

    def both(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        scores = head_scores(hidden, weight, **case, temperature=0.7, chunk_elements=chunk)
        assert scores.kl_S is not None
        return scores.logprobs_S, scores.kl_S

    assert torch.autograd.gradcheck(both, (hidden, weight))


@settings(max_examples=40, deadline=None)
@given(
    S=st.integers(1, 9),
    V=st.integers(1, 40),
    D=st.integers(1, 6),
    chunk=st.integers(1, 400),
    temperature=st.floats(0.3, 2.0),
    seed=st.integers(0, 2**31),
)
def test_any_shape_and_chunk_equals_plain_autograd(S, V, D, chunk, temperature, seed):
    case = random_case(S, V, D, seed)
    scores = head_scores(**case, temperature=temperature, entropy=True, chunk_elements=chunk)
    want = plain(**{k.removesuffix("_SD").removesuffix("_VD").removesuffix("_S"): v for k, v in case.items()},
                 temperature=temperature)  # fmt: skip
    got = (scores.logprobs_S, scores.kl_S, scores.entropy_S)
    for ours, theirs in zip(got, want, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs)
    pull = torch.randn(2, S, dtype=torch.float64)
    inputs = (case["hidden_SD"], case["weight_VD"])
    ours = torch.autograd.grad((scores.logprobs_S, scores.kl_S), inputs, tuple(pull))
    theirs = torch.autograd.grad(want[:2], inputs, tuple(pull))
    torch.testing.assert_close(ours, theirs)


def test_reference_equal_to_policy_has_exactly_no_kl_and_no_gradient():
    case = random_case(6, 11, 4, dtype=torch.float32)
    hidden, weight = case["hidden_SD"], case["weight_VD"]
    scores = head_scores(
        hidden, weight, case["targets_S"], ref_hidden_SD=hidden, ref_weight_VD=weight, chunk_elements=22
    )
    assert scores.kl_S is not None
    assert scores.kl_S.abs().max() < 1e-6
    scores.kl_S.sum().backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-5


@pytest.mark.parametrize("chunk", [300, None])
def test_bfloat16_stays_close_and_returns_float32(chunk: int | None):
    case = random_case(40, 50, 16, dtype=torch.float32)
    low = {k: v.detach().bfloat16() if v.is_floating_point() else v for k, v in case.items()}
    low["hidden_SD"].requires_grad_()
    low["weight_VD"].requires_grad_()
    # The oracle starts from the rounded values, so only the arithmetic differs.
    high = {
        k: v.detach().float().requires_grad_(v.requires_grad) if v.is_floating_point() else v for k, v in low.items()
    }
    ours = head_scores(**low, chunk_elements=chunk)
    theirs = head_scores(**high)
    assert ours.kl_S is not None and theirs.kl_S is not None
    assert ours.logprobs_S.dtype == ours.kl_S.dtype == torch.float32
    torch.testing.assert_close(ours.logprobs_S, theirs.logprobs_S, atol=0.06, rtol=0)
    (ours.logprobs_S.sum() + ours.kl_S.sum()).backward()
    (theirs.logprobs_S.sum() + theirs.kl_S.sum()).backward()
    for name in ("hidden_SD", "weight_VD"):
        got, want = low[name].grad, high[name].grad
        assert got is not None and want is not None and got.dtype == torch.bfloat16
        assert (got.float() - want).norm() < 0.02 * want.norm()


def test_only_one_input_needs_gradient():
    case = random_case(5, 7, 4)
    whole = torch.autograd.grad(head_scores(**case).logprobs_S.sum(), case["weight_VD"])[0]
    case["hidden_SD"].requires_grad_(False)
    alone = torch.autograd.grad(head_scores(**case, chunk_elements=8).logprobs_S.sum(), case["weight_VD"])[0]
    torch.testing.assert_close(alone, whole)


def test_no_positions():
    case = random_case(0, 7, 4)
    scores = head_scores(**case, entropy=True)
    assert scores.logprobs_S.shape == (0,)
    scores.logprobs_S.sum().backward()
    assert case["weight_VD"].grad is not None and not case["weight_VD"].grad.any()


def test_full_logits_are_never_held():
    """Peak of the saved tensors: S·V floats would be 4 MB; what autograd keeps is far below."""
    case = random_case(1024, 1024, 8, dtype=torch.float32)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        head_scores(**case, chunk_elements=2**14)
    assert max(kept) <= 1024 * 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "above 0"),
        ({"ref_weight_VD": None}, "both"),
        ({"ref_weight_VD": torch.zeros(8, 5, dtype=torch.float64)}, "one vocabulary"),
        ({"targets_S": torch.zeros(4, dtype=torch.long)}, "shapes disagree"),
        ({"weight_VD": torch.zeros(7, 3, dtype=torch.float64)}, "shapes disagree"),
    ],
)
def test_errors(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        head_scores(**(random_case(5, 7, 4) | change))
