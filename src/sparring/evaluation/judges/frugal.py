"""Judging that costs no more than it must, and no more than was allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparring.evaluation.judges.base import Arrived, Cost, Judge, JudgeError, Pair, Verdict
from sparring.evaluation.judges.cache import VerdictCache, key_of

SETTING = "--max-calls"
SAME = Verdict(0.5, "the two answers are the same")
"""Of two equal answers, as in AlpacaEval."""


class BudgetError(JudgeError):
    """Judging would take more calls than allowed; none was made."""


@dataclass(frozen=True)
class _Plan:
    """Verdicts that are known, by place; and pairs to ask about, each with the places that want its verdict."""

    known: dict[int, Verdict]
    asked: list[tuple[Pair, list[int]]]

    @property
    def pairs(self) -> list[Pair]:
        return [pair for pair, _ in self.asked]


class FrugalJudge:
    """Asks another judge: of two same answers nothing, of equal pairs once, of what is kept nothing again.

    Verdicts are kept one by one as they arrive, so that a process killed in the middle has lost none of them. Unparsed
    ones are kept too. A judge without an identity is asked about every pair with two different answers.

    Args:
        judge: who is asked.
        cache: where verdicts are kept; None: nowhere.
        max_calls: most calls of one `judge`; None: no bound.
    """

    def __init__(self, judge: Judge, cache: VerdictCache | None = None, max_calls: int | None = None) -> None:
        self._judge, self._cache, self._max_calls = judge, cache, max_calls
        self.name, self.identity = judge.name, judge.identity

    def estimate(self, pairs: Sequence[Pair]) -> Cost:
        """What `judge` would take now: nothing for what is known."""
        return self._cost(self._plan(pairs), len(pairs))

    def judge(self, pairs: Sequence[Pair], arrived: Arrived | None = None) -> list[Verdict]:
        """See `Judge.judge`.

        Raises:
            BudgetError: more than max_calls would be made; none has been.
            JudgeError: the judge failed; what had arrived is kept.
        """
        plan = self._plan(pairs)
        cost = self._cost(plan, len(pairs))
        if self._max_calls is not None and cost.calls > self._max_calls:
            raise BudgetError(
                f"{cost.calls} calls would be made, about {cost.prompt_tokens} tokens of prompts and at most "
                f"{cost.completion_tokens} of answers, and {SETTING} is {self._max_calls}; none was made"
            )
        found = dict(plan.known)
        if arrived is not None:
            for place, verdict in plan.known.items():
                arrived(place, verdict)

        def came(index: int, verdict: Verdict) -> None:
            pair, places = plan.asked[index]
            if self._cache is not None and self.identity is not None:
                self._cache.put(key_of(self.identity, pair), verdict)
            for place in places:
                found[place] = verdict
                if arrived is not None:
                    arrived(place, verdict)

        if plan.asked:
            self._judge.judge(plan.pairs, came)
        return [found[place] for place in range(len(pairs))]

    def close(self) -> None:
        """Close the judge and the cache."""
        self._judge.close()
        if self._cache is not None:
            self._cache.close()

    def _cost(self, plan: _Plan, pairs: int) -> Cost:
        return replace(self._judge.estimate(plan.pairs), saved=pairs - len(plan.asked))

    def _plan(self, pairs: Sequence[Pair]) -> _Plan:
        known: dict[int, Verdict] = {}
        asked: dict[str, tuple[Pair, list[int]]] = {}
        for place, pair in enumerate(pairs):
            if pair.first == pair.second:
                known[place] = SAME
                continue
            # Without an identity nothing is the same as anything: its place is what names a pair.
            key = str(place) if self.identity is None else key_of(self.identity, pair)
            kept = None if self._cache is None or self.identity is None else self._cache.get(key)
            if kept is not None:
                known[place] = kept
            else:
                asked.setdefault(key, (pair, []))[1].append(place)
        return _Plan(known, list(asked.values()))
