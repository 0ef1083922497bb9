"""Descriptions: how they are read, whether an answer follows from one, and how true they are.

A description is a list of triples: "top-left:red-circle middle-right:blue-cross". The grader here is a program: it
stands in for the large model that judges perception in Vision-SR1 (arXiv 2508.19652).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sparring.pictures.questions import Question, answer
from sparring.pictures.world import CELLS, COLOURS, SHAPES, Scene, Thing

Triple = tuple[str, Thing]
_TRIPLE = re.compile(rf"(?<![\w-])({'|'.join(CELLS)})[\s:]+({'|'.join(COLOURS)})[\s-]({'|'.join(SHAPES)})(?![\w-])")


def parse_triples(text: str) -> list[Triple]:
    """The triples of a text, in order; whatever is no triple is passed over. Never raises.

    >>> parse_triples("top-left:red-circle, top-right:blue")
    [('top-left', Thing(colour='red', shape='circle'))]
    """
    return [(cell, Thing(colour, shape)) for cell, colour, shape in _TRIPLE.findall(text.lower())]


def _read(triples: list[Triple]) -> tuple[Scene, set[str]]:
    """The described scene, a cell's first triple counting, and the cells that are described in two ways."""
    said: dict[str, Thing] = {}
    disputed: set[str] = set()
    for cell, thing in triples:
        if said.setdefault(cell, thing) != thing:
            disputed.add(cell)
    return Scene(tuple(map(said.get, CELLS))), disputed


def scene_of(text: str) -> Scene:
    """The scene that a text describes; what it leaves out is empty.

    >>> str(scene_of("bottom-left:red-circle and top-left:blue-cross"))
    'top-left:blue-cross bottom-left:red-circle'
    """
    return _read(parse_triples(text))[0]


def follows(description: str | None, question: Question) -> str | None:
    """The answer that follows from a description alone; None where none does, or it says two things about the cell.

    >>> follows("top-left:red-circle", Question("colour", "top-left"))
    'red'
    >>> follows("top-left:red-circle top-left:blue-circle", Question("colour", "top-left")) is None
    True
    """
    if description is None:
        return None
    scene, disputed = _read(parse_triples(description))
    return None if question.place in disputed else answer(scene, question)


def sufficient(description: str | None, question: Question, gold: str) -> bool:
    """Whether a reader of the description alone reaches the gold answer; a missing description never suffices."""
    return follows(description, question) == gold


@dataclass(frozen=True)
class Fidelity:
    """Counts of a description against the scene: triples said, those of them that are true, things there.

    A triple is true where cell, colour and shape are; said twice, it is true once.
    """

    said: int = 0
    true: int = 0
    there: int = 0

    @property
    def precision(self) -> float | None:
        """The share of what was said that is true; None where nothing was said."""
        return self.true / self.said if self.said else None

    @property
    def recall(self) -> float | None:
        """The share of what is there that was said rightly; None where nothing is there."""
        return self.true / self.there if self.there else None

    def __add__(self, other: Fidelity) -> Fidelity:
        return Fidelity(self.said + other.said, self.true + other.true, self.there + other.there)

    def __iter__(self) -> Iterator[float | None]:
        return iter((self.precision, self.recall))


def fidelity(description: str | None, scene: Scene, cells: tuple[str, ...] = CELLS) -> Fidelity:
    """How true and complete a description is about these cells."""
    said = [triple for triple in parse_triples(description or "") if triple[0] in cells]
    there = {triple for triple in scene.things() if triple[0] in cells}
    return Fidelity(len(said), len(there.intersection(said)), len(there))


def split_fidelity(description: str | None, scene: Scene, question: Question) -> tuple[Fidelity, Fidelity]:
    """The same, apart for the cells the question asks about and for those it doesn't."""
    others = tuple(cell for cell in CELLS if cell not in question.cells)
    return fidelity(description, scene, question.cells), fidelity(description, scene, others)
