"""Rewards: plain callables, sync or async, ours or TRL's.

A reward is `(queries, answers, **columns) -> list[float | None]`: one number an answer, None where it can't
say. A function with a `completions` parameter is taken to have TRL's signature and is called TRL's way: with
texts, or with lists of messages where the prompt came as messages. Either kind that names `conversations` gets the
chats that the answers end, as lists of messages.

An object may also have `state`/`restore` (what it remembers, as JSON), `drain` (figures since the last call) and
`close`; `Reward` passes them on.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sparring.http import Loop
from sparring.rewards.imports import load_object
from sparring.types import Message, Prompt, Turn

RewardFunction = Callable[..., "Sequence[float | None] | Awaitable[Sequence[float | None]]"]


LARGEST = 1e30
"""Beyond this advantages leave float32, and nothing downstream could name the reward any more."""

RESERVED = {"queries", "answers", "prompts", "completions", "conversations", "conversational", "query_text", "siblings"}
"""Names that are never passed as columns."""

TRLS_OWN = {"completion_ids", "trainer_state", "log_extra", "log_metric"}
"""What TRL's trainer passes beside the columns."""


class RewardError(ValueError):
    """A reward function raised, or returned something that is no reward."""


class Reward:
    """A user's reward function, checked.

    A function of TRL's signature that names `log_metric` gets it: the values are kept in `logged`. One that names
    `log_extra` gets a callable that drops what it is given (turns have no extra columns). `trainer_state` is never
    given. Async functions run in one event loop for the life of the Reward, so they may keep a client between calls.

    Args:
        function: `(queries, answers, **columns)`, or TRL's `(prompts, completions, **columns)`; may be async.
        name: how reports and errors call it.

    Raises:
        RewardError: a function of TRL's signature can't do without `trainer_state`.
    """

    def __init__(self, function: RewardFunction, name: str | None = None) -> None:
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self._function = function
        require = getattr(function, "require", None)
        if callable(require):  # what it can't do without: better missed here than after a first rollout
            require()
        parameters = inspect.signature(function).parameters
        self._trl = "completions" in parameters
        self._any_column = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self._named = set(parameters)
        self._values: dict[str, list[float]] = {}
        self._loop: Loop | None = None
        state = parameters.get("trainer_state")
        if self._trl and state is not None and state.default is state.empty:
            raise RewardError(f"reward {self.name!r}: trainer_state is not supplied here; give it a default (None)")

    @property
    def logged(self) -> dict[str, float]:
        """Each metric that the function gave to log_metric: its mean over the calls since the last drain()."""
        return {name: sum(values) / len(values) for name, values in self._values.items()}

    def drain(self) -> dict[str, float]:
        """`logged` and the function object's own figures, which then start anew."""
        logged = self.logged
        self._values.clear()
        return {**logged, **drained(self._function)}

    def state(self) -> dict[str, Any]:
        """What the function object remembers from call to call, as JSON; empty where it remembers nothing."""
        return state_of(self._function)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            RewardError: there is something to take back, and this reward has no `restore`.
        """
        restore_to(self._function, state, self.name)

    def close(self) -> None:
        """Let the function object close what it holds open (a server's connections)."""
        closing = closed(self._function)
        if inspect.isawaitable(closing):
            self._waited_for(closing)

    def __call__(self, queries: Sequence[str], answers: Sequence[Turn]) -> list[float | None]:
        """Score answers; columns are what the answers' prompts know (a data set's row, the query's family).

        An answer never sampled because its prompt was too long is not shown to the function; its score is None.

        Raises:
            RewardError: the function raised, returned the wrong count, or a number that is not finite.
        """
        sampled = [index for index, turn in enumerate(answers) if not turn.info.get("too_long")]
        scores: list[float | None] = [None] * len(answers)
        if sampled:
            given = self._scores([queries[index] for index in sampled], [answers[index] for index in sampled])
            for index, score in zip(sampled, given, strict=True):
                scores[index] = score
        return scores

    def _scores(self, queries: Sequence[str], answers: Sequence[Turn]) -> list[float | None]:
        try:
            scores = self._call(queries, answers)
            if inspect.isawaitable(scores):
                scores = self._waited_for(scores)
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(f"reward {self.name!r} raised {type(error).__name__}: {error}") from error
        return self._checked(scores, answers)

    def _waited_for(self, awaitable: Awaitable[Any]) -> Any:
        self._loop = self._loop or Loop("reward")
        return self._loop.wait_for(awaitable)

    def _call(self, queries: Sequence[str], answers: Sequence[Turn]) -> Any:
        columns = self._wanted(_columns(answers))
        if "conversations" in self._named:
            columns["conversations"] = [_conversation(turn) for turn in answers]
        if "siblings" in self._named:
            columns["siblings"] = _siblings(answers)
        if not self._trl:
            return self._function(list(queries), [turn.text for turn in answers], **columns)
        given: dict[str, Any] = {
            "prompts": [_prompt(turn) for turn in answers],
            "completions": [_completion(turn) for turn in answers],
        }
        if self._any_column or "completion_ids" in self._named:
            given["completion_ids"] = [list(turn.completion_ids) for turn in answers]
        loggers = {"log_extra": _drop, "log_metric": self._log_metric}
        given |= {name: logger for name, logger in loggers.items() if name in self._named}
        return self._function(**given, **columns)

    def _log_metric(self, name: str, value: float) -> None:
        self._values.setdefault(name, []).append(float(value))

    def _wanted(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        taken = RESERVED | TRLS_OWN if self._trl else RESERVED
        return {
            name: values
            for name, values in columns.items()
            if name not in taken and (self._any_column or name in self._named)
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


def state_of(holder: Any) -> dict[str, Any]:
    """What an object with `state` and `restore` remembers; empty for any other."""
    return dict(holder.state()) if _remembers(holder) else {}


def restore_to(holder: Any, state: Mapping[str, Any], name: str) -> None:
    """Give `state` back to the object it came from; raises RewardError where the object can't have made it."""
    if _remembers(holder):
        holder.restore(state)
    elif state:
        raise RewardError(
            f"reward {name!r} remembers nothing, but the checkpoint holds what a reward remembered "
            f"({', '.join(state)}): resume with the reward that the run began with"
        )


def drained(holder: Any) -> dict[str, float]:
    """An object's figures since it was last asked; none where it has no `drain`."""
    return dict(holder.drain()) if callable(getattr(holder, "drain", None)) else {}


def closed(holder: Any) -> Any:
    """What an object's `close` returns (an awaitable where it is async); None where it has none."""
    return holder.close() if callable(getattr(holder, "close", None)) else None


def _remembers(holder: Any) -> bool:
    return all(callable(getattr(holder, name, None)) for name in ("state", "restore"))


def load_reward(target: str) -> Reward:
    """A reward by `package.module:function` or `file.py:function`."""
    return Reward(load_object(target, "--reward"), name=target)


def _columns(answers: Sequence[Turn]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for turn in answers for name in turn.info if isinstance(name, str))
    return {name: [turn.info.get(name) for turn in answers] for name in names}


def _siblings(answers: Sequence[Turn]) -> list[int]:
    """The same number for answers to one prompt, by identity: two equal prompts are two."""
    numbers: dict[Prompt, int] = {}
    return [numbers.setdefault(turn.prompt, len(numbers)) for turn in answers]


def _prompt(turn: Turn) -> str | list[Message]:
    if turn.info.get("conversational"):
        return list(turn.prompt.messages)
    return str(turn.info.get("query_text", turn.prompt.messages[-1]["content"]))


def _completion(turn: Turn) -> str | list[Message]:
    return [{"role": "assistant", "content": turn.text}] if turn.info.get("conversational") else turn.text


def _conversation(turn: Turn) -> list[Message]:
    prompt = _prompt(turn)
    asked: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [*asked, {"role": "assistant", "content": turn.text}]


def _drop(column: str, values: Sequence[Any]) -> None:
    """TRL's log_extra, where there is no table of completions to add a column to."""
