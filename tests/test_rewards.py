"""Reward functions: both signatures, sync and async, columns, and errors that name the reward."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripted import STOP, ids_of, turn_of
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward, RewardError, load_reward
from sparring.roles import Role
from sparring.types import Turn

ROLE = Role("solver", "{{ query }}", SamplingParams(8), system="be brief")


def answers(*texts: str, **columns: Sequence[Any]) -> list[Turn]:
    return [
        turn_of(ROLE, ROLE.prompt(query=f"q{i}", info={name: values[i] for name, values in columns.items()}), text)
        for i, text in enumerate(texts)
    ]


def test_our_signature() -> None:
    def reward(queries: list[str], answers: list[str]) -> list[float]:
        return [len(q) + 10 * len(a) for q, a in zip(queries, answers, strict=True)]

    assert Reward(reward)(["q", "qq"], answers("a", "aaa", unused=[1, 2])) == [11.0, 32.0]
    assert Reward(reward).name == "reward"


def test_our_signature_async() -> None:
    async def reward(queries: list[str], answers: list[str]) -> list[float]:
        async def one(answer: str) -> float:
            await asyncio.sleep(0)
            return float(len(answer))

        return list(await asyncio.gather(*map(one, answers)))

    assert Reward(reward)(["q", "q"], answers("a", "bb")) == [1.0, 2.0]


def test_trls_signature_unchanged() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts, completions, completion_ids, level, **kwargs):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, level=level, kwargs=kwargs)
        return [float(len(c[0]["content"])) for c in completions]

    turns = answers("a", "bb", level=[1, 2], source=["x", "y"])
    assert Reward(reward)(["q0", "q1"], turns) == [1.0, 2.0]
    assert seen["prompts"][1] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "q1"},
    ]
    assert seen["completions"][1] == [{"role": "assistant", "content": "bb"}]
    assert seen["ids"] == [[*ids_of("a"), STOP], [*ids_of("bb"), STOP]]
    assert seen["level"] == [1, 2]
    assert seen["kwargs"] == {"source": ["x", "y"]}


def test_trls_signature_async_and_without_keywords() -> None:
    async def reward(completions):
        return [1.0 for _ in completions]

    assert Reward(lambda completions, prompts: [0.5] * len(prompts))(["q"], answers("a")) == [0.5]
    with pytest.raises(RewardError, match="prompts"):
        Reward(reward)(["q"], answers("a"))


def test_columns_arrive_by_name_and_only_where_asked_for() -> None:
    turns = answers("a", "b", solution=["x", "y"], family=["f", "g"], queries=["never", "never"])
    some = Reward(lambda queries, answers, solution: [float(s == "x") for s in solution])
    every = Reward(lambda queries, answers, **columns: [float(len(columns))] * len(answers))
    assert some(["q", "q"], turns) == [1.0, 0.0]
    assert every(["q", "q"], turns) == [2.0, 2.0]


def test_a_column_that_some_prompts_lack_is_none_there() -> None:
    turns = [*answers("a", solution=["x"]), *answers("b")]
    reward = Reward(lambda queries, answers, solution: [None if s is None else 1.0 for s in solution])
    assert reward(["q", "q"], turns) == [1.0, None]


def test_no_answers_no_call() -> None:
    def reward(queries: list[str], answers: list[str]) -> list[float]:
        raise AssertionError

    assert Reward(reward)([], []) == []


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 2.0, 3.0]])
def test_the_wrong_count_is_named(scores: list[float]) -> None:
    with pytest.raises(RewardError, match=f"'judge' returned {len(scores)} scores for 2 answers"):
        Reward(lambda queries, answers: scores, "judge")(["q", "q"], answers("a", "b"))


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_a_score_that_is_not_finite_is_named(score: float) -> None:
    with pytest.raises(RewardError, match=r"'judge' returned (nan|-?inf|1e\+300) for answer 1 \('bad one'\)"):
        Reward(lambda queries, answers: [1.0, score], "judge")(["q", "q"], answers("a", "bad one"))


@pytest.mark.parametrize("score", ["high", "1.0", [1.0], {}])
def test_a_score_that_is_no_number_is_named(score: Any) -> None:
    with pytest.raises(RewardError, match=r"'judge' returned .* for answer 0"):
        Reward(lambda queries, answers: [score], "judge")(["q"], answers("a"))


@pytest.mark.parametrize("result", [None, 1.0, iter([1.0])])
def test_a_result_that_is_no_list_is_named(result: Any) -> None:
    with pytest.raises(RewardError, match="'judge' returned"):
        Reward(lambda queries, answers: result, "judge")(["q"], answers("a"))


def test_a_reward_that_raises_is_named() -> None:
    def judge(queries: list[str], answers: list[str]) -> list[float]:
        return [1 / 0]

    with pytest.raises(RewardError, match="'judge' raised ZeroDivisionError: division by zero") as raised:
        Reward(judge)(["q"], answers("a"))
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_numbers_of_other_kinds_become_floats() -> None:
    scores: list[Any] = [True, np.float32(0.5), torch.tensor(2.0), 3]
    got = Reward(lambda queries, answers: scores)(["q"] * 4, answers(*"abcd"))
    assert got == [1.0, 0.5, 2.0, 3.0]
    assert all(type(score) is float for score in got)


def test_load_reward_from_file_and_module(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def short(queries, answers):\n    return [1 / len(a) for a in answers]\n")
    reward = load_reward(f"{file}:short")
    assert reward(["q"], answers("four")) == [0.25]
    assert reward.name.endswith("mine.py:short")
    assert load_reward("operator:countOf").name == "operator:countOf"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "takes package.module:name or file.py:name"),
        ("no/such.py:f", "there is no file no/such.py"),
        ("no_such_package.x:f", "no module 'no_such_package.x'"),
        ("sparring.losses:k9", "has no 'k9'; it has: .*k3"),
    ],
)
def test_what_cannot_be_loaded_is_named(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_reward(target)
    assert "--reward" in str(raised.value) or "sparring.losses" in str(raised.value)


def test_an_async_reward_inside_a_running_loop() -> None:
    async def judge(queries: list[str], answers: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(answer)) for answer in answers]

    async def notebook() -> list[float | None]:
        return Reward(judge)(["q", "q"], answers("a", "bb"))

    assert asyncio.run(notebook()) == [1.0, 2.0]
