"""The nouns of a game: prompts, turns, payoffs.

A step of self-play is a tree of turns. Turns are compared by identity, never by text: two
equal questions stay two questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sparring.lm.base import Finish

if TYPE_CHECKING:
    from sparring.roles import Role

Message = Mapping[str, Any]
"""transformers' chat format: {"role": "user", "content": "..."}. With images the content is a list of parts:
{"type": "image", "image": Picture} and {"type": "text", "text": "..."}."""
ModelName = Literal["policy", "reference"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a role is asked: chat messages, the turn it replies to, and what the game knows about it."""

    messages: tuple[Message, ...]
    parent: Turn | None = None
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, eq=False)
class Turn:
    """One completion of one role.

    completion_ids are the sampled ids, stop token included: they are what is trained, the text is never
    encoded again. logprobs [T] float32 are the sampler's, in nats, at the role's temperature. text is what the model
    says to its reader, thought what it thought before (None: it did not think); both are trained.
    """

    role: Role
    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: np.ndarray
    text: str
    finish: Finish
    model: ModelName = "policy"
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    thought: str | None = None

    @property
    def parent(self) -> Turn | None:
        """The turn this one replies to; None for a first turn."""
        return self.prompt.parent

    def noting(self, **info: Any) -> Turn:
        """A copy that knows more (a new turn: note before anything replies to it)."""
        return replace(self, info={**self.info, **info})


@dataclass(frozen=True)
class Payoff:
    """What a turn is paid: the total the advantage is made of, and its named parts for every report."""

    total: float
    parts: Mapping[str, float | None] = field(default_factory=dict[str, float | None])

    def plus(self, name: str, amount: float) -> Payoff:
        """The same with one more part.

        >>> Payoff(1.0, {"reward": 1.0}).plus("kl", -0.25).total
        0.75
        """
        return Payoff(self.total + amount, {**self.parts, name: amount})


Payoffs = Mapping[Turn, Payoff]
Advantages = Mapping[Turn, float]


def text_of(message: Message) -> str:
    """What a message says, for a reader: its text, and [image] where one stands.

    >>> text_of({"content": [{"type": "image", "image": None}, {"type": "text", "text": "What is it?"}]})
    '[image]\\nWhat is it?'
    """
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in content)


def of_role(turns: Sequence[Turn], role: Role) -> list[Turn]:
    """The turns a role took, in order."""
    return [turn for turn in turns if turn.role is role]


def children(turns: Sequence[Turn], role: Role) -> dict[Turn, list[Turn]]:
    """Each parent's replies by `role`, in order; turns without a parent are left out.

    This is the one place that knows siblings: the G answers a_i^j of a query q_i.
    """
    replies: dict[Turn, list[Turn]] = {}
    for turn in turns:
        if turn.role is role and turn.parent is not None:
            replies.setdefault(turn.parent, []).append(turn)
    return replies
