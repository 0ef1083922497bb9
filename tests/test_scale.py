"""Scales by hand and against numpy; a scaled reward behaves as the function it wraps."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripted import turn_of
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward, RewardError
from sparring.rewards.scale import Raw, Scale, Scaled, Sigmoid, Standardised
from sparring.roles import Role
from sparring.types import Turn

ROLE = Role("solver", "{{ query }}", SamplingParams(8))
SCORES = st.floats(-1e6, 1e6, allow_nan=False)
BATCHES = st.lists(st.lists(st.none() | SCORES, max_size=8), max_size=6)


def turns(*texts: str) -> list[Turn]:
    return [turn_of(ROLE, ROLE.prompt(query="q", info={"query_text": "q"}), text) for text in texts]


def of_text(queries: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    """A score is the answer, read as a number; "?" can't be scored."""
    return [None if answer == "?" else float(answer) for answer in answers]


def test_raw_changes_nothing() -> None:
    assert Raw()([1.5, None, -2.0]) == [1.5, None, -2.0]
    assert Raw().state() == {}


def test_sigmoid_by_hand() -> None:
    got = Sigmoid()([0.0, math.log(3), -math.log(3), None])
    assert got[3] is None
    assert [got[0], got[1], got[2]] == pytest.approx([0.5, 0.75, 0.25])


def test_sigmoid_does_not_overflow() -> None:
    assert Sigmoid()([1e30, -1e30, -700.0]) == [1.0, 0.0, pytest.approx(math.exp(-700))]


@given(st.floats(-1e30, 1e30))
def test_sigmoid_is_between_its_bounds_and_symmetric(score: float) -> None:
    up, down = Sigmoid()([score, -score])
    assert up is not None and down is not None
    assert 0 <= up <= 1
    assert up + down == pytest.approx(1)


def test_standardised_by_hand() -> None:
    scale = Standardised()
    assert scale([1.0, 3.0]) == [-1.0, 1.0]  # mean 2, std 1
    assert scale([None, 5.0]) == [None, pytest.approx(2 / math.sqrt(8 / 3))]  # 1, 3, 5: mean 3, variance 8/3
    assert scale([]) == []
    assert scale([None]) == [None]
    assert scale([3.0]) == [0.0]
    assert scale.state() == {"count": 4, "mean": 3.0, "squares": 8.0}


@pytest.mark.parametrize("score", [0.0, 0.1, -1e6, 1e30, 1 / 3])
def test_scores_without_spread_become_zero(score: float) -> None:
    """0.1 thrice has a mean that is not 0.1, and so a std of 1e-17, in floating point."""
    scale = Standardised()
    for size in (1, 3, 7, 2):
        assert scale([score] * size) == [0.0] * size


@given(BATCHES)
def test_standardised_agrees_with_numpy_over_all_that_was_seen(batches: list[list[float | None]]) -> None:
    scale, seen = Standardised(), []
    for batch in batches:
        known = [score for score in batch if score is not None]
        seen += known
        got = scale(batch)
        assert [score is None for score in got] == [score is None for score in batch]
        if not known or np.std(seen) <= 1e-9 * np.max(np.abs(seen)):
            continue
        expected = (np.array(known) - np.mean(seen)) / np.std(seen)
        np.testing.assert_allclose([score for score in got if score is not None], expected, rtol=1e-6, atol=1e-6)


@given(BATCHES, st.integers(0, 6))
def test_standardised_goes_on_from_a_checkpoint_as_if_never_stopped(
    batches: list[list[float | None]], cut: int
) -> None:
    whole, first, second = Standardised(), Standardised(), Standardised()
    expected = [whole(batch) for batch in batches]
    got = [first(batch) for batch in batches[:cut]]
    second.restore(json.loads(json.dumps(first.state())))
    assert got + [second(batch) for batch in batches[cut:]] == expected


@pytest.mark.parametrize("scale", [Raw(), Sigmoid(), Standardised()])
@pytest.mark.parametrize("score", [math.nan, math.inf, 1e300, "high", [1.0]])
def test_what_is_no_score_is_named_as_it_was_given(scale: Scale, score: Any) -> None:
    """A sigmoid would make 1 of infinity, and a running mean would never recover."""
    reward = Reward(Scaled(lambda queries, answers: [1.0, score], scale), "judge")
    with pytest.raises(RewardError, match=r"'judge' returned .* for answer 1") as raised:
        reward(["q", "q"], turns("a", "b"))
    assert repr(score) in str(raised.value)
    assert all(math.isfinite(value) for value in scale.state().values())


def test_numbers_of_other_kinds_are_scaled() -> None:
    scores: list[Any] = [torch.tensor(0.0), np.float32(0.0), False, 0]
    assert Scaled(lambda queries, answers: scores, Sigmoid())([], []) == [0.5] * 4


class Judge:
    """A reward object with everything one may have."""

    def __init__(self) -> None:
        self.calls, self.closed = 0, False

    def __call__(self, queries: Any, answers: Any, conversations: Any, level: Any) -> list[float | None]:
        assert [c[-1]["content"] for c in conversations] == answers
        assert level == [7] * len(answers)
        self.calls += 1
        return of_text(queries, answers)

    def drain(self) -> dict[str, float]:
        return {"over_long": 0.25}

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def restore(self, state: Any) -> None:
        self.calls = state["calls"]

    def close(self) -> None:
        self.closed = True


def levelled(*texts: str) -> list[Turn]:
    return [
        turn_of(ROLE, ROLE.prompt(query="q", info={"query_text": "q", "level": 7, "other": 1}), text) for text in texts
    ]


def test_a_scaled_reward_is_given_what_the_function_names() -> None:
    judge = Judge()
    reward = Reward(Scaled(judge, Standardised()))
    assert reward.name == "Judge"
    assert reward(["q"] * 3, levelled("1", "?", "3")) == [-1.0, None, 1.0]
    assert reward.drain() == {"over_long": 0.25, "raw": 2.0}
    assert reward.drain() == {"over_long": 0.25}, "nothing was scored since"
    reward(["q"], levelled("8"))
    assert reward.drain()["raw"] == 8.0
    reward.close()
    assert judge.closed


def test_a_scaled_reward_goes_on_from_a_checkpoint() -> None:
    first, second = (Reward(Scaled(Judge(), Standardised())) for _ in range(2))
    first(["q"] * 2, levelled("1", "3"))
    second.restore(json.loads(json.dumps(first.state())))
    assert (
        second.state()
        == first.state()
        == {
            "scale": {"count": 2, "mean": 2.0, "squares": 2.0},
            "function": {"calls": 1},
        }
    )
    assert second(["q"], levelled("5")) == first(["q"], levelled("5"))


def test_raw_scores_are_not_told_twice() -> None:
    reward = Reward(Scaled(of_text, Raw()))
    assert reward.name == "of_text"
    assert reward(["q"], turns("2")) == [2.0]
    assert reward.drain() == {}
    assert reward.state() == {"scale": {}, "function": {}}
    reward.restore(reward.state())


def test_an_async_function_under_a_scale() -> None:
    class Served:
        closed = False

        async def __call__(self, queries: Any, answers: Any) -> list[float | None]:
            await asyncio.sleep(0)
            return of_text(queries, answers)

        async def close(self) -> None:
            self.closed = True

    served = Served()
    reward = Reward(Scaled(served, Sigmoid()))
    assert reward(["q"] * 2, turns("0", "?")) == [0.5, None]
    reward.close()
    assert served.closed


def test_trls_signature_under_a_scale() -> None:
    def judge(prompts, completions, **kwargs):
        assert set(kwargs) == {"completion_ids"}
        return [float(c) for c in completions]

    assert Reward(Scaled(judge, Sigmoid()))(["q"], turns("0")) == [0.5]
