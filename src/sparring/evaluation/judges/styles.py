"""How a chat model says which answer is better, and how that is read. Text that is no verdict is None, never a guess.

Source: AlpacaEval's two kinds of verdict (tatsu-lab/alpaca_eval): weighted_alpaca_eval_gpt4_turbo asks for one token
and weighs the probabilities of m and M; alpaca_eval_gpt4 asks for a ranking.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import permutations, product
from typing import Any, Protocol

from sparring.evaluation.judges.base import JudgeError

FIRST, SECOND = "m", "M"
"""The one-token names of the two answers."""

TOP = 5
"""Most likely tokens that an endpoint is asked for; a name that is not among them has probability 0."""

ABOVE_ZERO = 1e-3
"""A log-probability may exceed 0 by rounding."""


class Style(Protocol):
    """A kind of verdict from a chat completion."""

    name: str
    completion_tokens: int

    @property
    def request(self) -> dict[str, Any]:
        """What the request says beside model and messages."""
        ...

    def read(self, choice: Mapping[str, Any]) -> tuple[float | None, str]:
        """Preference and text of a completion's choice.

        Raises JudgeError where the endpoint can't serve this style, LookupError, TypeError, ValueError or
        AttributeError where this is no choice of a completion.
        """
        ...


class Weighted:
    """One token, m or M: the preference is p(M) / (p(m) + p(M)) by the completion's log-probabilities."""

    name = "weighted"
    completion_tokens = 1

    @property
    def request(self) -> dict[str, Any]:
        """At temperature 1, under which every endpoint gives the model's own probabilities."""
        return {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": TOP}

    def read(self, choice: Mapping[str, Any]) -> tuple[float | None, str]:
        """See `Style.read`. No text and no log-probabilities, as after a refusal, is no verdict."""
        text = _content(choice)
        tokens = (choice.get("logprobs") or {}).get("content") or []
        listed = tokens[0]["top_logprobs"] if tokens else []
        if not listed:
            if text:
                raise JudgeError(
                    "it gives no log-probabilities (logprobs, top_logprobs), by which the style weighted is read; "
                    "take --judge-style ranked or another endpoint"
                )
            return None, text
        logprobs: dict[str, float] = {}
        for item in listed:
            logprobs.setdefault(str(item["token"]), float(item["logprob"]))
        return weighted_preference(logprobs), text


class Ranked:
    """A list with each model's rank, written out: the preference is 0 or 1."""

    name = "ranked"

    def __init__(self, max_tokens: int = 100) -> None:
        self.completion_tokens = max_tokens

    @property
    def request(self) -> dict[str, Any]:
        """Greedy, as AlpacaEval asks."""
        return {"max_tokens": self.completion_tokens, "temperature": 0.0}

    def read(self, choice: Mapping[str, Any]) -> tuple[float | None, str]:
        """See `Style.read`."""
        text = _content(choice)
        return ranked_preference(text), text


STYLES: dict[str, type[Weighted] | type[Ranked]] = {"weighted": Weighted, "ranked": Ranked}


def weighted_preference(logprobs: Mapping[str, float]) -> float | None:
    """p(M) / (p(m) + p(M)); a name without a log-probability has probability 0, two such are no verdict.

    >>> round(weighted_preference({"M": math.log(0.6), "m": math.log(0.2), "A": math.log(0.1)}), 6)
    0.75
    """
    first, second = (logprobs.get(name, -math.inf) for name in (FIRST, SECOND))
    if not max(first, second) > -math.inf or not (first <= ABOVE_ZERO and second <= ABOVE_ZERO):
        return None
    ratio = math.exp(-abs(second - first))
    return 1 / (1 + ratio) if second >= first else ratio / (1 + ratio)


def ranked_preference(text: str) -> float | None:
    """1 where model_2 has rank 1, 0 where model_1 has; None unless the text is the list that was asked for, alone.

    Python's quotes or JSON's, either order of models and of their two entries; a tie is no ranking.

    >>> ranked_preference("[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]")
    1.0
    """
    bare = re.sub(r"\s+", "", text).replace(",}", "}").replace(",]", "]")
    return _RANKINGS.get(bare if "'" in bare else bare.replace('"', "'"))


def _rankings() -> Iterator[tuple[str, float]]:
    """Each list that is a ranking, written without blanks, and the preference it gives."""
    for models, ranks in product(permutations((1, 2)), repeat=2):
        shapes = [
            (f"{{'model':'model_{model}','rank':{rank}}}", f"{{'rank':{rank},'model':'model_{model}'}}")
            for model, rank in zip(models, ranks, strict=True)
        ]
        for written in product(*shapes):
            yield f"[{','.join(written)}]", float(ranks[models.index(2)] == 1)


_RANKINGS = dict(_rankings())


def _content(choice: Mapping[str, Any]) -> str:
    """A choice's text, empty where there is none."""
    text = choice["message"].get("content")
    if not isinstance(text, str | None):
        raise TypeError(f"content is {type(text).__name__}")
    return text or ""
