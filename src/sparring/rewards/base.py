"""Rewards: plain callables, sync or async, ours or TRL's.

A reward is `(queries, answers, **columns) -> list[float | None]`: one number an answer, None where it can't
say. A function with a `completions` parameter is taken to have TRL's signature and is called TRL's way.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sparring.types import Message, Turn

RewardFunction = Callable[..., "Sequence[float | None] | Awaitable[Sequence[float | None]]"]


LARGEST = 1e12
"""Beyond this the squares of payoffs lose all precision, and nothing downstream could name the reward any more."""


class RewardError(ValueError):
    """A reward function raised, or returned something that is no reward."""


class Reward:
    """A user's reward function, checked.

    Args:
        function: `(queries, answers, **columns)`, or TRL's `(prompts, completions, **columns)`; may be async.
        name: how reports and errors call it.
    """

    def __init__(self, function: RewardFunction, name: str | None = None) -> None:
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self._function = function
        parameters = inspect.signature(function).parameters.values()
        self._trl = any(parameter.name == "completions" for parameter in parameters)
        self._any_column = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self._columns = {parameter.name for parameter in parameters}

    def __call__(self, queries: Sequence[str], answers: Sequence[Turn]) -> list[float | None]:
        """Score answers; columns are what the answers' prompts know (a data set's row, the query's family).

        Raises:
            RewardError: the function raised, returned the wrong count, or a number that is not finite.
        """
        if not answers:
            return []
        try:
            scores = self._call(queries, answers)
            if inspect.isawaitable(scores):
                scores = _wait_for(scores)
        except Exception as error:
            raise RewardError(f"reward {self.name!r} raised {type(error).__name__}: {error}") from error
        return self._checked(scores, answers)

    def _call(self, queries: Sequence[str], answers: Sequence[Turn]) -> Any:
        columns = self._wanted(_columns(answers))
        if not self._trl:
            return self._function(list(queries), [turn.text for turn in answers], **columns)
        given: dict[str, Any] = {
            "prompts": [list(turn.prompt.messages) for turn in answers],
            "completions": [_as_reply(turn) for turn in answers],
        }
        given |= self._wanted({"completion_ids": [list(turn.completion_ids) for turn in answers]})
        return self._function(**given, **columns)

    def _wanted(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        taken = {"queries", "answers", "prompts", "completions"}
        return {
            name: values
            for name, values in columns.items()
            if name not in taken and (self._any_column or name in self._columns)
        }

    def _checked(self, scores: Any, answers: Sequence[Turn]) -> list[float | None]:
        if not hasattr(scores, "__len__") or not hasattr(scores, "__iter__"):
            raise RewardError(
                f"reward {self.name!r} returned {scores!r}: it must return a list with one score an answer"
            )
        if len(scores) != len(answers):
            raise RewardError(
                f"reward {self.name!r} returned {len(scores)} scores for {len(answers)} answers: "
                "it must return one an answer, None where it can't say"
            )
        return [self._number(score, index, answers[index]) for index, score in enumerate(scores)]

    def _number(self, score: Any, index: int, answer: Turn) -> float | None:
        if score is None:
            return None
        try:
            number = math.nan if isinstance(score, str) else float(score)
        except (TypeError, ValueError):
            number = math.nan
        if not abs(number) <= LARGEST:
            raise RewardError(
                f"reward {self.name!r} returned {score!r} for answer {index} ({answer.text[:80]!r}): "
                f"return a finite number within ±{LARGEST:g}, or None to leave the answer out"
            )
        return number


def load_reward(target: str) -> Reward:
    """A reward by `package.module:function` or `file.py:function`."""
    return Reward(load_object(target, "--reward"), name=target)


def load_object(target: str, setting: str) -> Any:
    """Import `package.module:name` or `path/to/file.py:name`.

    Raises:
        ValueError: no such module, file or name; the message names the setting.
    """
    source, colon, name = target.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(f"{setting} takes package.module:name or file.py:name, not {target!r}")
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"{setting}: there is no file {source}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise ValueError(f"{setting}: no module {source!r} can be imported ({error})") from error
    if not hasattr(module, name):
        public = ", ".join(sorted(n for n in vars(module) if not n.startswith("_")))
        raise ValueError(f"{setting}: {source} has no {name!r}; it has: {public}")
    return getattr(module, name)


def _wait_for(awaitable: Awaitable[Any]) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_await(awaitable))
    # In a notebook this thread's loop is running already: the reward gets a thread, and so a loop, of its own.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _await(awaitable)).result()


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _columns(answers: Sequence[Turn]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for turn in answers for name in turn.info if isinstance(name, str))
    return {name: [turn.info.get(name) for turn in answers] for name in names}


def _as_reply(turn: Turn) -> list[Message]:
    return [{"role": "assistant", "content": turn.text}]
