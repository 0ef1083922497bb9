"""V, A_Sol and A_Ch against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.advantages import centred, is_dead, standardised

payoffs = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)


def test_centred_by_hand() -> None:
    np.testing.assert_allclose(centred([1, 1, 0]), [1 / 3, 1 / 3, -2 / 3], atol=1e-15)
    np.testing.assert_allclose(centred([4, 0, -1, 1]), [3, -1, -2, 0])
    assert centred([]).size == 0


def test_standardised_by_hand() -> None:
    # mean 1, squared deviations 9 + 1 + 4 + 0 = 14, unbiased variance 14 / 3
    std = (14 / 3) ** 0.5
    np.testing.assert_allclose(standardised([4, 0, -1, 1]), np.array([3, -1, -2, 0]) / (std + 1e-4), rtol=1e-14)
    np.testing.assert_allclose(standardised([1, 1, 0], epsilon=0), np.array([1, 1, -2]) / 3 / 3**-0.5)


@pytest.mark.parametrize("scale", [centred, standardised])
def test_groups_without_spread_teach_nothing(scale) -> None:
    assert scale([0.7]).tolist() == [0.0]
    assert scale([0.25, 0.25, 0.25]).tolist() == [0.0, 0.0, 0.0]
    assert is_dead([0.25, 0.25]) and is_dead([3.0]) and is_dead([])
    assert not is_dead([0.25, 0.5])


def test_a_sol_centres_each_query_by_itself() -> None:
    first, second = (centred(reward_G) for reward_G in ([1, 1, 0], [0, 4]))
    np.testing.assert_allclose(first, [1 / 3, 1 / 3, -2 / 3], atol=1e-15)
    np.testing.assert_allclose(second, [-2, 2])


def test_a_ch_of_lsp_zero_is_mean_value_minus_value() -> None:
    values = [np.mean(reward_G) for reward_G in ([1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0])]  # ½, 1, 0; their mean ½
    np.testing.assert_allclose(centred([-v for v in values]), [0, -0.5, 0.5])


def test_a_ch_of_lsp_adds_quality() -> None:
    # −V + V_Q = −½ + 1, −1 + 1, 0 + ¼; the mean is ¼
    np.testing.assert_allclose(centred([0.5, 0, 0.25]), [0.25, -0.25, 0])


@given(payoffs)
def test_advantages_sum_to_zero_and_keep_the_order(payoff: list[float]) -> None:
    for advantage in (centred(payoff), standardised(payoff)):
        assert abs(advantage.sum()) < 1e-8 * (1 + np.abs(payoff).sum()) / 1e-4
        order = np.argsort(payoff, kind="stable")
        assert (np.diff(advantage[order]) >= -1e-9).all()
    assert abs(centred(payoff).sum()) < 1e-12 * (1 + np.abs(payoff).sum())


@given(payoffs, st.floats(-1e3, 1e3), st.floats(0.1, 10))
def test_a_shift_changes_nothing_and_a_scale_scales(payoff: list[float], shift: float, scale: float) -> None:
    moved = centred(np.array(payoff) * scale + shift)
    np.testing.assert_allclose(moved, centred(payoff) * scale, atol=1e-8)
