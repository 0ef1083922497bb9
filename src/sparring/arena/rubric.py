"""The quality rubric: seven yes/no criteria on a query and its answer, one point each.

It judges the form of both, and never whether the result is right: that is the verifier's part. The first
two criteria depend on the query alone, so in self-play they reach the Challenger only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from sparring.arena.language import CHAIN_LETTERS, Query, final, parse_query

RUBRIC: tuple[str, ...] = (
    "One can tell which task the query sets.",
    "The query is specific: no letter or operation fills more than half of it.",
    "The answer can be read: it is there, and its result is in letters.",
    "The result covers a good part: at least half of what the query calls for.",
    "The result is as long as the query calls for.",
    "The answer is to the point: no more signs of equality than the task's form has.",
    "The answer has the task's form: working where it is demanded, the result alone where not.",
)
POINTS = len(RUBRIC)

_LETTERS = re.compile(r"[a-t]+")
_STEPS = re.compile(r"(?:[RNSL][a-t]{3})+")
_GRADE = re.compile(rf"([01]{{{POINTS}}})=([0-9])")


def _result_lengths(query: Query) -> tuple[int, int]:
    """Fewest and most symbols a result can have, from the query's shape (not its solution)."""
    level = query.level
    return {
        "skip": ((level + 1) // 2, (level + 1) // 2),
        "unique": (1, level),
        "chain": (CHAIN_LETTERS, CHAIN_LETTERS),
    }.get(query.family, (level, level))


def _specific(query: Query) -> bool:
    symbols = query.word[:-CHAIN_LETTERS] if query.family == "chain" else query.word
    return max(Counter(symbols).values()) <= max(2, (len(symbols) + 1) // 2)


def _in_form(query: Query, working: str, result: str) -> bool:
    if query.family == "flip":
        return bool(_LETTERS.fullmatch(working)) and len(working) == len(result)
    if query.family == "chain":
        operations = query.word[:-CHAIN_LETTERS]
        return bool(_STEPS.fullmatch(working)) and working[:: CHAIN_LETTERS + 1] == operations
    return not working


def score(query_text: str, answer_text: str) -> tuple[int, ...]:
    """The seven points, each 0 or 1, in the order of `RUBRIC`; all 0 for a malformed query.

    >>> score("reverse:bead", "beda")
    (1, 1, 1, 1, 1, 1, 1)
    >>> score("reverse:bead", "be")
    (1, 1, 1, 1, 0, 1, 1)
    """
    query = parse_query(query_text)
    if query is None:
        return (0,) * POINTS
    given = answer_text.strip()
    result, working = final(given), given.rpartition("=")[0]
    fewest, most = _result_lengths(query)
    points = (
        True,
        _specific(query),
        bool(_LETTERS.fullmatch(result)),
        2 * len(result) >= fewest,
        fewest <= len(result) <= most,
        given.count("=") <= (1 if query.family in ("flip", "chain") else 0),
        bool(result) and _in_form(query, working, result),
    )
    return tuple(int(point) for point in points)


def render_grade(points: Sequence[int]) -> str:
    """The grader's short form: the points and their sum.

    >>> render_grade((1, 1, 1, 0, 1, 1, 1))
    '1110111=6'
    """
    if len(points) != POINTS or any(point not in (0, 1) for point in points):
        raise ValueError(f"a grade needs {POINTS} points of 0 or 1, not {tuple(points)}")
    return "".join(str(point) for point in points) + f"={sum(points)}"


def parse_grade(text: str) -> int | None:
    """The total of a grade, 0 to 7; None where it can't be read or the sum doesn't fit its points.

    >>> parse_grade("1110111=6"), parse_grade("1110111=7"), parse_grade("fine")
    (6, None, None)
    """
    match = _GRADE.fullmatch(text.strip())
    if match is None or match[1].count("1") != int(match[2]):
        return None
    return int(match[2])
