"""Rewards as judges: a reward model, a verifier with a reference answer, or any other. The higher score wins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparring.evaluation.judges.base import Arrived, Cost, Pair, Verdict, about_tokens
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.types import Prompt, Turn

AT_ONCE = 64
"""Pairs whose scores are asked for together."""

ANSWERING = Role("answer", "{{ query }}", SamplingParams(1), weight=0.0)


class RewardJudge:
    """Prefers the answer with the higher score; equal scores tie, a score that can't be given is no verdict.

    Args:
        reward: scores answers. It is given each pair's instruction as the query, and the pair's columns.
    """

    identity: str | None = None
    """Whatever scores is not pinned, so verdicts aren't kept."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self.name = reward.name

    def estimate(self, pairs: Sequence[Pair]) -> Cost:
        """A call for each answer that `judge` scores."""
        batches = [pairs[start : start + AT_ONCE] for start in range(0, len(pairs), AT_ONCE)]
        keys = [key for batch in batches for key in {_key(p, text) for p in batch for text in (p.first, p.second)}]
        return Cost(len(keys), about_tokens(*(text for key in keys for text in key[:2])), 0)

    def judge(self, pairs: Sequence[Pair], arrived: Arrived | None = None) -> list[Verdict]:
        """See `Judge.judge`. Raises RewardError where the reward does."""
        verdicts: list[Verdict] = []
        for start in range(0, len(pairs), AT_ONCE):
            for verdict in self._compared(pairs[start : start + AT_ONCE]):
                if arrived is not None:
                    arrived(len(verdicts), verdict)
                verdicts.append(verdict)
        return verdicts

    def close(self) -> None:
        """Close what the reward holds open."""
        self._reward.close()

    def _compared(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Each answer is scored once, however often it is shown: a pair mostly comes in both orders."""
        turns = {_key(pair, text): _turn(pair, text) for pair in pairs for text in (pair.first, pair.second)}
        given = self._reward([instruction for instruction, _, _ in turns], list(turns.values()))
        scores = dict(zip(turns, given, strict=True))
        return [_verdict(scores[_key(pair, pair.first)], scores[_key(pair, pair.second)]) for pair in pairs]


def _key(pair: Pair, text: str) -> tuple[str, str, int]:
    return pair.instruction, text, id(pair.columns)


def _verdict(first: float | None, second: float | None) -> Verdict:
    if first is None or second is None:
        return Verdict(None, f"{first} {second}")
    return Verdict(float(np.sign(second - first) + 1) / 2, f"{first} {second}")


def _turn(pair: Pair, text: str) -> Turn:
    """An answer as a reward expects it; nobody sampled it, so it has no ids."""
    prompt = Prompt(
        ({"role": "user", "content": pair.instruction},), info={**pair.columns, "query_text": pair.instruction}
    )
    return Turn(ANSWERING, prompt, (), (), np.empty(0, np.float32), text, "stop", info=prompt.info)
