"""Stored verdicts of AlpacaEval, and how a weighted judge's log-probabilities become one.

A preference runs from 1 (the baseline's output is better) to 2 (the model's is); 0 is AlpacaEval 1's draw.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparring.evaluation.alpaca_eval.data import Instruction, annotation
from sparring.evaluation.alpaca_eval.records import Record, read_records


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judged pair of outputs.

    Attributes:
        position: its place among the file's verdicts, from 0. AlpacaEval looks an instruction's difficulty up by it,
            not by the instruction, also in files where verdicts are missing: its published figures need it.
        preference: 1 … 2, 0 or 1.5 for a draw; None: the judge's reply didn't parse.
        item_id: the instruction's id, where known.
        dataset: the instruction's subset, where known.
        len_ref: characters of the baseline's output.
        len_model: characters of the model's output.
        switched: whether the judge saw the model's output first.
        lp_m: log-probability of the token `m` (the first output is better); None: not among the judge's top tokens.
        lp_M: the same of `M` (the second is better).
    """

    position: int
    preference: float | None
    item_id: int | None = None
    dataset: str | None = None
    len_ref: int | None = None
    len_model: int | None = None
    switched: bool | None = None
    lp_m: float | None = None
    lp_M: float | None = None


@dataclass(frozen=True, slots=True)
class Verdicts:
    """A model's verdicts, in the file's order.

    Attributes:
        model: the evaluated model (generator_2), or the file's name where the rows don't say.
        baseline: what it was compared with (generator_1), where the rows say.
        each: the verdicts.
    """

    model: str
    baseline: str | None
    each: Sequence[Verdict]

    @property
    def preferences(self) -> list[float | None]:
        """What `figures` takes."""
        return [verdict.preference for verdict in self.each]


def read_verdicts(path: Path, instructions: Sequence[Instruction] | None = None) -> Verdicts:
    """Verdicts of an annotations.json as AlpacaEval writes it, or of a compact file.

    A compact file has an object a verdict: `preference` and `id` (the instruction's), optionally `row` (its position),
    `len_ref`, `len_model`, `switched`, `lp_m` and `lp_M`.

    Args:
        path: .json or .jsonl.
        instructions: they give each verdict its subset.

    Raises:
        ValueError: no such file, a damaged row (named by file and line), an instruction judged twice or not among
            `instructions`, or verdicts on several models in one file.
    """
    records = read_records(path)
    if "output_1" in records[0].fields or "output_2" in records[0].fields:
        return _of_annotations(path, records, instructions)
    by_id = None if instructions is None else {item.item_id: item for item in instructions}
    verdicts: list[Verdict] = []
    seen: set[int] = set()
    for place, row in enumerate(records):
        verdict = _compact(row, place)
        assert verdict.item_id is not None
        if verdict.item_id in seen:
            raise ValueError(
                f"{row.where}: id {verdict.item_id} was judged before; one file holds one model's verdicts"
            )
        seen.add(verdict.item_id)
        if by_id is not None:
            known = by_id.get(verdict.item_id)
            if known is None:
                raise ValueError(f"{row.where}: id {verdict.item_id} is not among the instructions")
            verdict = replace(verdict, dataset=known.dataset)
        verdicts.append(verdict)
    return Verdicts(path.stem, None, verdicts)


def is_switched(instruction: str) -> bool:
    """Whether AlpacaEval's judge (seed 0) sees the model's output first for this instruction."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def weighted_preference(lp_m: float | None, lp_M: float | None, switched: bool) -> float | None:
    """AlpacaEval 2's preference from the log-probabilities of the judge's two answers.

    p(M) / (p(m) + p(M)) + 1, turned round (3 − x) where the outputs were shown switched. A token that is not among the
    top log-probabilities has probability 0.

    Args:
        lp_m: natural logarithm of the probability of `m`: the output shown first is better; None: not reported.
        lp_M: the same of `M`: the output shown second is better.
        switched: whether the model's output was shown first.

    Returns:
        1 (baseline better) … 2 (model better); None where neither token was reported.
    """
    if lp_m is None and lp_M is None:
        return None
    first_log = -math.inf if lp_m is None else lp_m
    second_log = -math.inf if lp_M is None else lp_M
    # tanh form of the logistic function: no overflow, however far the two lie apart.
    second = (1 + math.tanh((second_log - first_log) / 2)) / 2
    return 2 - second if switched else 1 + second


def _compact(row: Record, place: int) -> Verdict:
    item_id = row.count_or_none("id")
    if item_id is None:
        row.get("id")
        raise ValueError(f"{row.where}: 'id' must be the instruction's id, not null")
    position = row.count_or_none("row")
    return Verdict(
        position=place if position is None else position,
        preference=row.preference("preference"),
        item_id=item_id,
        len_ref=row.count_or_none("len_ref"),
        len_model=row.count_or_none("len_model"),
        switched=row.flag_or_none("switched"),
        lp_m=row.log_probability_or_none("lp_m"),
        lp_M=row.log_probability_or_none("lp_M"),
    )


def _of_annotations(path: Path, records: Sequence[Record], instructions: Sequence[Instruction] | None) -> Verdicts:
    by_text: Mapping[str, Instruction] | None
    by_text = None if instructions is None else {item.text: item for item in instructions}
    verdicts: list[Verdict] = []
    seen: set[str] = set()
    generators: set[tuple[str | None, str | None]] = set()
    for place, row in enumerate(records):
        item = annotation(row)
        generators.add((item.generator_1, item.generator_2))
        if len(generators) > 1:
            raise ValueError(f"{row.where}: another generator_1 or generator_2; one file holds one model's verdicts")
        if item.instruction in seen:
            raise ValueError(f"{row.where}: its instruction was judged before; one file holds one model's verdicts")
        seen.add(item.instruction)
        known = by_text.get(item.instruction) if by_text is not None else None
        if by_text is not None and known is None:
            raise ValueError(f"{row.where}: its instruction is not among the instructions")
        verdicts.append(
            Verdict(
                position=place,
                preference=item.preference,
                item_id=known.item_id if known else None,
                dataset=known.dataset if known else item.dataset,
                len_ref=len(item.output_1),
                len_model=len(item.output_2),
            )
        )
    baseline, model = generators.pop()
    return Verdicts(model or path.stem, baseline, verdicts)
