"""Reward functions: both signatures, sync and async, columns, and errors that name the reward."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripted import STOP, ids_of, turn_of
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward, RewardError, load_object, load_reward
from sparring.roles import Role
from sparring.types import Prompt, Turn

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
        return [float(len(c)) for c in completions]

    turns = answers("a", "bb", level=[1, 2], source=["x", "y"], query_text=["the row", "itself"], log_metric=[0, 0])
    assert Reward(reward)(["q0", "q1"], turns) == [1.0, 2.0]
    assert seen["prompts"] == ["the row", "itself"]
    assert seen["completions"] == ["a", "bb"]
    assert seen["ids"] == [[*ids_of("a"), STOP], [*ids_of("bb"), STOP]]
    assert seen["level"] == [1, 2]
    assert seen["kwargs"] == {"source": ["x", "y"]}
    Reward(reward)(["q0"], answers("a", level=[1]))
    assert seen["prompts"] == ["q0"], "without query_text: what the model was asked"


def test_trls_signature_gets_messages_where_the_prompt_came_as_messages() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts, completions, **kwargs):
        seen.update(prompts=prompts, completions=completions, kwargs=kwargs)
        return [float(len(c[0]["content"])) for c in completions]

    turns = answers("a", "bb", conversational=[True, True], query_text=["q0", "q1"])
    assert Reward(reward)(["q0", "q1"], turns) == [1.0, 2.0]
    assert seen["prompts"][1] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "q1"},
    ]
    assert seen["completions"][1] == [{"role": "assistant", "content": "bb"}]
    assert set(seen["kwargs"]) == {"completion_ids"}


CHAT = ({"role": "system", "content": "s"}, {"role": "user", "content": "first"}, {"role": "assistant", "content": "r"})


def test_conversations_end_with_the_answers() -> None:
    """The row's own messages where there are some, else the query as it was asked for, not the role's wording of it."""
    seen: list[Any] = []

    def judge(queries, answers, conversations):
        seen.append(conversations)
        return [0.0] * len(answers)

    (of_text,) = answers("a", query_text=["the row itself"])
    asked = {"role": "user", "content": "second"}
    of_messages = turn_of(ROLE, Prompt((*CHAT, asked), None, {"conversational": True, "query_text": "second"}), "bb")
    Reward(judge)(["q0", "q1"], [of_text, of_messages])
    assert seen == [
        [
            [{"role": "user", "content": "the row itself"}, {"role": "assistant", "content": "a"}],
            [*CHAT, asked, {"role": "assistant", "content": "bb"}],
        ]
    ]


def test_conversations_are_ours_and_no_column() -> None:
    ours: list[Any] = []

    def trls(prompts, completions, conversations):
        ours.extend(conversations)
        return [0.0] * len(completions)

    (turn,) = answers("a", conversations=["the data set's"])
    Reward(trls)(["q0"], [turn])
    assert ours == [[{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a"}]]
    every = Reward(lambda queries, answers, **columns: [float(len(columns))])
    assert every(["q0"], [turn]) == [0.0], "given only where it is named"


class Remembering:
    """A reward object with everything one may have."""

    def __init__(self) -> None:
        self.calls, self.closed = 0, False

    def __call__(self, queries: list[str], answers: list[str]) -> list[float]:
        self.calls += len(answers)
        return [float(self.calls)] * len(answers)

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def restore(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]

    def drain(self) -> dict[str, float]:
        return {"calls": float(self.calls)}

    def close(self) -> None:
        self.closed = True


def test_what_a_reward_object_remembers_goes_through_a_checkpoint() -> None:
    first, second = Reward(Remembering()), Reward(Remembering())
    first(["q", "q"], answers("a", "b"))
    assert first.state() == {"calls": 2}
    second.restore(first.state())
    assert second(["q"], answers("a")) == [3.0] == first(["q"], answers("a"))


def test_a_reward_that_remembers_nothing_takes_nothing_back() -> None:
    forgetful = Reward(lambda queries, answers: [0.0] * len(answers), "judge")
    assert forgetful.state() == {}
    forgetful.restore({})
    with pytest.raises(RewardError, match=r"'judge' remembers nothing, but the checkpoint holds .*\(calls\)"):
        forgetful.restore({"calls": 2})


def test_a_reward_objects_own_figures_are_drained_with_what_was_logged() -> None:
    class Judge(Remembering):
        def __call__(self, prompts: Any, completions: list[str], log_metric: Any) -> list[float]:
            log_metric("length", len(completions[0]))
            return [0.0]

    reward = Reward(Judge())
    reward(["q"], answers("four"))
    assert reward.drain() == {"length": 4.0, "calls": 0.0}


def test_a_reward_object_is_closed() -> None:
    judge = Remembering()
    Reward(judge).close()
    assert judge.closed
    Reward(lambda queries, answers: [0.0]).close()


@pytest.mark.parametrize("called", [True, False])
def test_an_async_reward_object_is_closed_in_the_loop_it_was_called_in(called: bool) -> None:
    loops: list[Any] = []

    class Judge:
        async def __call__(self, queries: list[str], answers: list[str]) -> list[float]:
            loops.append(asyncio.get_running_loop())
            return [0.0]

        async def close(self) -> None:
            loops.append(asyncio.get_running_loop())

    reward = Reward(Judge())
    if called:
        reward(["q"], answers("a"))
    reward.close()
    assert len(loops) == 1 + called
    assert len(set(loops)) == 1


def test_what_trls_signature_logs_is_averaged_until_it_is_drained() -> None:
    def judge(completions, log_metric, log_extra, trainer_state=None, **kwargs):
        assert trainer_state is None
        log_extra("verdict", ["fine"] * len(completions))
        log_metric("length", torch.tensor(float(len(completions[0]))))
        if len(completions[0]) > 2:
            log_metric("long", 1)
        return [1.0] * len(completions)

    reward = Reward(judge)
    for text in ("a", "four"):
        reward(["q"], answers(text))
    assert reward.logged == {"length": 2.5, "long": 1.0}
    assert reward.drain() == {"length": 2.5, "long": 1.0}
    assert reward.logged == {}
    reward(["q"], answers("bb"))
    assert reward.drain() == {"length": 2.0}


def test_trls_trainer_state_is_refused_where_the_function_needs_it() -> None:
    def judge(completions, trainer_state):
        return [float(trainer_state.global_step)] * len(completions)

    with pytest.raises(RewardError, match="'judge': trainer_state is not supplied"):
        Reward(judge)


def test_an_answer_whose_prompt_was_too_long_is_not_scored() -> None:
    seen: list[Any] = []

    def judge(queries: list[str], answers: list[str], level: list[int]) -> list[float]:
        seen.append((queries, answers, level))
        return [10.0 * n for n in level]

    first, second, third = answers("a", "", "c", level=[1, 2, 3])
    cut = second.noting(too_long=True)
    assert Reward(judge)(["q0", "q1", "q2"], [first, cut, third]) == [10.0, None, 30.0]
    assert Reward(judge)(["q1", "q1"], [cut, cut]) == [None, None]
    assert seen == [(["q0", "q2"], ["a", "c"], [1, 3])]


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


@pytest.mark.parametrize("stem", ["judge_with_a_dataclass", "json"])  # no file may hide another module
def test_a_file_with_a_dataclass_under_lazy_annotations_loads(tmp_path: Path, stem: str) -> None:
    file = tmp_path / f"{stem}.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclass\nclass Judge:\n    weight: float = 0.5\n    kind: ClassVar[str] = 'judge'\n"
        "    def __call__(self, queries, answers):\n        return [self.weight for _ in answers]\n"
        "judge = Judge()\n"
    )
    before = sys.modules.get(stem)
    assert load_reward(f"{file}:judge")(["q"], answers("a")) == [0.5]
    assert sys.modules.get(stem) is before


def test_a_module_in_the_working_directory_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "judge_of_this_folder.py").write_text("def one(queries, answers):\n    return [1.0 for _ in answers]\n")
    try:
        assert load_reward("judge_of_this_folder:one")(["q"], answers("a")) == [1.0]
    finally:
        sys.modules.pop("judge_of_this_folder", None)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("def f(:\n", "SyntaxError: .*line 1"),
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("from math import no_such_name\n", "ImportError: cannot import name 'no_such_name'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("form", ["file", "module"])
def test_code_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, cause: str, form: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_judge.py").write_text(code)
    source = str(tmp_path / "broken_judge.py") if form == "file" else "broken_judge"
    modules = set(sys.modules)
    with pytest.raises(ValueError, match=rf"game\.custom: .*broken_judge.* can't be imported \({cause}"):
        load_object(f"{source}:f", "game.custom")
    assert set(sys.modules) == modules


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


class Client:
    """Bound to the loop it is first used in, like an HTTP client with its connections."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, text: str) -> float:
        running = asyncio.get_running_loop()
        self.loop = self.loop or running
        assert self.loop is running
        await asyncio.sleep(0)
        return float(len(text))


@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_an_async_reward_keeps_its_client_between_calls(inside_a_loop: bool) -> None:
    client = Client()

    async def judge(queries: list[str], answers: list[str]) -> list[float]:
        return list(await asyncio.gather(*map(client.ask, answers)))

    reward = Reward(judge)

    def calls() -> list[list[float | None]]:
        return [reward(["q"], answers("a")), reward(["q", "q"], answers("bb", "ccc"))]

    async def notebook() -> list[list[float | None]]:
        return calls()

    assert (asyncio.run(notebook()) if inside_a_loop else calls()) == [[1.0], [2.0, 3.0]]


def test_the_loop_of_an_async_reward_ends_with_the_reward() -> None:
    before = set(threading.enumerate())

    async def judge(queries: list[str], answers: list[str]) -> list[float]:
        return [1.0 for _ in answers]

    reward = Reward(judge)
    assert set(threading.enumerate()) == before, "made lazily"
    reward(["q"], answers("a"))
    (thread,) = set(threading.enumerate()) - before
    del reward
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
