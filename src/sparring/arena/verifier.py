"""The arena's verifiable reward: 1 for a right answer, 0 for anything else."""

from __future__ import annotations

from sparring.arena.language import SHOWS_WORKING, answer, final, parse_query


def verify(query_text: str, answer_text: str) -> float:
    """1.0 where the answer is right, 0.0 where it is wrong or the query malformed.

    The result is what follows the last `=`. Where the family demands working, every step must be right
    too: paying for the last word alone leaks credit to guesses and to working that doesn't work.

    >>> verify("reverse:bead", "daeb"), verify("flip:bead", "daeb=ebfc"), verify("flip:bead", "ebfc")
    (1.0, 1.0, 0.0)
    """
    query = parse_query(query_text)
    if query is None:
        return 0.0
    expected, given = answer(query), answer_text.strip()
    if query.family not in SHOWS_WORKING:
        given = final(given)
    return float(given == expected)
