"""Held-out questions answered by the policy and by the frozen start, scored by the domain's verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparring.domains import TestItem
from sparring.evaluation.comparison import Evaluation, Outcome, compare
from sparring.images import Picture
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.types import ModelName


class HeldOut:
    """A test set with its scorer.

    Args:
        solver: the Solver's role; it is sampled at `temperature` instead of its own.
        items: the questions; each answered once.
        reward: scores answers; an answer it can't score counts as 0.
    """

    def __init__(self, solver: Role, items: Sequence[TestItem], reward: Reward, temperature: float = 0.0) -> None:
        if not items:
            raise ValueError("the held-out set is empty: evaluation.n and evaluation.final_n must be at least 1")
        self.items = list(items)
        self._pictures = [tuple(Picture.open(image, name=i.item_id) for image in i.images) for i in self.items]
        self._solver = replace(solver, sampling=replace(solver.sampling, temperature=temperature), weight=0.0)
        self._reward = reward

    def scores(self, sampler: Sampler, model: ModelName = "policy") -> list[float]:
        """One score an item."""
        prompts = [
            self._solver.prompt(query=item.query, images=pictures, info={**item.columns, "query_text": item.query})
            for item, pictures in zip(self.items, self._pictures, strict=True)
        ]
        answers = sampler.sample(self._solver, prompts, model=model)
        rewards = self._reward([item.query for item in self.items], answers)
        return [0.0 if reward is None else reward for reward in rewards]

    def accuracy(self, sampler: Sampler, model: ModelName = "policy") -> dict[str, float]:
        """Mean score of each widest subset (easy, hard)."""
        scores: dict[str, list[float]] = {}
        for item, score in zip(self.items, self.scores(sampler, model), strict=True):
            scores.setdefault(item.subset[0] if item.subset else "all", []).append(score)
        return {name: float(np.mean(values)) for name, values in scores.items()}

    def compare(self, trained: Sequence[float], base: Sequence[float]) -> Evaluation:
        """The trained model's scores against the base's, item by item."""
        return compare(
            Outcome(item.item_id, item.subset, base_score, score)
            for item, score, base_score in zip(self.items, trained, base, strict=True)
        )
