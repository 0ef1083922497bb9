"""A model's answers to a set of questions, kept as they come: what is there already is not written again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from sparring.build import game_domain, solver_role
from sparring.data import PromptSet
from sparring.evaluation.alpaca_eval.data import Instruction, ModelOutput, read_outputs, write_outputs
from sparring.evaluation.judges.local import fingerprint
from sparring.lm.hub import find_folder
from sparring.models import build_models, locate
from sparring.settings import ChallengeConfig, RunConfig
from sparring.types import Message, Prompt
from sparring.writers import build_sampler

AT_ONCE = 64
"""Questions between two writings of the file."""

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


def questions_of(instructions: Sequence[Instruction]) -> list[Question]:
    """AlpacaEval's instructions as questions."""
    return [Question(item.text, item.dataset) for item in instructions]


def questions_from(prompts: PromptSet, subset: str | None) -> list[Question]:
    """A prompt set's rows as questions; subset: the column that names each row's subset, None: none does.

    Raises:
        ValueError: a row lacks the column, or two rows ask the same.
    """
    found: list[Question] = []
    for number, row in enumerate(prompts.rows, 1):
        if subset is not None and subset not in row.columns:
            known = ", ".join(row.columns) or "none"
            raise ValueError(f"--subset: {prompts.name}, row {number} has no column {subset!r} (it has: {known})")
        name = None if subset is None else str(row.columns[subset]).replace("/", "-").strip() or "-"
        found.append(Question(row.query, name, row.messages, row.columns))
    distinct = {(q.text, json.dumps(q.messages)): q for q in found}
    if len(distinct) < len(found):
        raise ValueError(f"{prompts.name}: {len(found) - len(distinct)} prompts are there twice; leave the copies out")
    return found


def answering(
    config: RunConfig, path: str, *, temperature: float | None = None, tokens: int | None = None
) -> RunConfig:
    """A configuration under which `path` answers: no reference, no game but questions."""
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
            "model": config.model.model_copy(update={"path": path, "reference": None}),
            "game": game,
            "learner": config.learner.model_copy(update={"beta": 0.0}),
        }
    )


def answers(config: RunConfig, questions: Sequence[Question], folder: Path, say: Said) -> tuple[list[str], Path]:
    """What the configuration's model answers, one a question, and the file with all of it (AlpacaEval's form).

    The file is named by all that the answers depend on, and written every few questions: a second call, also after an
    interruption, goes on where the first one stopped.

    Raises:
        ValueError: no questions, or the file was changed by somebody.
    """
    if not questions:
        raise ValueError("there is nothing to answer: the prompt set is empty")
    name = config.model.path
    file = folder / f"outputs-{_slug(name)}-{_digest(config, questions)}.json"
    there = read_outputs(file) if file.is_file() else []
    if [row.instruction for row in there] != [question.text for question in questions[: len(there)]]:
        raise ValueError(f"{file}: holds other questions than its name says; remove it")
    if len(there) < len(questions):
        kept = f" ({len(there)} are there)" if there else ""
        say(f"{name} answers {len(questions)} questions{kept}")
        folder.mkdir(parents=True, exist_ok=True)
        _write(config, questions, there, file, say)
    return [row.output for row in there], file


def _write(config: RunConfig, questions: Sequence[Question], there: list[ModelOutput], file: Path, say: Said) -> None:
    """The missing answers, added to `there` and to the file."""
    models = build_models(config, trainable=False)
    sampler = build_sampler(models, config)
    role = replace(solver_role(config.game, game_domain(config.game)), weight=0.0)
    cut = empty = 0
    while len(there) < len(questions):
        start = len(there)
        part = questions[start : start + AT_ONCE]
        prompts = [
            role.prompt(query=question.text) if question.messages is None else Prompt(question.messages)
            for question in part
        ]
        turns = sampler.at(start).sample(role, prompts)  # draws derive from where the part begins
        cut += sum(turn.finish == "length" for turn in turns)
        empty += sum(not turn.text.strip() for turn in turns)
        for question, turn in zip(part, turns, strict=True):
            there.append(ModelOutput(question.text, turn.text, config.model.path, question.subset))
        write_outputs(file, there)
        say(f"{len(there)} of {len(questions)} answered")
    if cut or empty:
        say(f"{cut} answers were cut off at {role.sampling.max_new_tokens} tokens, {empty} are empty")


def _digest(config: RunConfig, questions: Sequence[Question]) -> str:
    """Names all that the answers depend on: model, prompts, sampling, questions."""
    model = config.model
    content = fingerprint(find_folder(locate(model.path), model.revision, weights=True))
    asked = [[question.text, question.messages] for question in questions]
    settings = [model.dtype, model.engine, model.template_kwargs, config.game.solver.model_dump(), config.game.domain]
    files = [Path(name).read_text("utf-8") for name in (model.chat_template, config.game.solver.prompt) if name]
    return sha256(json.dumps([content, settings, files, config.seed, asked], default=str).encode()).hexdigest()[:12]


def _slug(name: str) -> str:
    """A name that a file may have."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:] or "model"
