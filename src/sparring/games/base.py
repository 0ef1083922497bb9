"""What a game is: it plays turns, pays them and says what each is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparring.advantages import Baseline, centred, is_dead
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.types import Advantages, Payoffs, Turn


class Game(ABC):
    """A game over one policy.

    The trainer calls `play`, `payoffs`, `baseline` and `metrics` once a step and never learns the game's name.
    A game that remembers something from step to step (an archive, a running scale) gives it as JSON in `state`
    and takes it back in `restore`: a resumed run must go on as if never interrupted.
    """

    roles: tuple[Role, ...]
    scale: Baseline = staticmethod(centred)  # how siblings' payoffs become advantages

    @abstractmethod
    def play(self, sampler: Sampler) -> list[Turn]:
        """Take one step's turns, parents before their replies."""

    @abstractmethod
    def payoffs(self, turns: Sequence[Turn]) -> Payoffs:
        """Pay turns. A turn left out is not paid and not trained."""

    def siblings(self, turn: Turn) -> object:
        """What a turn is compared with: turns of one role with an equal key are centred together."""
        return turn.parent

    def baseline(self, turns: Sequence[Turn], payoffs: Payoffs) -> Advantages:
        """Advantages over siblings, for the turns that are paid and trained.

        A turn sampled from the frozen reference is never trained, and never moves the others' mean.
        """
        groups = self.groups(turns, payoffs)
        return {
            turn: float(advantage)
            for group in groups
            for turn, advantage in zip(group, self.scale([payoffs[turn].total for turn in group]), strict=True)
        }

    def groups(self, turns: Sequence[Turn], payoffs: Payoffs) -> list[list[Turn]]:
        """Siblings that are trained, as lists in the order of play."""
        groups: dict[tuple[str, object], list[Turn]] = {}
        for turn in turns:
            if turn in payoffs and turn.model == "policy" and turn.role.weight > 0:
                groups.setdefault((turn.role.name, self.siblings(turn)), []).append(turn)
        return list(groups.values())

    def metrics(self, turns: Sequence[Turn], payoffs: Payoffs) -> dict[str, float]:
        """The step's figures: payoffs by role, share of groups without spread, lengths in tokens."""
        groups = self.groups(turns, payoffs)
        figures: dict[str, float] = {}
        for role in self.roles:
            taken = [turn for turn in turns if turn.role is role]
            if not taken:
                continue
            figures[f"length/{role.name}"] = float(np.mean([len(turn.completion_ids) for turn in taken]))
            figures[f"truncated/{role.name}"] = float(np.mean([turn.finish == "length" for turn in taken]))
            too_long = sum(bool(turn.info.get("too_long")) for turn in taken)
            if too_long:
                figures[f"too_long/{role.name}"] = too_long / len(taken)
            figures |= _mean_payoffs(role, [payoffs[turn] for turn in taken if turn in payoffs])
            mine = [group for group in groups if group[0].role is role]
            if mine:
                dead = [is_dead([payoffs[turn].total for turn in group]) for group in mine]
                figures[f"dead_groups/{role.name}"] = float(np.mean(dead))
        return figures

    def close(self) -> None:  # noqa: B027 - most games hold nothing open
        """Let go of what the game holds open (a reward server's connections): the run is over."""

    def state(self) -> dict[str, Any]:
        """What the next step needs to know of the past, as JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most games remember nothing
        """Take back what `state` gave."""


def unscored(answers: Sequence[Turn], payoffs: Payoffs) -> dict[str, float]:
    """reward/unscored: the share of answers that went unpaid; nothing where all were paid."""
    missing = sum(answer not in payoffs for answer in answers)
    return {"reward/unscored": missing / len(answers)} if missing else {}


def _mean_payoffs(role: Role, paid: Sequence[Any]) -> dict[str, float]:
    figures: dict[str, float] = {}
    if paid:
        figures[f"payoff/{role.name}"] = float(np.mean([payoff.total for payoff in paid]))
    for name in sorted({name for payoff in paid for name in payoff.parts}):
        known = [payoff.parts[name] for payoff in paid if payoff.parts.get(name) is not None]
        if known:
            figures[f"payoff/{role.name}/{name}"] = float(np.mean(known))
    return figures
