"""A data set as lessons: read, rendered, what can't be used told, a share held out, dealt to steps."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.data import Order, images_folder
from sparring.data_records import Names, read_records
from sparring.sampling.seeds import generator
from sparring.settings.sft import SFTDataConfig
from sparring.sft.formats import BadRowError, OpenImage, read_conversation
from sparring.sft.spans import Lesson, Speller

NAMES = Names("data.path", "data.split", "data.subset", "data.prompt", "data.revision")
SHOWN = 10
"""Unusable rows that are named one by one; all are in the run's skipped-rows.jsonl."""


@dataclass
class Curriculum:
    """What a run learns from.

    Attributes:
        taught, held_out: the lessons of each part; a conversation's are in one part.
        skipped: (row number from 1, reason) of every row that can't be used.
        too_long, cut: lessons over the longest length that were dropped, and that lost their end.
    """

    taught: list[Lesson] = field(default_factory=list[Lesson])
    held_out: list[Lesson] = field(default_factory=list[Lesson])
    skipped: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    too_long: int = 0
    cut: int = 0

    def __post_init__(self) -> None:
        self._order: Order | None = None

    def steps(self, batch: int, epochs: float) -> int:
        """Updates of `batch` lessons in so many epochs."""
        return max(1, math.ceil(round(epochs * len(self.taught)) / batch))

    def at(self, step: int, batch: int, total: int, seed: int) -> list[Lesson]:
        """The lessons of a step (from 1): each once an epoch, in an order drawn from (seed, epoch); the step after
        which `total` lessons have been taught has what is left."""
        self._order = self._order or Order(len(self.taught), "sft/epoch")
        first = (step - 1) * batch
        return [self.taught[self._order.at(index, seed)] for index in range(first, min(first + batch, total))]

    def digest(self) -> str:
        """Of every id that is read and every one that is learned: what a resumed run must find again."""
        found = hashlib.sha256()
        for part in (self.taught, self.held_out):
            for lesson in part:
                found.update(repr((lesson.prompt_ids, lesson.completion_ids)).encode() + lesson.trained.tobytes())
            found.update(b"/")
        return found.hexdigest()


def load_records(settings: SFTDataConfig) -> list[Any]:
    """The data set's rows as they are. Raises ValueError where there are none, see `data.load_prompts`."""
    records = read_records(
        settings.path, split=settings.split, subset=settings.subset, revision=settings.revision, names=NAMES
    )
    if not records:
        raise ValueError(f"{settings.path} holds no row")
    return records


def curriculum(
    records: Sequence[Any],
    speller: Speller,
    settings: SFTDataConfig,
    *,
    limit: int,
    seed: int,
    open_image: OpenImage | None = None,
) -> Curriculum:
    """Render the rows and hold some out.

    Args:
        limit: longest lesson, tokens.
        seed: of which conversations are held out.
        open_image: see `read_conversation`.

    Raises:
        ValueError: nothing is left to learn from.
    """
    made = Curriculum()
    folder = images_folder(settings.path) if settings.images is None else Path(settings.images)
    conversations: list[list[Lesson]] = []
    for number, record in enumerate(records, 1):
        try:
            lessons = speller.lessons(read_conversation(record, settings, open_image, folder))
        except BadRowError as error:
            made.skipped.append((number, str(error)))
            continue
        if kept := _fitting(lessons, limit, made, cut=settings.too_long == "cut"):
            conversations.append(kept)
    if not conversations:
        raise ValueError(f"{settings.path} holds nothing to learn from: {_why(made, len(records), limit)}")
    drawn = generator(seed, 0, "sft/held-out").permutation(len(conversations))
    count = min(settings.held_out_most, int(settings.held_out * len(conversations)))
    held_out = {int(index) for index in drawn[:count]}
    for index, lessons in enumerate(conversations):
        (made.held_out if index in held_out else made.taught).extend(lessons)
    return made


def _fitting(lessons: Sequence[Lesson], limit: int, made: Curriculum, *, cut: bool) -> list[Lesson]:
    kept: list[Lesson] = []
    for lesson in lessons:
        if lesson.length <= limit:
            kept.append(lesson)
        elif cut and (shorter := lesson.cut(limit)) is not None:
            made.cut += 1
            kept.append(shorter)
        else:
            made.too_long += 1
    return kept


def _why(made: Curriculum, records: int, limit: int) -> str:
    told = [f"{made.too_long} are longer than {limit} tokens (data.max_tokens)"] if made.too_long else []
    if made.skipped:
        number, reason = made.skipped[0]
        told.append(f"{len(made.skipped)} can't be used (row {number}: {reason})")
    return f"of {records} rows {' and '.join(told)}"


def tell(made: Curriculum, speller: Speller, source: str, limit: int, say: Callable[[str], None]) -> None:
    """Say what is learned from and what is left out."""
    learned = sum(int(lesson.trained.sum()) for lesson in made.taught)
    say(f"{source}: {len(made.taught)} rows with {learned} tokens to learn, {len(made.held_out)} rows held out")
    if made.too_long:
        say(f"{made.too_long} rows of more than {limit} tokens (data.max_tokens) are left out; data.too_long=cut: cut")
    if made.cut:
        say(f"{made.cut} rows of more than {limit} tokens (data.max_tokens) are cut there")
    if speller.verbatim:
        say(
            f"{speller.verbatim} answers are written as they stand: the chat template would leave a part of them out "
            "(their thoughts, or what is said before them)"
        )
    for number, reason in made.skipped[:SHOWN]:
        say(f"row {number} can't be used: {reason}")
    if made.skipped:
        reasons = Counter(reason for _, reason in made.skipped)
        most, times = reasons.most_common(1)[0]
        say(f"{len(made.skipped)} rows can't be used, {times} of them because: {most}; all are in skipped-rows.jsonl")


def skipped_lines(made: Curriculum) -> str:
    """The unusable rows as lines of JSON."""
    return "".join(json.dumps({"row": row, "reason": reason}) + "\n" for row, reason in made.skipped)
