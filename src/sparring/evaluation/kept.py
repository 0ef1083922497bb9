"""A sampler whose answers are kept, and held-out items from a data set with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparring.data import PromptSet, Row
from sparring.domains import TestItem
from sparring.evaluation.answers import AT_ONCE, Answerer, Said
from sparring.images import Picture, PictureError
from sparring.models import build_models
from sparring.roles import Role
from sparring.sampling.seeds import generator
from sparring.sampling.turns import TurnSampler
from sparring.settings import RunConfig
from sparring.types import ModelName, Prompt, Turn
from sparring.writers import build_sampler


class KeptSampler:
    """A `sampling.base.Sampler` over one model: every call is an `Answerer`'s, with a file of its own.

    So what was answered is not answered again after an interruption, nor by the next evaluation that asks the same. The
    model is loaded with the first call that finds something missing, and let go with this sampler.

    Args:
        config: see `answers.answering`.
        folder: where the files go.
        say: told how it goes.
    """

    def __init__(self, config: RunConfig, folder: Path, say: Said) -> None:
        self._config, self._folder, self._say = config, folder, say
        self.seed, self.step = config.seed, 0
        self._loaded: TurnSampler | None = None

    def sample(self, role: Role, prompts: Sequence[Prompt], n: int = 1, model: ModelName = "policy") -> list[Turn]:
        """See `Sampler.sample`."""
        if not prompts:
            return []
        who = Answerer(self._config, role, prompts, folder=self._folder, say=self._say, n=n, opened=self._opened)
        turns: list[Turn] = []
        for start in range(0, len(prompts), AT_ONCE):
            turns += who.sample(role, prompts[start : start + AT_ONCE], n)
        long = sum(bool(turn.info.get("too_long")) for turn in turns)
        cut = sum(turn.finish == "length" for turn in turns) - long
        if long or cut:
            told = f"{cut} of its {len(turns)} texts were cut off at {role.sampling.max_new_tokens} tokens"
            room = f", {long} prompts left no room in the model's context" if long else ""
            self._say(f"{who.name} as {role.name}: {told}{room}")
        return turns

    def _opened(self) -> TurnSampler:
        self._loaded = self._loaded or build_sampler(build_models(self._config, trainable=False), self._config)
        return self._loaded

    def rng(self, purpose: str) -> np.random.Generator:
        """See `Sampler.rng`."""
        return generator(self.seed, self.step, f"game/{purpose}")


def items_of(prompts: PromptSet, say: Said, *, subset: str | None = None, n: int | None = None) -> list[TestItem]:
    """A prompt set's first n rows as held-out items; subset: the column that names each row's subset, None: none does.

    Rows without a picture, or with one that can't be read, are counted, named and left out.

    Raises:
        ValueError: nothing is left, or a row has no answer, or no column `subset`.
    """
    items: list[TestItem] = []
    without = unreadable = 0
    for number, row in enumerate(prompts.rows[:n], 1):
        item_id = f"{prompts.name}/{number}"
        if not str("" if row.columns.get("answer") is None else row.columns["answer"]).strip():
            raise ValueError(f"{item_id}: the row has no answer (column answer) to compare with")
        if not row.images:
            without += 1
            continue
        try:
            for image in row.images:
                Picture.open(image, name=None if isinstance(image, Path) else f"{row.where}: its image")
        except PictureError as error:
            unreadable += 1
            say(f"left out: {error}")
            continue
        columns = {**row.columns, "answer": str(row.columns["answer"])}
        # Unopened: a data set of pictures is larger than memory.
        items.append(TestItem(item_id, _subset(row, subset, prompts.name), row.query, columns, row.images))
    if without or unreadable:
        say(f"{prompts.name}: {without} rows without a picture and {unreadable} with an unreadable one are left out")
    if not items:
        raise ValueError(f"{prompts.name}: no row with a picture that can be read is left")
    return items


def _subset(row: Row, name: str | None, source: str) -> tuple[str, ...]:
    if name is None:
        return ()
    if name not in row.columns:
        known = ", ".join(row.columns) or "no other column"
        raise ValueError(f"--subset: {source} has no column {name!r} in the row {row.query!r:.60} ({known})")
    return (str(row.columns[name]).replace("/", "-").strip() or "-",)
