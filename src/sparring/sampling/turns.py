"""From prompts to turns: rendering, what fits, seeds. Who writes the completions is a `Writer`.

`LocalWriter` (sampling/local.py) writes with models in this process, others with a server or with several ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, Self

import numpy as np

from sparring.lm.base import Completion, SamplingParams
from sparring.rendering import Renderer
from sparring.roles import Role
from sparring.sampling.seeds import Draws, generator
from sparring.types import ModelName, Prompt, Turn

Ids = tuple[int, ...]
NOTHING = Completion((), np.empty(0, np.float32), "length")
"""The answer to a prompt that leaves no room for one."""


class Writer(Protocol):
    """Writes completions by ids."""

    def complete(
        self, model: ModelName, prompts: Sequence[Ids], n: int, params: SamplingParams, draws: Draws
    ) -> list[list[Completion]]:
        """n completions of every prompt; prompts[i] draws from draws.places[i]. Greedy ones draw nothing.

        Raises:
            ValueError: the run holds no such model.
        """
        ...

    def updated(self, version: int) -> dict[str, float]:
        """The trainer's weights are those after update `version` now; returns what that cost, as figures."""
        ...

    def close(self) -> None:
        """Let go of what is held open."""
        ...


class TurnSampler:
    """A `sampling.base.Sampler` over any writer.

    Args:
        writer: who writes the completions.
        renderer: turns messages into ids, and ids into thought and text.
        stop_ids: ids that end a completion.
        seed: the run's seed.
        context: most tokens of a prompt and its completion; None where the model has no bound.
    """

    def __init__(
        self,
        writer: Writer,
        renderer: Renderer,
        *,
        stop_ids: Sequence[int],
        seed: int = 0,
        context: int | None = None,
    ) -> None:
        self.writer = writer
        self._renderer = renderer
        self._stop_ids = tuple(stop_ids)
        self.seed = seed
        self._context = context
        self.step = 0
        self._calls: Counter[str] = Counter()

    def at(self, step: int) -> Self:
        """This sampler at a step of the run: its draws start anew from (seed, step)."""
        self.step = step
        self._calls.clear()
        return self

    def updated(self, version: int) -> dict[str, float]:
        """See `Writer.updated`."""
        return self.writer.updated(version)

    def close(self) -> None:
        """See `Writer.close`."""
        self.writer.close()

    def rng(self, purpose: str) -> np.random.Generator:
        """The game's own draws at this step."""
        return generator(self.seed, self.step, f"game/{purpose}")

    def sample(self, role: Role, prompts: Sequence[Prompt], n: int = 1, model: ModelName = "policy") -> list[Turn]:
        """See `sampling.base.Sampler.sample`.

        A prompt that leaves no room for a completion in the model's context is answered by nothing: an empty turn,
        cut off at length and noted as `too_long`. A reward never sees it.
        """
        if not prompts:
            return []
        encoded = [self._renderer.encode(prompt.messages) for prompt in prompts]
        params = replace(role.sampling, stop_ids=(*self._stop_ids, *role.sampling.stop_ids))
        fits = [self._fits(ids, role) for ids in encoded]
        places = tuple(index for index, fit in enumerate(fits) if fit)
        draws = self._draws(f"sample/{role.name}/{model}", len(encoded), places, greedy=params.temperature == 0)
        rows = iter(self._complete(model, [encoded[place] for place in places], n, params, draws))
        return [
            self._turn(role, prompt, ids, completion, model)
            for prompt, ids, fit in zip(prompts, encoded, fits, strict=True)
            for completion in (next(rows) if fit else [NOTHING] * n)
        ]

    def _fits(self, ids: Ids, role: Role) -> bool:
        return self._context is None or len(ids) + role.sampling.max_new_tokens <= self._context

    def _draws(self, purpose: str, total: int, places: tuple[int, ...], *, greedy: bool) -> Draws:
        call = self._calls[purpose]
        self._calls[purpose] += not greedy
        return Draws(self.seed, self.step, purpose, call, total, places)

    def _complete(
        self, model: ModelName, prompts: Sequence[Ids], n: int, params: SamplingParams, draws: Draws
    ) -> list[list[Completion]]:
        if params.temperature > 0:
            return self.writer.complete(model, prompts, n, params, draws)
        # Equal prompts have equal greedy completions: a grader asked 8 times the same thing answers once.
        first = {ids: index for index, ids in reversed(list(enumerate(prompts)))}
        chosen = sorted(first.values())
        distinct = [prompts[index] for index in chosen]
        rows = self.writer.complete(model, distinct, 1, params, draws.take(chosen))
        found = dict(zip(distinct, rows, strict=True))
        return [found[ids] * n for ids in prompts]

    def _turn(self, role: Role, prompt: Prompt, ids: Ids, completion: Completion, model: ModelName) -> Turn:
        thought, text = self._renderer.read(ids, completion.ids)
        return Turn(
            role=role,
            prompt=prompt,
            prompt_ids=ids,
            completion_ids=completion.ids,
            logprobs=completion.logprobs,
            text=text,
            finish=completion.finish,
            model=model,
            info={**prompt.info, "too_long": True} if completion is NOTHING else prompt.info,
            thought=thought,
        )
