"""Two models' answers before a judge: paired win rates in both orders, and AlpacaEval's own single order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparring.evaluation.alpaca_eval.data import Annotation, Instruction
from sparring.evaluation.alpaca_eval.verdicts import Verdict as Stored
from sparring.evaluation.alpaca_eval.verdicts import Verdicts, is_switched
from sparring.evaluation.answers import Question, Said
from sparring.evaluation.judges.base import Cost, Judge, Pair, Verdict
from sparring.evaluation.winrate import BothOrders, WinRates, win_rates


@dataclass(frozen=True)
class Judged:
    """What came of it: the rates, and each pair with its verdict as rows for a file."""

    rates: WinRates
    rows: list[dict[str, Any]]


def both_orders(
    questions: Sequence[Question], answers: Sequence[str], base_answers: Sequence[str], judge: Judge, say: Said
) -> Judged:
    """The win rate of `answers` over `base_answers`, every pair judged in both orders.

    Raises:
        JudgeError: the judge failed, or would be asked more often than allowed; what it said so far is kept.
        ValueError: no pair has a verdict in both orders.
    """
    triples = list(zip(questions, answers, base_answers, strict=True))
    pairs = [
        pair
        for number, (question, mine, base) in enumerate(triples, 1)
        for pair in (
            Pair(question.text, mine, base, f"{number}, model first", question.columns),
            Pair(question.text, base, mine, f"{number}, base first", question.columns),
        )
    ]
    verdicts = _asked(pairs, judge, say)
    items: list[BothOrders] = []
    rows: list[dict[str, Any]] = []
    for number, (question, mine, base) in enumerate(triples):
        ahead, behind = verdicts[2 * number : 2 * number + 2]
        first = None if ahead.preference is None else 1 - ahead.preference
        subset = () if question.subset is None else (question.subset,)
        items.append(BothOrders(str(number + 1), subset, first, behind.preference))
        rows.append(
            {
                "instruction": question.text,
                "subset": question.subset,
                "model_output": mine,
                "base_output": base,
                "model_first": first,
                "model_second": behind.preference,
                "said": [ahead.text, behind.text],
            }
        )
    return Judged(win_rates(items), rows)


def one_order(
    instructions: Sequence[Instruction],
    answers: Sequence[str],
    baseline_answers: Sequence[str],
    judge: Judge,
    say: Said,
    *,
    model: str,
    baseline: str,
) -> tuple[Verdicts, list[Annotation]]:
    """AlpacaEval's way: each pair judged once, in the order that its tools draw. Verdicts, and annotations.json's rows.

    Raises:
        JudgeError: see `both_orders`.
    """
    triples = list(zip(instructions, answers, baseline_answers, strict=True))
    pairs = [
        Pair(item.text, *((mine, base) if is_switched(item.text) else (base, mine)), key=str(number))
        for number, (item, mine, base) in enumerate(triples, 1)
    ]
    stored: list[Stored] = []
    rows: list[Annotation] = []
    for place, ((item, mine, base), verdict) in enumerate(zip(triples, _asked(pairs, judge, say), strict=True)):
        switched = is_switched(item.text)
        preference = None
        if verdict.preference is not None:
            preference = 2 - verdict.preference if switched else 1 + verdict.preference
        stored.append(Stored(place, preference, item.item_id, item.dataset, len(base), len(mine), switched))
        rows.append(
            Annotation(item.text, base, mine, preference, baseline, model, judge.name, item.dataset, verdict.text)
        )
    return Verdicts(model, baseline, stored), rows


def told(cost: Cost) -> str:
    """What judging would take, in words."""
    saved = f"; {cost.saved} pairs need none" if cost.saved else ""
    return (
        f"{cost.calls} calls of the judge, about {cost.prompt_tokens:,} tokens of prompts and at most "
        f"{cost.completion_tokens:,} of answers{saved}"
    )


def _asked(pairs: Sequence[Pair], judge: Judge, say: Said) -> list[Verdict]:
    cost = judge.estimate(pairs)
    say(told(cost))
    came = 0
    step = max(5, len(pairs) // 10)

    def arrived(_: int, __: Verdict) -> None:
        nonlocal came
        came += 1
        if came > cost.saved and came % step == 0:
            say(f"{came} of {len(pairs)} verdicts")

    verdicts = judge.judge(pairs, arrived)
    unparsed = [verdict for verdict in verdicts if verdict.preference is None]
    if len(unparsed) == len(verdicts):
        raise ValueError(
            f"{judge.name} gave no verdict that can be read (of {len(verdicts)}); it says {unparsed[0].text!r:.300}: "
            "check --judge, --judge-style and --judge-prompt"
        )
    if unparsed:
        say(f"{len(unparsed)} of {len(verdicts)} verdicts could not be read: they are counted and left out")
    return verdicts
