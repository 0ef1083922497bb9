"""Every random draw of a run, derived from (run seed, step, purpose, index)."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, step: int, purpose: str, index: int = 0) -> np.random.Generator:
    """A counter-based generator: the same arguments give the same draws, on any machine."""
    entropy = [seed, step, zlib.crc32(purpose.encode()), index]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
