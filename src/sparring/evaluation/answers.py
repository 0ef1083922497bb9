"""A model's answers to a set of questions, kept as they come: what is there already is not written again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from sparring.build import game_domain, solver_role
from sparring.data import PromptSet
from sparring.evaluation.alpaca_eval.data import Instruction
from sparring.evaluation.alpaca_eval.records import Record, read_records
from sparring.evaluation.document import slug
from sparring.evaluation.judges.local import fingerprint
from sparring.files import write_json_atomic
from sparring.images import Picture
from sparring.lm.hub import find_folder
from sparring.lm.load import resolve_dtype
from sparring.models import build_models, locate, resolve_device
from sparring.roles import Role
from sparring.sampling.seeds import generator
from sparring.sampling.turns import TurnSampler
from sparring.settings import ChallengeConfig, RunConfig
from sparring.types import Message, ModelName, Prompt, Turn, text_of
from sparring.writers import build_sampler

AT_ONCE = 64
"""Questions between two writings of the file."""
PATIENCE = 10.0
"""Seconds between two words on how far it is."""

TOO_LONG = "too_long"
"""How the file says that a prompt left no room in the model's context."""

Said = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    `text` is how judges see it; `messages` the chat where it was given as one; `columns` what else its row holds, for
    verifiers.
    """

    text: str
    subset: str | None = None
    messages: tuple[Message, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def prompt(self, role: Role) -> Prompt:
        """The question as a role is asked it."""
        info = {"query_text": self.text, "dataset": self.subset}
        return role.prompt(query=self.text, info=info) if self.messages is None else Prompt(self.messages, info=info)


def questions_of(instructions: Sequence[Instruction]) -> list[Question]:
    """AlpacaEval's instructions as questions."""
    return [Question(item.text, item.dataset) for item in instructions]


def questions_from(prompts: PromptSet, subset: str | None, n: int | None = None) -> list[Question]:
    """A prompt set's first n rows as questions; subset: the column that names each row's subset, None: none does.

    Raises:
        ValueError: a row lacks the column, or two rows ask the same.
    """
    found: dict[str, Question] = {}
    for row in prompts.rows[:n]:
        if subset is not None and subset not in row.columns:
            known = ", ".join(row.columns) or "no other column"
            raise ValueError(
                f"--subset: {prompts.name} has no column {subset!r} in the row {row.query!r:.60} ({known})"
            )
        name = None if subset is None else str(row.columns[subset]).replace("/", "-").strip() or "-"
        text = row.query if row.messages is None else chat_text(row.messages)
        if text in found:
            raise ValueError(f"--prompts: {prompts.name} asks {text!r:.60} twice: leave one of the rows out")
        found[text] = Question(text, name, row.messages, row.columns)
    return list(found.values())


def chat_text(messages: Sequence[Message]) -> str:
    """A chat as a judge reads it: the one message, or all of them, each under its role.

    >>> chat_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}])
    '[system]\\nBe brief.\\n\\n[user]\\nWho?'
    """
    if len(messages) == 1:
        return text_of(messages[0])
    return "\n\n".join(f"[{message['role']}]\n{text_of(message)}" for message in messages)


def answering(config: RunConfig, *, temperature: float | None, tokens: int | None, seed: int) -> RunConfig:
    """A configuration whose model answers: no reference, no game but questions. None: the configuration's own."""
    solver = config.game.solver
    solver = solver.model_copy(
        update={
            "temperature": config.evaluation.temperature if temperature is None else temperature,
            "max_new_tokens": tokens or solver.max_new_tokens,
        }
    )
    game = config.game.model_copy(update={"kind": "grpo", "challenge": ChallengeConfig(), "solver": solver})
    return config.model_copy(
        update={
            "seed": seed,
            "model": config.model.model_copy(update={"reference": None}),
            "game": game,
            "learner": config.learner.model_copy(update={"beta": 0.0}),
        }
    )


class Answerer:
    """A model's answers to prompts under one role: a `Sampler` that is asked for all of them, part by part, in order.

    They are kept in AlpacaEval's form (model_outputs.json), in a file named by all that they depend on, which is
    written with each part: after an interruption the next Answerer goes on where this one stopped. The model is loaded
    with the first part that is not there, and let go with the last.

    Args:
        config: the model, how it is loaded and asked, and the seed; see `answering`.
        role: who answers; never trained.
        prompts: all that will be asked; their info holds `query_text` and maybe `dataset`.
        folder: where the file goes.
        say: told how it goes.
        n: answers a prompt.
        opened: what loads the model, where several Answerers share one; None: loaded as the configuration says.

    Raises:
        ValueError: no prompts, no such model, or the file was changed by somebody.
    """

    def __init__(
        self,
        config: RunConfig,
        role: Role,
        prompts: Sequence[Prompt],
        *,
        folder: Path,
        say: Said,
        n: int = 1,
        opened: Callable[[], TurnSampler] | None = None,
    ) -> None:
        if not prompts:
            raise ValueError("there is nothing to answer: the prompt set is empty")
        self.name, self.seed, self.step = config.model.path, config.seed, 0
        self.file = folder / f"outputs-{slug(self.name)}-{_digest(config, role, prompts, n)}.json"
        self._role, self._prompts, self._n, self._say = replace(role, weight=0.0), prompts, n, say
        self._opened = opened or (lambda: build_sampler(build_models(config, trainable=False), config))
        self._rows = _kept(self.file, prompts, n)
        self._place, self._told = 0, 0.0
        self._sampler: TurnSampler | None = None

    def all(self) -> list[list[str]]:
        """Every prompt's answers."""
        turns: list[Turn] = []
        for start in range(self._place, len(self._prompts), AT_ONCE):
            turns += self.sample(self._role, self._prompts[start : start + AT_ONCE], self._n)
        self._say_flaws(turns)
        return [[turn.text for turn in turns[at : at + self._n]] for at in range(0, len(turns), self._n)]

    def sample(self, role: Role, prompts: Sequence[Prompt], n: int = 1, model: ModelName = "policy") -> list[Turn]:
        """See `Sampler.sample`, for the next part of the prompts."""
        assert n == self._n and role.sampling == self._role.sampling
        start, self._place = self._place, self._place + len(prompts)
        if len(self._rows) < n * self._place:
            self._write(start, prompts)
        if self._place == len(self._prompts):
            self._sampler = None
        rows = self._rows[n * start : n * self._place]
        return [_turn(role, prompts[index // n], row) for index, row in enumerate(rows)]

    def rng(self, purpose: str) -> np.random.Generator:
        """See `Sampler.rng`."""
        return generator(self.seed, self.step, f"game/{purpose}")

    def _say_flaws(self, turns: Sequence[Turn]) -> None:
        long = sum(bool(turn.info.get(TOO_LONG)) for turn in turns)
        cut = sum(turn.finish == "length" for turn in turns) - long
        empty = sum(not turn.text.strip() for turn in turns) - long
        if long or cut or empty:
            told = f"{cut} answers were cut off at {self._role.sampling.max_new_tokens} tokens, {empty} are empty"
            room = f", {long} prompts left no room in the model's context" if long else ""
            self._say(f"{self.name}: {told}{room}")

    def _write(self, start: int, prompts: Sequence[Prompt]) -> None:
        """A part's answers, from the prompt `start` on, added to the rows and to the file."""
        total = len(self._prompts)
        if self._sampler is None:
            there = f" ({start} are there)" if start else ""
            self._say(f"{self.name} answers {total} questions{there}")
            self._told = time.monotonic()
            self._sampler = self._opened()
        turns = self._sampler.at(start).sample(self._role, prompts, self._n)  # draws derive from where the part begins
        self._rows = [*self._rows[: start * self._n], *(_row(turn, self.name) for turn in turns)]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.file, self._rows)
        done = start + len(prompts)
        if done == total or time.monotonic() - self._told > PATIENCE:
            self._told = time.monotonic()
            self._say(f"{done} of {total} answered")


def answerer(config: RunConfig, questions: Sequence[Question], folder: Path, say: Said) -> Answerer:
    """The configuration's model, asked these questions as its Solver."""
    role = solver_role(config.game, game_domain(config.game))
    return Answerer(config, role, [question.prompt(role) for question in questions], folder=folder, say=say)


def _row(turn: Turn, generator_name: str) -> dict[str, Any]:
    """A row of model_outputs.json; `finish` is ours."""
    subset = turn.prompt.info.get("dataset")
    return {
        **({} if subset is None else {"dataset": subset}),
        "instruction": turn.prompt.info["query_text"],
        "output": turn.text,
        "generator": generator_name,
        "finish": TOO_LONG if turn.info.get(TOO_LONG) else turn.finish,
    }


def _kept(file: Path, prompts: Sequence[Prompt], n: int) -> list[dict[str, Any]]:
    """The rows of a file that this module wrote, none where there is none."""
    records = read_records(file) if file.is_file() else []
    asked = [prompt.info["query_text"] for prompt in prompts for _ in range(n)]
    if len(records) > len(asked) or not all(map(_is_answer, records, asked)):
        raise ValueError(f"{file}: holds other answers than its name says; remove it")
    return [dict(record.fields) for record in records]


def _is_answer(record: Record, asked: str) -> bool:
    return record.get("instruction") == asked and bool(record.text("finish")) and record.text("output") is not None


def _turn(role: Role, prompt: Prompt, row: Mapping[str, Any]) -> Turn:
    """A turn as scoring sees it; what was sampled to get it is not kept."""
    too_long = row["finish"] == TOO_LONG
    return Turn(
        role,
        prompt,
        (),
        (),
        np.empty(0, np.float32),
        row["output"],
        "stop" if row["finish"] == "stop" else "length",
        info={**prompt.info, TOO_LONG: True} if too_long else prompt.info,
    )


def _digest(config: RunConfig, role: Role, prompts: Sequence[Prompt], n: int) -> str:
    """Names all that the answers depend on: model, precision, chat template, sampling, seed, prompts; and for pictures,
    which the prompts hold by their handles, the sizes that they are shown in."""
    model = config.model
    content = fingerprint(find_folder(locate(model.path), model.revision, weights=True))
    template = None if model.chat_template is None else Path(model.chat_template).read_text(encoding="utf-8")
    loaded = [str(resolve_dtype(model.dtype, resolve_device(model.device))), model.engine, model.attention]
    asked = [[dict(message) for message in prompt.messages] for prompt in prompts]
    named = [content, loaded, template, model.template_kwargs, role.name, repr(role.sampling), n, config.seed, asked]
    written = json.dumps(named, default=_handle)
    if '"type": "image"' in written:
        written += json.dumps(model.vision.model_dump(include={"min_pixels", "max_pixels"}))
    return sha256(written.encode()).hexdigest()[:12]


def _handle(value: object) -> object:
    return value.handle if isinstance(value, Picture) else str(value)
