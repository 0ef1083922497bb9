"""Every random draw of a run, derived from (run seed, step, purpose, index)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


def generator(seed: int, step: int, purpose: str, index: int = 0) -> np.random.Generator:
    """A counter-based generator: the same arguments give the same draws, on any machine."""
    entropy = [seed, step, zlib.crc32(purpose.encode()), index]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


@dataclass(frozen=True)
class Draws:
    """The randomness of one call for `total` prompts, and which of them are meant.

    A prompt's draws depend on its place among the `total` alone, never on which others are written with it: whoever
    writes a part of the call (a batch, a rank) takes that part's places.
    """

    seed: int
    step: int
    purpose: str
    call: int
    total: int
    places: tuple[int, ...]

    def take(self, indices: Sequence[int]) -> Draws:
        """The draws of some of these prompts, by their index among `places`."""
        return replace(self, places=tuple(self.places[index] for index in indices))

    def uniforms(self, n: int, tokens: int) -> np.ndarray:
        """[len(places) * n, tokens] float32 in [0, 1): one row a completion, for the inverse CDF."""
        drawn = self._generator().random((self.total, n, tokens), dtype=np.float32)
        return drawn[list(self.places)].reshape(len(self.places) * n, tokens)

    def seeds(self) -> list[int]:
        """One seed a prompt, in [0, 2^31), for an engine with generators of its own."""
        drawn = self._generator().integers(2**31, size=self.total)
        return [int(drawn[place]) for place in self.places]

    def _generator(self) -> np.random.Generator:
        return generator(self.seed, self.step, self.purpose, self.call)
