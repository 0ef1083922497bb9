"""Scales: what becomes of a reward's scores before a game sees them. A reward model's logits have no unit of their own.

Each is an object on its own; None (not scored) and what is no finite number pass through, for `Reward` to judge.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeGuard

from sparring.rewards.base import LARGEST, RewardFunction, closed, drained, restore_to, state_of

Scores = Sequence[float | None]


class Scale(ABC):
    """Scores of one batch → scores as they are paid."""

    def __call__(self, scores: Scores) -> list[float | None]:
        """Scale what is a number, in the order given."""
        known = {index: float(score) for index, score in enumerate(scores) if is_number(score)}
        scaled = dict(zip(known, self._apply(list(known.values())), strict=True))
        return [scaled.get(index, score) for index, score in enumerate(scores)]

    @abstractmethod
    def _apply(self, scores: list[float]) -> list[float]:
        """Scale finite scores."""

    def state(self) -> dict[str, Any]:
        """What the next batch needs to know of the past, as JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most scales remember nothing
        """Take back what `state` gave."""


class Raw(Scale):
    """R as the model gives it.

    >>> Raw()([2.0, None])
    [2.0, None]
    """

    def _apply(self, scores: list[float]) -> list[float]:
        return scores


class Sigmoid(Scale):
    """σ(R) = 1 / (1 + e^−R), in [0, 1]: under Bradley-Terry the chance to be preferred to an answer that scores 0.

    >>> Sigmoid()([0.0, None])
    [0.5, None]
    """

    def _apply(self, scores: list[float]) -> list[float]:
        return [_sigmoid(score) for score in scores]


class Standardised(Scale):
    """(R − mean) / std over every score seen so far, this batch included; std is the population's.

    Mean and squared deviations are merged batch by batch (Chan, Golub & LeVeque 1979), so nothing past is kept.
    Degenerate case: where all scores were equal, up to rounding, each is 0.

    >>> scale = Standardised()
    >>> scale([1.0, 3.0]), scale([None, 2.0])  # mean 2, std 1; then mean 2, std sqrt(2/3)
    ([-1.0, 1.0], [None, 0.0])
    """

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def _apply(self, scores: list[float]) -> list[float]:
        if not scores:
            return []
        self._merge(scores)
        std = math.sqrt(self._squares / self._count)
        # Rounding alone leaves a std of about 1e-16 of the mean, which must not be blown up to ±1.
        if std <= 1e-12 * abs(self._mean):
            return [0.0] * len(scores)
        return [(score - self._mean) / std for score in scores]

    def _merge(self, scores: list[float]) -> None:
        n = len(scores)
        mean = math.fsum(scores) / n
        apart, together = mean - self._mean, self._count + n
        squares = math.fsum((score - mean) ** 2 for score in scores)
        self._squares += squares + apart**2 * self._count * n / together
        self._mean += apart * n / together
        self._count = together

    def state(self) -> dict[str, Any]:
        """Count, mean and summed squared deviations so far."""
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self._count, self._mean, self._squares = int(state["count"]), float(state["mean"]), float(state["squares"])


class Scaled:
    """A reward function under a scale; to `Reward` it has the function's own signature and name.

    Args:
        function: as `Reward` takes it, sync or async.
        scale: applied to each call's scores.
    """

    def __init__(self, function: RewardFunction, scale: Scale) -> None:
        self.__signature__ = inspect.signature(function)  # what inspect.signature(self) then says
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self._function, self._scale = function, scale
        self._sum, self._scored = 0.0, 0

    def __call__(self, *args: Any, **columns: Any) -> Any:
        """The function's scores, scaled; an awaitable of them where the function is async."""
        scores = self._function(*args, **columns)
        return self._later(scores) if inspect.isawaitable(scores) else self._scaled(scores)

    def drain(self) -> dict[str, float]:
        """The function's figures, and `raw`, its mean score before the scale, since the last call."""
        figures = drained(self._function)
        if self._scored and not isinstance(self._scale, Raw):
            figures["raw"] = self._sum / self._scored
        self._sum, self._scored = 0.0, 0
        return figures

    def state(self) -> dict[str, Any]:
        """The scale's and the function's."""
        return {"scale": self._scale.state(), "function": state_of(self._function)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self._scale.restore(state["scale"])
        restore_to(self._function, state["function"], self.__name__)

    def close(self) -> Any:
        """Close the function, where it can be closed; its awaitable where that is async."""
        return closed(self._function)

    async def _later(self, scores: Awaitable[Scores]) -> list[float | None]:
        return self._scaled(await scores)

    def _scaled(self, scores: Scores) -> list[float | None]:
        known = [float(score) for score in scores if is_number(score)]
        self._sum += math.fsum(known)
        self._scored += len(known)
        return self._scale(scores)


def is_number(score: Any) -> TypeGuard[float]:
    """Whether `Reward` would take this for a score, None aside."""
    if score is None or isinstance(score, str):
        return False
    try:
        return abs(float(score)) <= LARGEST
    except (TypeError, ValueError):
        return False


def _sigmoid(score: float) -> float:
    """Without overflow: e is raised to a negative power only."""
    power = math.exp(-abs(score))
    return 1 / (1 + power) if score >= 0 else power / (1 + power)
