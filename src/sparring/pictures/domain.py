"""The picture world as a domain: what a game of seeing and reading asks of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sparring.pictures import descriptions
from sparring.pictures.questions import Question, answer, draw_question, parse_question
from sparring.pictures.response import reader_prompt
from sparring.pictures.world import Scene, Split, draw, draw_scene

__all__ = ["PERCEIVER", "READER", "Item", "questions", "rule_match", "sufficient"]

PERCEIVER = "{{ question }}"
"""The perceiver's prompt (Jinja): the picture goes before it. The model knows no instructions: it has one form."""
READER = reader_prompt("{{ question }}", "{{ description }}")


@dataclass(frozen=True)
class Item:
    """A picture and a question about it. The picture is drawn anew, and always the same, from `noise_seed`."""

    item_id: str
    scene: Scene
    asked: Question
    noise_seed: tuple[int, ...]

    @property
    def picture(self) -> Image.Image:
        """84 by 84 pixels, RGB."""
        return draw(self.scene, np.random.default_rng(self.noise_seed))

    @property
    def question(self) -> str:
        """The question's text."""
        return str(self.asked)

    @property
    def answer(self) -> str:
        """The gold answer."""
        gold = answer(self.scene, self.asked)
        assert gold is not None
        return gold

    @property
    def kind(self) -> str:
        """colour, shape, most or count."""
        return self.asked.kind

    @property
    def row(self) -> str | None:
        """The row asked about: top, middle or bottom; None where it is all of them."""
        return self.asked.row


def questions(split: Split, seed: int, n: int) -> list[Item]:
    """n items of the split; the first of a longer list are those of a shorter one. No scene is in both splits."""
    key = (seed, ("train", "held-out").index(split))
    rng = np.random.default_rng(key)
    items: list[Item] = []
    for i in range(n):
        scene = draw_scene(rng, split)
        items.append(Item(f"{split}-{seed}-{i}", scene, draw_question(scene, rng), (*key, i)))
    return items


def rule_match(given: str | None, gold: str) -> bool:
    """Whether a boxed answer is the gold one; letter case, blanks and a full stop aside.

    >>> rule_match(" Red.", "red"), rule_match("red circle", "red"), rule_match(None, "red")
    (True, False, False)
    """
    return given is not None and given.strip().removesuffix(".").strip().lower() == gold.strip().lower()


def sufficient(description: str | None, question: str, gold: str) -> bool:
    """The grader: whether the gold answer follows from the description alone.

    Raises:
        ValueError: the question is none of the picture world's.
    """
    asked = parse_question(question)
    if asked is None:
        raise ValueError(f"the picture world's grader knows no question {question!r}")
    return descriptions.sufficient(description, asked, gold)
