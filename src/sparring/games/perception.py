r"""What a perceiver's response holds: `<description>…</description><think>…</think>\boxed{…}`.

Source: Vision-SR1, arXiv 2508.19652. Every reader is total: whatever the text, it gives a piece of it, or None.
"""

from __future__ import annotations

import re

from sparring.verify.extract import boxed
from sparring.verify.matching import normalised

OPEN, CLOSE = "<description>", "</description>"
_AFTER = re.compile(r"\s*<think>(.*)</think>\s*(\\boxed\s*\{.*\})\s*", re.DOTALL)


def description_of(text: str) -> str | None:
    """What stands in the first description tags, stripped; None where they are missing, never closed or empty.

    >>> description_of("<description> a red cat </description><think>…</think>"), description_of("a red cat")
    ('a red cat', None)
    """
    _, opened, rest = text.partition(OPEN)
    inside, closed, _ = rest.partition(CLOSE)
    return inside.strip() or None if opened and closed else None


def well_formed(text: str) -> bool:
    r"""Whether a response is a description, a thought and one box, each once, in this order, with nothing beside them.

    >>> well_formed(r"<description>red</description><think>so</think>\boxed{red}")
    True
    >>> well_formed(r"Well: <description>red</description><think>so</think>\boxed{red}")
    False
    """
    if not text.lstrip().startswith(OPEN) or any(text.count(tag) != 1 for tag in (OPEN, CLOSE, "<think>", "</think>")):
        return False
    found = _AFTER.fullmatch(text.partition(CLOSE)[2])
    if found is None or description_of(text) is None or not found[1].strip():
        return False
    return boxed(found[2]) is not None and found[2].count("\\boxed") == 1


def leaks(description: str, answer: str) -> bool:
    r"""Whether a description holds the answer's own words, or boxes one: what a reader could copy.

    An honest description often holds the answer ("what colour is the cat?"): a figure to watch, not a fault.

    >>> leaks("a red cat", "Red"), leaks("a reddish cat", "red"), leaks(r"\boxed{7}", "3")
    (True, False, True)
    """
    words = normalised(answer)
    return boxed(description) is not None or (bool(words) and f" {words} " in f" {normalised(description)} ")
