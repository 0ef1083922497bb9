"""Texts as numbers, so that hundreds of queries are compared with thousands in milliseconds.

A text is compared by its first and last 96 characters, with case and blank space levelled: a long preamble that all
share does not hide the rest, and no text takes long. Its n-grams are runs of 5 characters (the end padded), every digit
read as 0, so that "12 + 7" and "93 + 8" are alike; no script needs words for that. Two texts are near where a band of
their MinHash signatures agrees (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3):
with 8 bands of 4 values the chance is 1 − (1 − J⁴)⁸ at Jaccard similarity J: .06 at .3, .40 at .5, .89 at .7, 1 at 1.
Hashes are fixed integers: the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHOWN = 96
"""Characters compared at either end of a text."""
GRAM, BANDS, ROWS = 5, 8, 4
TABLE = 1 << 22
"""Places for n-grams: a new one falls on a taken place once in thousands, once in ten with an archive of long texts."""

_U64 = np.uint64
_FACTOR = _U64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.random.default_rng(0).integers(1 << 62, size=BANDS * ROWS, dtype=np.uint64) * _U64(2) + _U64(1)


@dataclass(frozen=True)
class Sketch:
    """N texts: `texts` as they are compared, `grams` the n-grams' places of each, `bands` [N, BANDS] uint64."""

    texts: tuple[str, ...]
    grams: tuple[npt.NDArray[np.int64], ...]
    bands: npt.NDArray[np.uint64]

    def places(self) -> npt.NDArray[np.int64]:
        """All texts' n-grams, one after another."""
        return np.concatenate(self.grams) if self.grams else np.zeros(0, np.int64)

    def last(self, n: int) -> Sketch:
        """The last n texts."""
        start = max(0, len(self.texts) - n)
        return Sketch(self.texts[start:], self.grams[start:], self.bands[start:])

    def joined(self, other: Sketch) -> Sketch:
        """These texts, then the other's."""
        bands = np.concatenate([self.bands, other.bands])
        return Sketch(self.texts + other.texts, self.grams + other.grams, bands)


def levelled(text: str) -> str:
    """A text as it is compared: folded, blank space single, its two ends; what UTF-8 can't hold is a question mark.

    >>> levelled("  What IS\\n this?")
    'what is this?'
    """
    long = len(text) > 8 * SHOWN
    ends = text[: 4 * SHOWN] + text[-4 * SHOWN :] if long else text
    bare = " ".join(ends.encode("utf-8", "replace").decode().casefold().split())
    return bare if len(bare) <= 2 * SHOWN else bare[:SHOWN] + bare[-SHOWN:]


def sketched(texts: Iterable[str]) -> Sketch:
    """Sketch texts."""
    return of_levelled(map(levelled, texts))


def of_levelled(texts: Iterable[str]) -> Sketch:
    """Sketch texts that are levelled already (levelling cut ends twice may differ)."""
    bare = tuple(texts)
    if not bare:
        return Sketch((), (), np.zeros((0, BANDS), np.uint64))
    codes_T = _codes([(text or "\0") + "\0" * (GRAM - 1) for text in bare])
    lengths_N = np.array([max(1, len(text)) for text in bare])  # n-grams of each
    ends_N = np.cumsum(lengths_N)
    firsts_N = ends_N - lengths_N
    # The padding shifts each text by GRAM - 1 places for every text before it.
    at_W = np.arange(ends_N[-1]) + np.repeat(np.arange(len(bare)), lengths_N) * (GRAM - 1)
    hash_W = np.zeros(len(at_W), np.uint64)
    for offset in range(GRAM):
        hash_W = (hash_W + codes_T[at_W + offset]) * _FACTOR
    hash_W = _mixed(hash_W)
    least_KN = [np.minimum.reduceat(_mixed(hash_W * multiplier), firsts_N) for multiplier in _MULTIPLIERS]
    bands_N = [_joined(least_KN[band * ROWS : (band + 1) * ROWS]) for band in range(BANDS)]
    places_W = (hash_W % _U64(TABLE)).astype(np.int64)
    return Sketch(bare, tuple(np.split(places_W, ends_N[:-1])), np.stack(bands_N, axis=1))


def clusters(sketch: Sketch) -> npt.NDArray[np.int64]:
    """Sizes of the groups of texts that are near, directly or over others: connected components."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(sketch.texts)
    if n == 0:
        return np.zeros(0, np.int64)
    # A graph of texts and bands: texts are joined where they hold a band of the same place and value.
    values_NB = np.stack([np.unique(band_N, return_inverse=True)[1] for band_N in sketch.bands.T], axis=1)
    nodes_NB = n + values_NB + n * np.arange(BANDS)
    texts_NB = np.broadcast_to(np.arange(n)[:, None], nodes_NB.shape)
    size = n + n * BANDS
    edges = (np.ones(nodes_NB.size, np.int8), (texts_NB.ravel(), nodes_NB.ravel()))
    labels = connected_components(coo_array(edges, shape=(size, size)), directed=False)[1][:n]
    return np.sort(np.unique(labels, return_counts=True)[1])[::-1].astype(np.int64)


def _codes(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Code points, digits as 0."""
    codes_T = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32).astype(np.uint64)
    return np.where((codes_T >= ord("0")) & (codes_T <= ord("9")), _U64(ord("0")), codes_T)


def _mixed(hash_W: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    hash_W = (hash_W ^ (hash_W >> _U64(31))) * _FACTOR
    return hash_W ^ (hash_W >> _U64(29))


def _joined(values: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    joined_N = np.zeros_like(values[0])
    for value_N in values:
        joined_N = _mixed((joined_N ^ value_N) * _FACTOR)
    return joined_N
