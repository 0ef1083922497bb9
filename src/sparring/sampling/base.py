"""What a game asks of a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sparring.roles import Role
from sparring.types import ModelName, Prompt, Turn


class Sampler(Protocol):
    """Draws turns at one step of a run.

    Every draw derives from (run seed, step, role, index), so that a resumed run repeats the uninterrupted one.
    """

    @property
    def step(self) -> int:
        """The step being played, from 1."""
        ...

    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    def sample(self, role: Role, prompts: Sequence[Prompt], n: int = 1, model: ModelName = "policy") -> list[Turn]:
        """n turns for each prompt, prompt by prompt (the turns of prompts[i] are [i * n : (i + 1) * n])."""
        ...

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator for the game's own draws at this step; the same purpose gives the same draws."""
        ...
