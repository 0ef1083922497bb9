"""What a judge is asked and what it says.

A `Judge` is a chat model behind an endpoint (`endpoint.py`), a model here (`local.py`), or a reward (`reward.py`).
`FrugalJudge` (`frugal.py`) asks one of them nothing twice, and no more than is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class JudgeError(ValueError):
    """A judge that can't be asked, or that answers with what is no verdict at all."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction, in the order in which the judge is shown them.

    key names the pair in errors. columns is what a verifier wants to know beside the instruction (a data set's row,
    with its reference answer); other judges don't see it.
    """

    instruction: str
    first: str
    second: str
    key: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Verdict:
    """How much the second answer is preferred: 0 for the first, ½ for neither, 1 for the second; None: unparsed.

    text is what the judge said; the tokens are what that cost.
    """

    preference: float | None
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        assert self.preference is None or 0 <= self.preference <= 1, self.preference


@dataclass(frozen=True)
class Cost:
    """What judging would take: calls (attempts after a failure not counted), about so many tokens of prompts, and at
    most so many of completions. saved: pairs that need no call."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    saved: int = 0


Arrived = Callable[[int, Verdict], None]
"""Told each pair's place and verdict as that is known, in any order, maybe from another thread, never two at once."""


class Judge(Protocol):
    """Says which answer of each pair is better."""

    name: str
    identity: str | None
    """All that a verdict depends on beside a pair's texts, no key and no address; None: that can't be told, so that
    verdicts are not kept."""

    def estimate(self, pairs: Sequence[Pair]) -> Cost:
        """What `judge` would take; nothing is asked."""
        ...

    def judge(self, pairs: Sequence[Pair], arrived: Arrived | None = None) -> list[Verdict]:
        """A verdict a pair, in the order given. Raises JudgeError; what had arrived by then has been told."""
        ...

    def close(self) -> None:
        """Let go of what is held open."""
        ...


def about_tokens(*texts: str) -> int:
    """About how many tokens texts have where no tokenizer is at hand: a token for four bytes of UTF-8, and four each.

    >>> about_tokens("12345678")
    6
    """
    return sum(4 + (len(text.encode(errors="replace")) + 3) // 4 for text in texts)
