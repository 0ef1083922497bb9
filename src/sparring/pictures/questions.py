"""What is asked about a scene, and how a question's answer is found in a scene or a description.

colour  What colour is at top-left?        red
shape   What shape is at middle-right?     circle
most    Which row has most?                top       (asked only where one row has more than the others)
count   How many are in the bottom row?    2
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sparring.pictures.world import CELLS, COLOURS, ROWS, SHAPES, Scene, row_of

Kind = Literal["colour", "shape", "most", "count"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_CELL = "|".join(CELLS)
_FORMS: dict[Kind, re.Pattern[str]] = {
    "colour": re.compile(rf"what colour is at ({_CELL})\?"),
    "shape": re.compile(rf"what shape is at ({_CELL})\?"),
    "most": re.compile(r"which row has most\?()"),
    "count": re.compile(rf"how many are in the ({'|'.join(ROWS)}) row\?"),
}


@dataclass(frozen=True)
class Question:
    """A well-formed question. `place`: the cell for colour and shape, the row for count, empty for most."""

    kind: Kind
    place: str = ""

    @property
    def row(self) -> str | None:
        """The row asked about; None where it is all of them."""
        return row_of(self.place) if self.place else None

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells asked about."""
        if self.place in CELLS:
            return (self.place,)
        return tuple(cell for cell in CELLS if self.row in (None, row_of(cell)))

    def __str__(self) -> str:
        if self.kind == "most":
            return "Which row has most?"
        if self.kind == "count":
            return f"How many are in the {self.place} row?"
        return f"What {self.kind} is at {self.place}?"


def parse_question(text: str) -> Question | None:
    """Read a question, letter case and blanks aside; None where it is none, and never an exception.

    >>> parse_question("How many are in the top row?")
    Question(kind='count', place='top')
    >>> parse_question("How many are red?") is None
    True
    """
    plain = " ".join(text.lower().split())
    for kind, form in _FORMS.items():
        match = form.fullmatch(plain)
        if match is not None:
            return Question(kind, match[1])
    return None


def fullest(scene: Scene) -> str | None:
    """The row that holds more than each other one; None where two hold most."""
    counts = [len(scene.in_row(row)) for row in ROWS]
    return ROWS[int(np.argmax(counts))] if counts.count(max(counts)) == 1 else None


def answer(scene: Scene, question: Question) -> str | None:
    """What follows from the scene; None where nothing does (an empty cell, two fullest rows)."""
    if question.kind == "most":
        return fullest(scene)
    if question.kind == "count":
        return str(len(scene.in_row(question.place)))
    thing = scene.at(question.place)
    return None if thing is None else str(getattr(thing, question.kind))


def usual_answer(question: Question) -> str:
    """The commonest answer: what can be said without a look at the picture."""
    if question.kind == "count":
        return {"top": "2", "middle": "2", "bottom": "1"}[question.place]
    return {"colour": COLOURS[0], "shape": SHAPES[0], "most": ROWS[0]}[question.kind]


def questions(scene: Scene) -> list[Question]:
    """Every question that has an answer in the scene."""
    cells = [cell for cell, _ in scene.things()]
    asked = [
        *(Question("colour", cell) for cell in cells),
        *(Question("shape", cell) for cell in cells),
        Question("most"),
        *(Question("count", row) for row in ROWS),
    ]
    return [question for question in asked if answer(scene, question) is not None]


def draw_question(scene: Scene, rng: np.random.Generator) -> Question:
    """One of the scene's questions: first its kind, all alike, then its place, all alike."""
    by_kind = {kind: [question for question in questions(scene) if question.kind == kind] for kind in KINDS}
    offered = [some for some in by_kind.values() if some]
    if not offered:
        raise ValueError("a scene with nothing in it has no questions")
    some = offered[int(rng.integers(len(offered)))]
    return some[int(rng.integers(len(some)))]
