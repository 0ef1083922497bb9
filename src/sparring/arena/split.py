"""Which queries are for testing: one in sixteen, by a hash of the text, never in any training data."""

from __future__ import annotations

import hashlib

import numpy as np

from sparring.arena.language import Query, Split, draw_query, render_query

HELD_OUT_SHARE = 16
DEV_SEED = 1
"""For choosing settings."""
TEST_SEED = 2
"""For reporting only; nothing was ever chosen on it."""


def held_out(query_text: str) -> bool:
    """Whether the query is kept for testing: the same on every machine and in every version."""
    return hashlib.blake2b(query_text.encode(), digest_size=8).digest()[0] % HELD_OUT_SHARE == 0


def _draw(split: Split, seed: int, n: int, *, testing: bool) -> list[Query]:
    rng = np.random.default_rng((seed, int(testing), ("easy", "hard").index(split)))
    seen: set[Query] = set()
    drawn: list[Query] = []
    while len(drawn) < n:
        query = draw_query(rng, split)
        # Short words are few: a repeat is let in now and then, lest the search never end.
        if held_out(render_query(query)) is not testing or (query in seen and rng.random() < 0.9):
            continue
        seen.add(query)
        drawn.append(query)
    return drawn


def test_set(split: Split, seed: int, n: int) -> list[Query]:
    """n held-out queries; repeats are avoided as far as the short words suffice."""
    return _draw(split, seed, n, testing=True)


test_set.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  # not a test for pytest to collect


def train_set(split: Split, seed: int, n: int) -> list[Query]:
    """n queries that are not held out: the prompt set of training on data."""
    return _draw(split, seed, n, testing=False)
