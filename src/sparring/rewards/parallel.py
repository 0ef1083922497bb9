"""Rewards among several ranks: asked of rank 0 alone, or a reward model's work shared out. All ranks get all scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sparring.memory import SCORING, budgeted
from sparring.parallel.ranks import Ranks, deal, undeal
from sparring.rewards.base import Reward, RewardFunction
from sparring.rewards.preference import Conversation
from sparring.types import Turn


class FirstReward(Reward):
    """A reward that only rank 0 calls: what is random, remembers, costs money or has one server.

    Args:
        function, name: see Reward.
        ranks: who gets its scores, and its errors.
    """

    def __init__(self, function: RewardFunction, name: str | None, ranks: Ranks) -> None:
        super().__init__(function, name)
        self._ranks = ranks

    def __call__(self, queries: Sequence[str], answers: Sequence[Turn]) -> list[float | None]:
        """See `Reward`."""
        return self._ranks.first("scoring", lambda: super(FirstReward, self).__call__(queries, answers))

    def drain(self) -> dict[str, float]:
        """See `Reward.drain`."""
        return self._ranks.first("reading the reward's figures", super().drain)

    def state(self) -> dict[str, Any]:
        """See `Reward.state`."""
        return self._ranks.first("asking what the reward remembers", super().state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Reward.restore`."""
        self._ranks.first("reminding the reward", lambda: super(FirstReward, self).restore(state))

    def close(self) -> None:
        """See `Reward.close`."""
        if self._ranks.leads:
            super().close()


class Preference(Protocol):
    """A reward model's scores, one a conversation; None where it is over-long."""

    def __call__(
        self, queries: Sequence[str], answers: Sequence[str], conversations: Sequence[Conversation]
    ) -> list[float | None]: ...


class SplitPreference:
    """A reward model that every rank holds: each scores some of the conversations.

    Args:
        model: this rank's own.
        ranks: who shares the conversations.
    """

    def __init__(self, model: Preference, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks
        self._read = self._over_long = 0

    def __call__(
        self, queries: Sequence[str], answers: Sequence[str], conversations: Sequence[Conversation]
    ) -> list[float | None]:
        """A score a conversation. An error on one rank is raised on all."""
        lengths = [sum(len(str(message["content"])) for message in chat) for chat in conversations]
        dealt = deal(lengths, self._ranks.size)
        mine = dealt[self._ranks.rank]

        def score() -> list[float | None]:
            asked, given = [queries[index] for index in mine], [answers[index] for index in mine]
            with budgeted("scoring the answers", SCORING):
                return self._model(asked, given, [conversations[index] for index in mine]) if mine else []

        met = self._ranks.together("scoring", score)
        scores = undeal(dealt, met)
        self._read += len(scores)
        self._over_long += scores.count(None)
        return scores

    def drain(self) -> dict[str, float]:
        """`over_long`: the share of all ranks' conversations not scored since the last call."""
        share = {"over_long": self._over_long / self._read} if self._read else {}
        self._read = self._over_long = 0
        return share
