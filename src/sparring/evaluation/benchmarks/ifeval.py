"""IFEval: instructions that a program can check. Source: Zhou et al. 2023, arXiv 2311.07911."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from sparring.domains import TestItem
from sparring.evaluation.benchmarks.base import Benchmark, ItemResult
from sparring.evaluation.benchmarks.rows import Row, Source
from sparring.verify.ifeval.follow import Instructions, follow, follow_loosely


class IFEval(Benchmark):
    """541 prompts with one to three instructions each. A prompt is right where all are followed, strictly.

    Instructions about the language need langdetect (`pip install 'sparring[verify]'`).
    """

    name: ClassVar[str] = "ifeval"
    source: ClassVar[Source] = Source("google/IFEval", "train")

    def item(self, row: Row) -> TestItem:
        """A row of `key`, `prompt`, `instruction_id_list` and `kwargs`."""
        instructions = Instructions.read(row.value("instruction_id_list"), row.value("kwargs"), row.where)
        return TestItem(str(row.value("key")), (), row.text("prompt"), {"instructions": instructions})

    def score(self, items: Sequence[TestItem], answers: Sequence[Sequence[str]]) -> list[ItemResult]:
        """1 where all instructions are followed strictly; details: `strict` and `loose`, one verdict an instruction."""
        results: list[ItemResult] = []
        for item, given in zip(items, answers, strict=True):
            instructions = item.columns["instructions"]
            details = [
                {"strict": follow(instructions, answer), "loose": follow_loosely(instructions, answer)}
                for answer in given
            ]
            results.append(ItemResult.of(item, [float(all(verdicts["strict"])) for verdicts in details], details))
        return results

    def figures(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """The four accuracies: prompts or instructions, strict or loose; over all answers."""
        figures: dict[str, float] = {}
        for kind in ("strict", "loose"):
            verdicts = [detail[kind] for result in results for detail in result.details]
            figures[f"prompt_{kind}"] = float(np.mean([all(followed) for followed in verdicts]))
            figures[f"instruction_{kind}"] = float(np.mean([one for followed in verdicts for one in followed]))
        return figures
