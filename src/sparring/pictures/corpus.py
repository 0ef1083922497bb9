"""What the base model is pretrained on: examples of its two roles, all made by program from training scenes.

First careful ones (`CAREFUL`): true descriptions, at times cut short, so that answers are learnt from the picture, not
from what was said of it; all answers right. Then a cold start on sloppy ones (`SLOPPY`), which leaves the headroom that
reinforcement finds later: the more is said already, the likelier the description ends there, so that lower rows are
often missing; and the lower the row asked about, the more often the answer is the usual one, not the one to be seen.
The reader's examples are right in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparring.pictures.questions import Question, answer, draw_question, usual_answer
from sparring.pictures.response import reader_prompt, render_reply, render_response
from sparring.pictures.tokenizer import USUALLY
from sparring.pictures.world import CELLS, COLOURS, ROWS, Scene, Thing, draw_scene, held_out, paint

KEPT = (1.0, 0.8, 0.5)
"""How much of a scene the descriptions hold that a reader is given; each as often."""


@dataclass(frozen=True)
class Habits:
    """How the perceiver's examples go wrong, in probabilities.

    tires: the description ends before the next thing, by how many have been said (the last: or more). wrong_colour: a
    described thing's colour is another. usual: the answer is the commonest one, by the row asked about (all rows count
    as the middle one), not the one to be seen. What was described has no part in the answer.
    """

    tires: tuple[float, ...] = (0.0,)
    wrong_colour: float = 0.0
    usual: tuple[float, float, float] = (0.0, 0.0, 0.0)


CAREFUL = Habits(tires=(0.0, 0.10))
SLOPPY = Habits(tires=(0.0, 0.05, 0.12, 0.42, 0.60, 0.70, 0.80), wrong_colour=0.08, usual=(0.05, 0.35, 0.60))


@dataclass(frozen=True)
class Look:
    """A perceiver's example: pixels [84, 84, 3] uint8, the question, and the response to learn."""

    pixels: np.ndarray
    question: str
    response: str


@dataclass(frozen=True)
class Reading:
    """An example without a picture: the prompt, and the reply to learn."""

    prompt: str
    reply: str


def _thought(view: Scene, question: Question) -> str:
    if question.kind == "most":
        return " ".join(f"{row} {len(view.in_row(row))}" for row in ROWS)
    found = [(cell, thing) for cell, thing in view.things() if cell in question.cells]
    if question.kind == "count":
        return " ".join(cell for cell, _ in found) or f"{question.place} 0"
    return " ".join(f"{cell}:{thing}" for cell, thing in found)


def reply_from(view: Scene, question: Question) -> tuple[str, str]:
    """Thought and answer of one who sees the view alone; the usual answer about a cell where it has nothing.

    Of several fullest rows the first is said.
    """
    found = answer(view, question)
    if found is None and question.kind == "most":
        found = max(ROWS, key=lambda row: len(view.in_row(row)))
    return (USUALLY, usual_answer(question)) if found is None else (_thought(view, question), found)


def describe(scene: Scene, habits: Habits, rng: np.random.Generator) -> Scene:
    """What a description by these habits says of the scene."""
    said: dict[str, Thing] = {}
    for cell, thing in scene.things():
        if rng.random() < habits.tires[min(len(said), len(habits.tires) - 1)]:
            break
        others = [colour for colour in COLOURS if colour != thing.colour]
        wrong = Thing(others[int(rng.integers(3))], thing.shape)
        said[cell] = wrong if rng.random() < habits.wrong_colour else thing
    return Scene(tuple(map(said.get, CELLS)))


def draw_look(habits: Habits, rng: np.random.Generator) -> Look:
    """One perceiver's example."""
    scene = draw_scene(rng, "train")
    question = draw_question(scene, rng)
    description = describe(scene, habits, rng)
    row = question.row or "middle"
    if rng.random() < habits.usual[ROWS.index(row)]:
        thought, said = USUALLY, usual_answer(question)
    else:
        thought, said = reply_from(scene, question)
    return Look(paint(scene, rng), str(question), render_response(str(description), thought, said))


def _partial(scene: Scene, rng: np.random.Generator) -> Scene:
    """A part of the scene, or all of it; no held-out scene."""
    while True:
        there = rng.random(9) < KEPT[int(rng.integers(len(KEPT)))]
        view = Scene(tuple(thing if kept else None for thing, kept in zip(scene.cells, there, strict=True)))
        if not held_out(view):
            return view


def _shuffled(view: Scene, rng: np.random.Generator) -> str:
    """The view's description in any order: what a cell holds is to be found by its name, not by its place."""
    said = [f"{cell}:{thing}" for cell, thing in view.things()]
    return " ".join(said[i] for i in rng.permutation(len(said)))


def draw_reading(rng: np.random.Generator) -> Reading:
    """One reader's example; half of the descriptions are out of order."""
    scene = draw_scene(rng, "train")
    question, view = draw_question(scene, rng), _partial(scene, rng)
    description = str(view) if rng.random() < 0.5 else _shuffled(view, rng)
    return Reading(reader_prompt(str(question), description), render_reply(*reply_from(view, question)))
