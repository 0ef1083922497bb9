"""The learner of supervised fine-tuning: the same steps, with another loss.

    loss = −Σ_S weight_S · log π(y_S | y_<S)        weight_S = 1 / Σ trained tokens of the batch; 0 where not trained

The batch is one update's, over all micro-batches and ranks, so the loss is its token mean however it is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparring.batching import Example, MicroBatch, token_mean
from sparring.dealing import IDLE
from sparring.learner import Learner
from sparring.meter import Meter
from sparring.sft.spans import Lesson

TAG = "sft"


@dataclass(frozen=True, eq=False)
class Taught(Example):
    """A lesson of a batch. trained [T]: which of the completion's tokens have the weight."""

    trained: NDArray[np.bool_]


def taught(lessons: Sequence[Lesson]) -> list[Taught]:
    """A batch's examples: each trained token weighs one over their number."""
    counts = [int(lesson.trained.sum()) for lesson in lessons]
    return [
        Taught(
            lesson.prompt_ids,
            lesson.completion_ids,
            1.0,
            weight,
            np.zeros(len(lesson.completion_ids), np.float32),
            TAG,
            lesson.trained,
        )
        for lesson, weight in zip(lessons, token_mean(counts, 0), strict=True)
    ]


class SupervisedLearner(Learner):
    """A learner from answers that are given."""

    def teach(self, lessons: Sequence[Lesson], learning_rate: float) -> dict[str, float]:
        """One update from these lessons, of which every rank gives all; see `Learner.update`."""
        return self.update(taught(lessons), learning_rate)

    def nll(self, lessons: Sequence[Lesson]) -> float:
        """The mean negative log-likelihood of these lessons' trained tokens, nats a token. All ranks call it."""
        batches = self._share(taught(lessons))

        def score() -> float:
            with torch.no_grad():
                return sum(self._nll(batch).item() for batch in batches)

        return sum(self._meet("measuring held-out rows", score))

    def _loss(
        self, batch: MicroBatch, old_S: Tensor | None, weighing: Mapping[str, float], meter: Meter, first: bool
    ) -> Tensor:
        loss = self._nll(batch)
        if IDLE not in batch.examples:
            meter.measure(batch, loss, {})
        return loss

    def _nll(self, batch: MicroBatch) -> Tensor:
        logprobs_S = self.policy.score(batch.groups).logprobs_S
        weight_S = np.concatenate([_weights(example) for example in batch.examples])
        return -(torch.from_numpy(weight_S).to(logprobs_S.device) * logprobs_S).sum()


def _weights(example: Example) -> NDArray[np.float32]:
    if not isinstance(example, Taught):  # what a rank scores while others have more to do
        return np.zeros(len(example.completion_ids), np.float32)
    return np.where(example.trained, np.float32(example.token_weight), np.float32(0))
