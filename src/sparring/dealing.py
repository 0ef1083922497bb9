"""Who learns from what: a batch dealt out to minibatches, a minibatch to ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sparring.batching import Example
from sparring.parallel.ranks import deal

IDLE = Example((0,), (0,), 0.0, 0.0, np.zeros(1, np.float32), "idle")
"""What a rank scores, in lockstep, while others have more to do than it."""


def shares(examples: Sequence[Example], ranks: int) -> list[list[Example]]:
    """Examples by rank: whole prompts where they are small enough, balanced by tokens."""
    if ranks == 1:
        return [list(examples)]
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.prompt_ids, []).append(example)
    fair = sum(map(_tokens, groups.values())) / ranks
    pieces: list[list[Example]] = []
    for group in groups.values():
        # A prompt with more than a fair share of the work is computed on several ranks.
        count = min(len(group), math.ceil(_tokens(group) / fair))
        pieces += [group[len(group) * k // count : len(group) * (k + 1) // count] for k in range(count)]
    dealt = deal([_tokens(piece) for piece in pieces], ranks)
    return [[example for index in indices for example in pieces[index]] for indices in dealt]


def _tokens(group: Sequence[Example]) -> int:
    return len(group[0].prompt_ids) + sum(len(example.completion_ids) for example in group)


def minibatches(examples: Sequence[Example], count: int) -> list[list[Example]]:
    """Deal each tag out by itself: whole prompts where there are enough (each prefix is computed once), else examples.

    A tag of fewer examples than minibatches is absent from some; a minibatch without any example is left out.
    """
    if count == 1:
        return [list(examples)]
    tags: dict[str, dict[tuple[int, ...], list[Example]]] = {}
    for example in examples:
        tags.setdefault(example.tag, {}).setdefault(example.prompt_ids, []).append(example)
    parts: list[list[Example]] = [[] for _ in range(count)]
    for groups in tags.values():
        shares = list(groups.values())
        if len(shares) < count:
            shares = [[example] for group in shares for example in group]
        for index, share in enumerate(shares):
            parts[index % count] += share
    return [part for part in parts if part]


def factors(parts: Sequence[Sequence[Example]]) -> list[dict[str, float]]:
    """What each minibatch multiplies a tag's weights by, as they were normalised over the whole batch.

    Shares are by examples: a tag weighs in a minibatch what it does in the batch, and where it is absent from some
    minibatches the others make up for it.
    """
    counts = [Counter(example.tag for example in part) for part in parts]
    total: Counter[str] = sum(counts, Counter[str]())
    present = Counter(tag for count in counts for tag in count)
    return [{tag: total[tag] / n * (len(parts) / present[tag]) for tag, n in count.items()} for count in counts]
