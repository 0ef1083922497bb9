"""The local sampler: the trainer's own process, the trainer's own weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparring.lm.base import Completion, LanguageModel, SamplingParams
from sparring.rendering import Renderer
from sparring.roles import Role
from sparring.sampling.seeds import generator
from sparring.types import ModelName, Prompt, Turn

Ids = tuple[int, ...]
NOTHING = Completion((), np.empty(0, np.float32), "length")
"""The answer to a prompt that leaves no room for one."""


class LocalSampler:
    """Samples from language models in this process.

    Args:
        policy: the model being trained (or the only one, to evaluate).
        reference: the frozen start of the run; None where no game asks for it.
        renderer: turns messages into ids.
        stop_ids: ids that end a completion.
        seed: the run's seed.
        context: most tokens of a prompt and its completion; None where the model has no bound.
        batch_tokens: most tokens (prompts and completions) whose cache is held at once.
    """

    def __init__(
        self,
        policy: LanguageModel,
        reference: LanguageModel | None,
        renderer: Renderer,
        *,
        stop_ids: Sequence[int],
        seed: int = 0,
        context: int | None = None,
        batch_tokens: int = 262_144,
    ) -> None:
        self._models = {"policy": policy, "reference": reference}
        self._renderer = renderer
        self._stop_ids = tuple(stop_ids)
        self.seed = seed
        self._context = context
        self._batch_tokens = batch_tokens
        self.step = 0
        self._calls: Counter[str] = Counter()

    def at(self, step: int) -> LocalSampler:
        """This sampler at a step of the run: its draws start anew from (seed, step)."""
        self.step = step
        self._calls.clear()
        return self

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
        language_model = self._models[model]
        if language_model is None:
            raise ValueError(f"role {role.name!r} asks for the {model} model, and this run holds none")
        encoded = [self._renderer.encode(prompt.messages) for prompt in prompts]
        params = replace(role.sampling, stop_ids=(*self._stop_ids, *role.sampling.stop_ids))
        fits = [self._fits(ids, role) for ids in encoded]
        fitting = [ids for ids, fit in zip(encoded, fits, strict=True) if fit]
        if params.temperature == 0:
            completions = self._greedy(language_model, fitting, n, params)
        else:
            uniforms = self._uniforms(role, model, len(encoded) * n, params.max_new_tokens)
            completions = self._generate(language_model, fitting, n, params, uniforms[np.repeat(fits, n)])
        rows = iter(completions)
        return [
            self._turn(role, prompt, ids, completion, model)
            for prompt, ids, fit in zip(prompts, encoded, fits, strict=True)
            for completion in (next(rows) if fit else [NOTHING] * n)
        ]

    def _fits(self, ids: Ids, role: Role) -> bool:
        return self._context is None or len(ids) + role.sampling.max_new_tokens <= self._context

    def _greedy(
        self, language_model: LanguageModel, encoded: Sequence[Ids], n: int, params: SamplingParams
    ) -> list[list[Completion]]:
        # Equal prompts have equal greedy completions: a grader asked 8 times the same thing answers once.
        distinct = list(dict.fromkeys(encoded))
        empty = np.empty((0, 0), dtype=np.float32)
        rows = self._generate(language_model, distinct, 1, params, empty)
        found = dict(zip(distinct, rows, strict=True))
        return [found[ids] * n for ids in encoded]

    def _generate(
        self,
        language_model: LanguageModel,
        encoded: Sequence[Ids],
        n: int,
        params: SamplingParams,
        uniforms: np.ndarray,
    ) -> list[list[Completion]]:
        rows: list[list[Completion]] = []
        for start, stop in self._batches(encoded, n, params.max_new_tokens):
            drawn = uniforms[start * n : stop * n]
            rows += language_model.generate(encoded[start:stop], n, params, drawn)
        return rows

    def _batches(self, encoded: Sequence[Ids], n: int, max_new_tokens: int) -> list[tuple[int, int]]:
        if not encoded:
            return []
        spans: list[tuple[int, int]] = []
        start = used = 0
        for index, ids in enumerate(encoded):
            cost = len(ids) + n * max_new_tokens
            if used and used + cost > self._batch_tokens:
                spans.append((start, index))
                start, used = index, 0
            used += cost
        return [*spans, (start, len(encoded))]

    def _uniforms(self, role: Role, model: str, rows: int, tokens: int) -> np.ndarray:
        purpose = f"sample/{role.name}/{model}"
        call = self._calls[purpose]
        self._calls[purpose] += 1
        return generator(self.seed, self.step, purpose, call).random((rows, tokens), dtype=np.float32)

    def _turn(self, role: Role, prompt: Prompt, ids: Ids, completion: Completion, model: ModelName) -> Turn:
        return Turn(
            role=role,
            prompt=prompt,
            prompt_ids=ids,
            completion_ids=completion.ids,
            logprobs=completion.logprobs,
            text=self._renderer.decode(completion.ids),
            finish=completion.finish,
            model=model,
            info={**prompt.info, "too_long": True} if completion is NOTHING else prompt.info,
        )
