"""How a model sees: is its answer right because it saw what mattered, or in spite of not having seen it?

Source: the Language Shortcut Rate of Vision-SR1, arXiv 2508.19652.

    LSR = #(perception insufficient and final answer right) / #all

A held-out item is looked at (the perceiver: picture and question → description and answer), its description read (the
reader: description and question → answer), and graded: perception is insufficient where a grader, given the question
and the description alone, doesn't come to the gold answer. A missing description is insufficient, and nobody is asked.
A grade that can't be read is neither: LSR is over the items with a verdict, and its bounds with all others counted one
way and the other stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparring.domains import Described, SufficiencyGrader, TestItem
from sparring.evaluation.matched import RIGHT
from sparring.evaluation.statistics import wilson_interval
from sparring.games.perception import description_of
from sparring.images import Picture
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.types import Turn

__all__ = ["RIGHT", "Described", "Observed", "Perception", "Seen", "Share", "SufficiencyGrader", "judged", "look"]


@dataclass(frozen=True)
class Observed:
    """One item, looked at and read: the perceiver's turn, its description, and the reader's turn where there is one."""

    item: TestItem
    turn: Turn
    description: str | None
    reply: Turn | None


@dataclass(frozen=True)
class Seen:
    """One held-out item, once looked at.

    text: the perceiver's; right: its answer is. sufficient: the grader's verdict on the description; None: it gave none
    that could be read. read, reply: whether the reader was right, and its text; None: nothing was there to read.
    """

    item_id: str
    subset: tuple[str, ...]
    text: str
    description: str | None
    right: bool
    sufficient: bool | None
    read: bool | None
    reply: str | None

    @property
    def shortcut(self) -> bool | None:
        """Right without having seen enough; None without a verdict."""
        return None if self.sufficient is None else self.right and not self.sufficient


@dataclass(frozen=True)
class Share:
    """A share of n items, and its 95 % interval (Wilson's)."""

    value: float
    ci95: tuple[float, float]
    n: int

    @classmethod
    def of(cls, flags: Iterable[bool]) -> Share | None:
        """The share of True; None of nothing."""
        given = list(flags)
        return cls(sum(given) / len(given), wilson_interval(sum(given), len(given)), len(given)) if given else None

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON."""
        return {"value": self.value, "ci95": list(self.ci95), "n": self.n}


@dataclass(frozen=True)
class Perception:
    """The figures of some items.

    n: items. lsr: of the items with a verdict. unread: items without; bounds: the LSR of all items, had every one of
    these been found sufficient, and insufficient. sufficient: of the items with a verdict. accuracy, described: of all
    items. reader: the reader's accuracy, in all, where the description sufficed, and where not; without a description
    it is wrong.
    """

    n: int
    lsr: Share
    unread: int
    bounds: tuple[float, float]
    accuracy: Share
    sufficient: Share
    described: Share
    reader: Mapping[str, Share | None]

    @classmethod
    def of(cls, seen: Sequence[Seen]) -> Perception | None:
        """Of these items; None where none has a verdict."""
        verdicts = [one for one in seen if one.sufficient is not None]
        lsr = Share.of(bool(one.shortcut) for one in verdicts)
        sufficient = Share.of(bool(one.sufficient) for one in verdicts)
        accuracy, described = (
            Share.of(f) for f in ([s.right for s in seen], [s.description is not None for s in seen])
        )
        if lsr is None or sufficient is None or accuracy is None or described is None:
            return None
        taken = sum(bool(one.shortcut) for one in verdicts)
        maybe = sum(one.right for one in seen if one.sufficient is None)
        reader = {
            "all": Share.of(bool(one.read) for one in seen),
            "sufficient": Share.of(bool(one.read) for one in verdicts if one.sufficient),
            "insufficient": Share.of(bool(one.read) for one in verdicts if not one.sufficient),
        }
        bounds = (taken / len(seen), (taken + maybe) / len(seen))
        return cls(len(seen), lsr, len(seen) - len(verdicts), bounds, accuracy, sufficient, described, reader)

    def to_json(self) -> dict[str, Any]:
        """`lsr` and its `ci95` as every evaluation has its metric; the other shares as {value, ci95, n}."""
        return {
            "n": self.n,
            "lsr": self.lsr.value,
            "ci95": list(self.lsr.ci95),
            "unread": self.unread,
            "bounds": list(self.bounds),
            "accuracy": self.accuracy.to_json(),
            "sufficient": self.sufficient.to_json(),
            "described": self.described.to_json(),
            "reader": {name: None if share is None else share.to_json() for name, share in self.reader.items()},
        }


def look(
    sampler: Sampler,
    perceiver: Role,
    reader: Role,
    items: Sequence[TestItem],
    *,
    reward: Reward,
    grader: SufficiencyGrader,
    temperature: float = 0.0,
) -> list[Seen]:
    """Look at the items, read the descriptions, and judge all of it: `observe`, then `judged`."""
    return judged(observe(sampler, perceiver, reader, items, temperature), reward, grader)


def observe(
    sampler: Sampler, perceiver: Role, reader: Role, items: Sequence[TestItem], temperature: float = 0.0
) -> list[Observed]:
    """Each item looked at once, at this temperature; each description read once, greedily. Nothing is judged.

    Raises:
        ValueError: no items, or one (named) has no picture or no gold answer.
        PictureError: a picture can't be read; the message has the item's name.
    """
    _require_usable(items)
    looking = replace(perceiver, sampling=replace(perceiver.sampling, temperature=temperature), weight=0.0)
    reading = replace(reader, sampling=replace(reader.sampling, temperature=0.0), weight=0.0)
    prompts = [looking.prompt(query=item.query, images=pictures_of(item), info=_info(item)) for item in items]
    turns = sampler.sample(looking, prompts)
    described = [description_of(turn.text) for turn in turns]
    replies = iter(
        sampler.sample(
            reading,
            [
                reading.prompt(query=item.query, description=description, parent=turn, info=_info(item))
                for item, turn, description in zip(items, turns, described, strict=True)
                if description is not None
            ],
        )
    )
    return [
        Observed(item, turn, description, None if description is None else next(replies))
        for item, turn, description in zip(items, turns, described, strict=True)
    ]


def judged(observed: Sequence[Observed], reward: Reward, grader: SufficiencyGrader) -> list[Seen]:
    """By the reward, which answers are right (`RIGHT`; one that it can't score is not); by the grader, which
    descriptions suffice."""
    turns = [turn for one in observed for turn in (one.turn, one.reply) if turn is not None]
    scores = reward([str(turn.prompt.info["query_text"]) for turn in turns], turns)
    right = {turn: score is not None and score >= RIGHT for turn, score in zip(turns, scores, strict=True)}
    asked = [
        Described(one.item.query, one.description, str(one.item.columns["answer"]), one.item.columns)
        for one in observed
        if one.description is not None
    ]
    verdicts = grader(asked) if asked else []
    assert len(verdicts) == len(asked), "a grader gives one verdict a description"
    rest = iter(verdicts)
    return [
        Seen(
            one.item.item_id,
            one.item.subset,
            one.turn.text,
            one.description,
            right[one.turn],
            False if one.description is None else next(rest),
            None if one.reply is None else right[one.reply],
            None if one.reply is None else one.reply.text,
        )
        for one in observed
    ]


def by_subset(seen: Sequence[Seen]) -> dict[str, Perception]:
    """Figures by subset path, joined with "/"; subsets without a verdict are left out."""
    members: dict[str, list[Seen]] = {}
    for one in seen:
        for depth in range(1, len(one.subset) + 1):
            members.setdefault("/".join(one.subset[:depth]), []).append(one)
    found = {name: Perception.of(some) for name, some in sorted(members.items())}
    return {name: figures for name, figures in found.items() if figures is not None}


def pictures_of(item: TestItem) -> tuple[Picture, ...]:
    """An item's pictures, opened. Raises PictureError, with the item's name."""
    return tuple(Picture.open(image, name=item.item_id) for image in item.images)


def rows_of(items: Sequence[TestItem], seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """Every item with what was said and found of it, for a file."""
    return [
        {
            "id": one.item_id,
            "subset": "/".join(one.subset),
            "question": item.query,
            "gold": str(item.columns["answer"]),
            "text": one.text,
            "description": one.description,
            "reply": one.reply,
            "right": one.right,
            "sufficient": one.sufficient,
            "read": one.read,
        }
        for item, one in zip(items, seen, strict=True)
    ]


def _require_usable(items: Sequence[TestItem]) -> None:
    if not items:
        raise ValueError("there is nothing to look at: the test set is empty")
    for item in items:
        if not item.images:
            raise ValueError(f"{item.item_id}: there is no picture to look at")
        if item.columns.get("answer") in (None, ""):
            raise ValueError(f"{item.item_id}: its row has no answer (column answer) to compare with")


def _info(item: TestItem) -> dict[str, Any]:
    return {**item.columns, "query_text": item.query, "item_id": item.item_id}
