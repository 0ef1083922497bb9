"""Sampling by the inverse CDF, and the filters before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sparring.lm.base import SamplingParams
from sparring.lm.llama_sample import draw, filter_logprobs, id_mask

P = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


def kept(params: SamplingParams, banned: tuple[int, ...] = ()) -> list[int]:
    mask = torch.from_numpy(id_mask(banned, 4, "banned_ids")) if banned else None
    return torch.isfinite(filter_logprobs(P.log(), params, mask))[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("u", "token"), [(0.0, 0), (0.05, 0), (0.15, 1), (0.49, 1), (0.55, 2), (0.75, 3), (0.99999994, 3)]
)
def test_inverse_cdf_by_hand(u: float, token: int) -> None:
    assert draw(P, torch.tensor([u])).tolist() == [token]


@pytest.mark.parametrize("u", [0.0, 0.3, 0.99999994])
def test_zero_probability_is_never_drawn(u: float) -> None:
    only_one = torch.tensor([[float("-inf"), float("-inf"), -200.0, float("-inf")]])
    assert draw(torch.softmax(only_one, -1), torch.tensor([u])).tolist() == [2]


def test_inverse_cdf_matches_the_distribution() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=12)).float()
    uniforms = torch.from_numpy(rng.random(20000, dtype=np.float32))
    tokens = draw(torch.softmax(logits, -1).expand(20000, -1), uniforms)
    counts = np.bincount(tokens.numpy(), minlength=12)
    expected = 20000 * torch.softmax(logits.double(), -1).numpy()
    assert stats.chisquare(counts, expected).pvalue > 0.01


def test_filters_by_hand() -> None:
    assert kept(SamplingParams(1)) == [0, 1, 2, 3]
    assert kept(SamplingParams(1, top_k=2)) == [1, 3]
    assert kept(SamplingParams(1, top_k=9)) == [0, 1, 2, 3]
    assert kept(SamplingParams(1, top_p=0.39)) == [1]
    assert kept(SamplingParams(1, top_p=0.65)) == [1, 3]
    assert kept(SamplingParams(1, top_p=0.75)) == [1, 2, 3]
    # Without token 1 the rest is 1/6, 2/6, 3/6.
    assert kept(SamplingParams(1, top_p=0.45), banned=(1,)) == [3]
    assert kept(SamplingParams(1, top_p=0.8), banned=(1,)) == [2, 3]
    # The two likeliest are 4/7 and 3/7.
    assert kept(SamplingParams(1, top_k=2, top_p=0.5)) == [1]
    assert kept(SamplingParams(1, top_k=1), banned=(1, 3)) == [2]


def test_no_filter_returns_the_input() -> None:
    logprobs = P.log()
    assert filter_logprobs(logprobs, SamplingParams(1), None) is logprobs


def test_id_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(ValueError, match=r"stop_ids must lie in \[0, 4\), not \[4, -1\]"):
        id_mask((4, 1, -1), 4, "stop_ids")
