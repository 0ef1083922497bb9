"""The picture world as a domain: what a game of seeing and reading asks of it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sparring.data import PromptSet, Row
from sparring.domains import Described, Domain, TestItem
from sparring.games.vision import FURTHER
from sparring.pictures import descriptions
from sparring.pictures.descriptions import Fidelity, scene_of, split_fidelity
from sparring.pictures.questions import Question, answer, draw_question, parse_question
from sparring.pictures.questions import questions as all_questions
from sparring.pictures.response import reader_prompt
from sparring.pictures.world import Scene, Split, draw, draw_scene
from sparring.sampling.seeds import generator
from sparring.verify.extract import boxed

PERCEIVER = "{{ query }}"
"""The perceiver's prompt (Jinja): the picture goes before it. The model knows no instructions: it has one form."""
READER = reader_prompt("{{ query }}", "{{ description }}")
MORE_QUESTIONS = 3
"""Further ones of the same picture that a training row holds."""


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
    def png(self) -> bytes:
        """The picture as a file."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "PNG")
        return buffer.getvalue()

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

    @property
    def columns(self) -> dict[str, Any]:
        """What graders and reports know of it."""
        return {"answer": self.answer, "source": self.kind, "row": self.row or "all", "scene": str(self.scene)}


def questions(split: Split, seed: int, n: int) -> list[Item]:
    """n items of the split; the first of a longer list are those of a shorter one. No scene is in both splits."""
    key = (seed, ("train", "held-out").index(split))
    rng = np.random.default_rng(key)
    items: list[Item] = []
    for i in range(n):
        scene = draw_scene(rng, split)
        items.append(Item(f"{split}-{seed}-{i}", scene, draw_question(scene, rng), (*key, i)))
    return items


class EndlessPictures(PromptSet):
    """Training questions, drawn anew for every step from (seed, step): no picture comes twice, and none is kept."""

    def __init__(self, name: str) -> None:
        super().__init__([_row(item, []) for item in questions("train", 0, 1)], name)

    def at(self, step: int, n: int, seed: int) -> list[Row]:
        """The n rows of a step (from 1)."""
        rng = generator(seed, step, f"scenes/{self.name}")
        rows: list[Row] = []
        for number in range(n):
            scene = draw_scene(rng, "train")
            item = Item(f"{step}-{number}", scene, draw_question(scene, rng), (seed, 2, step, number))
            others = [question for question in all_questions(scene) if question != item.asked]
            more = [others[int(i)] for i in rng.permutation(len(others))[:MORE_QUESTIONS]]
            rows.append(_row(item, more))
        return rows


def _row(item: Item, more: Sequence[Question]) -> Row:
    also = [{"question": str(question), "answer": answer(item.scene, question)} for question in more]
    return Row(item.question, None, {**item.columns, FURTHER: also}, (item.png,), f"picture {item.item_id}")


def rule_match(given: str | None, gold: str) -> bool:
    """Whether a boxed answer is the gold one; letter case, blanks and a full stop aside.

    >>> rule_match(" Red.", "red"), rule_match("red circle", "red"), rule_match(None, "red")
    (True, False, False)
    """
    return given is not None and given.strip().removesuffix(".").strip().lower() == gold.strip().lower()


def reward(queries: Sequence[str], answers: Sequence[str], answer: Sequence[str]) -> list[float]:
    """R: 1 where the boxed answer is the gold one, else 0."""
    return [float(rule_match(boxed(text), gold)) for text, gold in zip(answers, answer, strict=True)]


def sufficient(description: str | None, question: str, gold: str) -> bool:
    """The grader: whether the gold answer follows from the description alone.

    Raises:
        ValueError: the question is none of the picture world's.
    """
    asked = parse_question(question)
    if asked is None:
        raise ValueError(f"the picture world's grader knows no question {question!r}")
    return descriptions.sufficient(description, asked, gold)


def grade(asked: Sequence[Described]) -> list[bool | None]:
    """The same of many."""
    return [sufficient(one.description, one.question, one.gold) for one in asked]


def faithful(items: Sequence[TestItem], described: Sequence[str | None]) -> dict[str, dict[str, float | None]]:
    """Precision and recall of descriptions, over all that was said and all that is there: of everything, of the cells
    that the questions ask about, and of the others."""
    asked, others = Fidelity(), Fidelity()
    for item, description in zip(items, described, strict=True):
        question = parse_question(item.query)
        assert question is not None
        about, beside = split_fidelity(description, scene_of(str(item.columns["scene"])), question)
        asked, others = asked + about, others + beside
    parts: Mapping[str, Fidelity] = {"all": asked + others, "asked": asked, "unasked": others}
    return {name: {"precision": part.precision, "recall": part.recall} for name, part in parts.items()}


def prompt_set(name: str) -> PromptSet:
    """`train`: questions without end, none of a held-out picture."""
    if name != "train":
        raise ValueError(f"the picture world has the prompt set pictures:train, not pictures:{name}")
    return EndlessPictures(f"pictures:{name}")


def tests(seed: int, n: int) -> list[TestItem]:
    """n questions about held-out pictures."""
    return [
        TestItem(item.item_id, (item.kind,), item.question, item.columns, (item.png,))
        for item in questions("held-out", seed, n)
    ]


PICTURES = Domain(
    name="pictures",
    solver=PERCEIVER,
    perceiver=PERCEIVER,
    reader=READER,
    reward=reward,
    prompt_set=prompt_set,
    tests=tests,
    sufficient=grade,
    faithful=faithful,
)
