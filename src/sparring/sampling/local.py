"""Sampling in the trainer's own process, with the trainer's own weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparring.lm.base import Completion, LanguageModel, SamplingParams
from sparring.rendering import Renderer
from sparring.sampling.seeds import Draws
from sparring.sampling.turns import Ids, TurnSampler
from sparring.types import ModelName


class LocalWriter:
    """Writes with language models in this process.

    Args:
        policy: the model being trained (or the only one, to evaluate).
        reference: the frozen start of the run; None where no game asks for it.
        batch_tokens: most tokens (prompts and completions) whose cache is held at once.
    """

    def __init__(self, policy: LanguageModel, reference: LanguageModel | None, *, batch_tokens: int = 262_144) -> None:
        self._models = {"policy": policy, "reference": reference}
        self._batch_tokens = batch_tokens

    def complete(
        self, model: ModelName, prompts: Sequence[Ids], n: int, params: SamplingParams, draws: Draws
    ) -> list[list[Completion]]:
        """See `sampling.turns.Writer.complete`."""
        language_model = self._models[model]
        if language_model is None:
            raise ValueError(f"a role asks for the {model} model, and this run holds none")
        tokens = params.max_new_tokens
        uniforms = draws.uniforms(n, tokens) if params.temperature > 0 else np.empty((0, 0), np.float32)
        rows: list[list[Completion]] = []
        for start, stop in self._batches(prompts, n, tokens):
            rows += language_model.generate(prompts[start:stop], n, params, uniforms[start * n : stop * n])
        return rows

    def updated(self, version: int) -> dict[str, float]:
        """Nothing to do: these are the trainer's own weights."""
        return {}

    def close(self) -> None:
        """Nothing is held open."""

    def _batches(self, prompts: Sequence[Ids], n: int, max_new_tokens: int) -> list[tuple[int, int]]:
        if not prompts:
            return []
        spans: list[tuple[int, int]] = []
        start = used = 0
        for index, ids in enumerate(prompts):
            cost = len(ids) + n * max_new_tokens
            if used and used + cost > self._batch_tokens:
                spans.append((start, index))
                start, used = index, 0
            used += cost
        return [*spans, (start, len(prompts))]


class LocalSampler(TurnSampler):
    """A `TurnSampler` over a `LocalWriter`; the arguments are theirs."""

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
        writer = LocalWriter(policy, reference, batch_tokens=batch_tokens)
        super().__init__(writer, renderer, stop_ids=stop_ids, seed=seed, context=context)
