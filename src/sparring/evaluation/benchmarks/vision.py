"""The benchmarks of Vision-SR1: questions about pictures, answered by the perceiver, matched by rule and then by judge.

Source: arXiv 2508.19652 and the data sets its authors prepared, under their names on the hub. Columns as in their
training data: problem, answer, images, and problem_type, which says how an answer is compared.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparring.data import Names, load_prompts
from sparring.domains import TestItem
from sparring.evaluation.kept import items_of
from sparring.evaluation.matched import Answered, Writer, by_judge, by_rule
from sparring.evaluation.perception import Share, pictures_of
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.types import Turn

OWNER = "zli12321"
SETS = {
    "mmmu": "MMMU",
    "mmmu-pro/10-options": "mmmu_pro_10options",
    "mmmu-pro/vision": "mmmu-pro-vision",
    "mm-vet": "mm-vet",
    "realworldqa": "realWorldQA",
    "visnumbench": "visnumbench",
    "mathverse": "mathverse",
    "mathvision": "mathvision",
    "hallusionbench": "hallusionbench",
    "mllm-test": "MLLM_test",
}
"""Name → data set. A name before a slash is a benchmark of several parts, which count by their sizes."""

NAMES = Names("--set", "--split", "--set", "--set")


@dataclass(frozen=True)
class VisionSet:
    """One set: its name, and where it is: a hub id, a folder of Parquet or JSON lines, or one file."""

    name: str
    source: str

    @staticmethod
    def named(given: str) -> list[VisionSet]:
        """NAME (all parts of a benchmark, or one) or NAME=SOURCE.

        Raises:
            ValueError: an unknown name without a source.
        """
        name, equals, source = given.partition("=")
        if equals:
            if not source or not name.strip("/") or name != name.strip("/ "):
                raise ValueError(f"--set {given}: it reads NAME or NAME=SOURCE")
            return [VisionSet(name, source)]
        found = [
            VisionSet(known, f"{OWNER}/{hub}")
            for known, hub in SETS.items()
            if name in (known, known.partition("/")[0])
        ]
        if not found:
            near = difflib.get_close_matches(name, SETS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SETS)}; or give NAME=SOURCE"
            raise ValueError(f"--set: unknown benchmark {name!r}; {hint}")
        return found

    def items(self, split: str, say: Callable[[str], None], n: int | None) -> list[TestItem]:
        """Its first n questions; see `kept.items_of`. A file has no splits."""
        one_file = Path(self.source).is_file()
        return items_of(load_prompts(self.source, split="train" if one_file else split, names=NAMES), say, n=n)


def sets_named(given: Sequence[str]) -> list[VisionSet]:
    """All that were named, in order; every known one where none was.

    Raises:
        ValueError: an unknown name, or one that comes twice.
    """
    found = [one for text in (given or list(SETS)) for one in VisionSet.named(text)]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1 or any(other.startswith(f"{name}/") for other in names):
            raise ValueError(f"--set: {name} comes twice")
    return found


@dataclass(frozen=True)
class Outcome:
    """One answer: right by the rule, or by a judge; None is no verdict, and not right. cut, too_long: as turns are."""

    item: TestItem
    text: str
    by_rule: bool | None
    by_judge: bool | None
    asked_judge: bool
    cut: bool
    too_long: bool

    @property
    def right(self) -> bool:
        """By the rule or, of what that doesn't call right, by the judge."""
        return bool(self.by_rule or self.by_judge)

    @property
    def unread(self) -> bool:
        """Whoever had the last word gave no verdict."""
        return self.by_judge is None if self.asked_judge else self.by_rule is None

    def row(self, name: str) -> dict[str, Any]:
        """For a file."""
        asked = {"set": name, "id": self.item.item_id, "question": self.item.query, "gold": self.item.columns["answer"]}
        verdicts = {"by_rule": self.by_rule, "by_judge": self.by_judge, "asked_judge": self.asked_judge}
        return {**asked, "text": self.text, "right": self.right, **verdicts}


def answered(sampler: Sampler, perceiver: Role, items: Sequence[TestItem]) -> list[Turn]:
    """Each item looked at once."""
    prompts = [
        perceiver.prompt(query=item.query, images=pictures_of(item), info={"query_text": item.query}) for item in items
    ]
    return sampler.sample(perceiver, prompts)


def outcomes(items: Sequence[TestItem], turns: Sequence[Turn], judge: Writer | None) -> list[Outcome]:
    """Answers matched by rule; those that no rule calls right are put to the judge, where there is one. An answer that
    was never written is wrong, and nobody is asked."""
    answers = [
        Answered(item.query, str(item.columns["answer"]), turn.text, item.columns)
        for item, turn in zip(items, turns, strict=True)
    ]
    ruled = by_rule(answers)
    left = [i for i, verdict in enumerate(ruled) if judge is not None and not verdict and answers[i].text.strip()]
    judged = dict(zip(left, by_judge([answers[i] for i in left], judge), strict=True)) if judge is not None else {}
    return [
        Outcome(
            item,
            turn.text,
            verdict,
            judged.get(index),
            index in judged,
            turn.finish == "length" and not turn.info.get("too_long"),
            bool(turn.info.get("too_long")),
        )
        for index, (item, turn, verdict) in enumerate(zip(items, turns, ruled, strict=True))
    ]


@dataclass(frozen=True)
class VisionReport:
    """A model's result: what came of each set, by name, in order."""

    sets: Mapping[str, Sequence[Outcome]]

    @property
    def benchmarks(self) -> dict[str, list[Outcome]]:
        """Sets and, before its parts, each benchmark of several, pooled: so its parts count by their sizes."""
        pooled: dict[str, list[Outcome]] = {}
        for name, found in self.sets.items():
            whole = name.partition("/")[0]
            if whole != name:
                pooled.setdefault(whole, []).extend(found)
            pooled[name] = list(found)
        return pooled

    def accuracy(self, name: str) -> Share:
        """Of a set or a benchmark."""
        share = Share.of(one.right for one in self.benchmarks[name])
        assert share is not None  # no set is empty
        return share

    def to_json(self) -> dict[str, Any]:
        """`overall` and `subsets` as every evaluation has them. Overall is the plain mean over benchmarks, as in the
        paper; with one benchmark it has that one's interval, with several none."""
        subsets = {name: _figures(found) for name, found in self.benchmarks.items()}
        whole = [figures for name, figures in subsets.items() if "/" not in name]
        overall = {
            "n": sum(figures["n"] for figures in whole),
            "accuracy": float(np.mean([figures["accuracy"] for figures in whole])),
            "ci95": whole[0]["ci95"] if len(whole) == 1 else None,
            "benchmarks": len(whole),
        }
        return {"overall": overall, "subsets": subsets}

    def rows(self) -> list[dict[str, Any]]:
        """Every answer, for a file."""
        return [one.row(name) for name, found in self.sets.items() for one in found]


def _figures(found: Sequence[Outcome]) -> dict[str, Any]:
    share = Share.of(one.right for one in found)
    assert share is not None
    return {
        "n": share.n,
        "accuracy": share.value,
        "ci95": list(share.ci95),
        "by_rule": sum(bool(one.by_rule) for one in found) / share.n,
        "asked_judge": sum(one.asked_judge for one in found),
        "unread": sum(one.unread for one in found),
        "truncated": sum(one.cut for one in found) / share.n,
        "too_long": sum(one.too_long for one in found) / share.n,
    }
