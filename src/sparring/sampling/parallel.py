"""Sampling by several ranks: each writes for some of the prompts, then all hold all completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from sparring.lm.base import Completion, SamplingParams
from sparring.memory import SAMPLING, budgeted
from sparring.models import Models
from sparring.parallel.ranks import Ranks, deal
from sparring.sampling.seeds import Draws
from sparring.sampling.turns import Ids, Writer
from sparring.types import ModelName


class ParallelWriter:
    """Prompts are dealt to the ranks; a prompt's completions are written on one. Draws are those of one process.

    Args:
        writer: this rank's own.
        ranks: who shares the prompts.
        gathered: a model → its weights put together for the time of the writing.
    """

    def __init__(
        self, writer: Writer, ranks: Ranks, gathered: Callable[[ModelName], AbstractContextManager[None]]
    ) -> None:
        self._writer, self._ranks, self._gathered = writer, ranks, gathered

    def complete(
        self, model: ModelName, prompts: Sequence[Ids], n: int, params: SamplingParams, draws: Draws
    ) -> list[list[Completion]]:
        """See `sampling.turns.Writer.complete`. An error on one rank is raised on all."""
        dealt = deal([len(ids) + n * params.max_new_tokens for ids in prompts], self._ranks.size)
        mine = dealt[self._ranks.rank]

        def write() -> list[list[Completion]]:
            with budgeted("sampling", SAMPLING):
                return self._writer.complete(model, [prompts[index] for index in mine], n, params, draws.take(mine))

        with self._gathered(model):
            met = self._ranks.together("sampling", write)
        rows = {
            index: row
            for indices, share in zip(dealt, met, strict=True)
            for index, row in zip(indices, share, strict=True)
        }
        return [rows[index] for index in range(len(prompts))]

    def updated(self, version: int) -> dict[str, float]:
        """See `sampling.turns.Writer.updated`."""
        return self._writer.updated(version)

    def close(self) -> None:
        """See `sampling.turns.Writer.close`."""
        self._writer.close()


def spread(writer: Writer, models: Models) -> Writer:
    """The writer, or its part in a run of several ranks."""
    if models.ranks.size == 1:
        return writer

    def gathered(model: ModelName) -> AbstractContextManager[None]:
        if not models.sharded:
            return nullcontext()
        from sparring.parallel.engine import ShardedLM

        held = models.policy if model == "policy" else models.reference
        return held.gathered() if isinstance(held, ShardedLM) else nullcontext()

    return ParallelWriter(writer, models.ranks, gathered)
