"""What one step asks of the models, in tokens, from the game's settings alone.

Every query is valid, completions have a share (by default all) of the longest length allowed, and prompts are as long
as their templates, filled with such completions. Nothing is encoded: a template counts a token every four characters,
which is generous for English.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparring.batching import Example, MicroBatch, pack
from sparring.build import game_domain
from sparring.domains import Domain
from sparring.lm.base import SamplingParams
from sparring.prompts import from_file
from sparring.roles import Role
from sparring.settings import GameConfig, RoleConfig, RunConfig
from sparring.tasks import load_tasks

CHARACTERS_A_TOKEN = 4
CHAT = 32  # tokens that a chat template writes around a message, a system line and a date included
PROMPT = 256  # tokens taken for a prompt of a data set, which is not read here


@dataclass(frozen=True)
class Call:
    """One role's turn in a step: `prompts` prompts, `distinct` of them different, `answers` completions each.

    tokens: of a completion; prompt_tokens: of a prompt, chat template included.
    """

    role: str
    prompts: int
    answers: int
    prompt_tokens: int
    tokens: int
    distinct: int
    trained: bool = True

    @property
    def rows(self) -> int:
        """Completions in all."""
        return self.prompts * self.answers


@dataclass(frozen=True)
class Workload:
    """One step on one GPU: what is sampled, and how many conversations of how many tokens the reward scores."""

    calls: tuple[Call, ...]
    scored: int
    scored_tokens: int

    def micro_batches(self, token_budget: int, *, shared_prompts: bool) -> list[MicroBatch]:
        """The update's forward passes, as the learner packs them; only lengths matter, so the ids are made up."""
        nothing = np.zeros(0, np.float32)
        examples: list[Example] = []
        for number, call in enumerate(self.calls):
            completion = (0,) * call.tokens
            for index in range(call.prompts if call.trained else 0):
                prompt = (number, index % call.distinct, *(0,) * (call.prompt_tokens - 2))
                examples += [Example(prompt, completion, 1.0, 1.0, nothing, call.role)] * call.answers
        return pack(examples, token_budget, shared_prompts=shared_prompts)


def workload(config: RunConfig, queries: int, mean_length: float = 1.0) -> Workload:
    """A step's calls for so many queries (one GPU's share of game.n_queries).

    kind lsp: Challenger, Solver, and the reference as grader where game.quality.source is reference. lsp_zero:
    Challenger, Solver. grpo and custom: the Solver, on prompts of 256 tokens; what else a custom game asks is unknown.
    mean_length: completions' length as a share of max_new_tokens. Raises ValueError where that isn't in (0, 1].
    """
    if not 0 < mean_length <= 1:
        raise ValueError(f"mean_length must be above 0 and at most 1, not {mean_length}")
    game, domain = config.game, game_domain(config.game)

    def tokens(role: RoleConfig) -> int:
        return max(1, round(mean_length * role.max_new_tokens))

    calls: list[Call] = []
    asked, answered = PROMPT, tokens(game.solver)
    if game.kind in ("lsp", "lsp_zero"):
        tasks = domain.tasks if game.challenge.tasks is None else load_tasks(Path(game.challenge.tasks))
        fields = [{"task": task.task, "template": task.template} for task in tasks]
        asked = tokens(game.challenger)
        prompt = _prompt_tokens(game, domain, "challenger", fields)
        calls.append(Call("challenger", queries, 1, prompt, asked, min(queries, len(tasks))))
    prompt = _prompt_tokens(game, domain, "solver", [{"query": ""}]) + asked
    calls.append(Call("solver", queries, game.n_answers, prompt, answered, queries))
    if game.kind == "lsp" and game.quality.source == "reference":
        prompt = _prompt_tokens(game, domain, "grader", [{"query": "", "answer": ""}]) + asked + answered
        graded = queries * game.n_answers
        calls.append(Call("grader", graded, game.quality.samples, prompt, tokens(game.grader), graded, trained=False))
    return Workload(tuple(calls), queries * game.n_answers, CHAT + asked + answered)


def _prompt_tokens(game: GameConfig, domain: Domain, name: str, fields: Sequence[dict[str, Any]]) -> int:
    """The longest of a role's prompts with these fields, chat template included."""
    settings: RoleConfig = getattr(game, name)
    template: str = getattr(domain, name)
    if settings.prompt is not None:
        template = from_file(settings.prompt, f"game.{name}.prompt")
    role = Role(name, template, SamplingParams(1), system=settings.system)
    messages = [role.prompt(**given).messages for given in fields]
    characters = max(sum(len(message["content"]) for message in listed) for listed in messages)
    return CHAT + math.ceil(characters / CHARACTERS_A_TOKEN)
