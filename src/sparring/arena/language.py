"""The toy language: eight families of word puzzles, their queries, answers and prompts.

A query is `family:word`, for example `reverse:bead`; its level is how long or deep it is. Families are
of two kinds (`KIND`). For a *latent* family the pretraining data holds right answers at every level, but
sloppy ones ever more often as the level rises: reinforcement brings out an ability that is there. For a
*skill* family the data is clean, but high levels are ever rarer: reinforcement has to build the skill.

    skip:bdeac      latent  every second letter, from the first      bec
    reverse:bead    latent  the letters backwards                    daeb
    sort:bead       latent  in the order of the alphabet             abde
    flip:bead       latent  backwards, then each the next letter     daeb=ebfc      (working demanded)
    unique:babec    skill   later copies of a letter dropped         baec
    trail:ca bd ab  skill   from the first pair, follow the links    cabd
    sum:3624        skill   running sums, modulo seven               3241
    chain:RNbea     skill   operations one by one on three letters   RaebNbfc=bfc   (working demanded)

Operations of a chain: R reverses, N takes each letter's next (t wraps to a), S swaps the first two, L moves
the first letter to the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

LETTERS = "abcdefghijklmnopqrst"
DIGITS = "0123456"
OPERATIONS = "RNSL"
FAMILIES: tuple[str, ...] = ("skip", "reverse", "sort", "flip", "unique", "trail", "sum", "chain")
KIND: dict[str, Literal["latent", "skill"]] = {
    family: "latent" if family in ("skip", "reverse", "sort", "flip") else "skill" for family in FAMILIES
}
SHOWS_WORKING = frozenset({"flip", "chain"})
MIN_LEVEL, MAX_LEVEL = 2, 12

Split = Literal["easy", "hard"]
EASY_START, EASY_MORE, LONGEST_DRAWN = 3, 0.55, 10
HARD_LEVELS = (6, 10)
CHAIN_LETTERS = 3

_QUERY = re.compile(r"([a-z]+):(.+)", re.DOTALL)
_WORD = {
    "trail": re.compile(r"[a-t]{2}(?: [a-t]{2})*"),
    "sum": re.compile(r"[0-6]+"),
    "chain": re.compile(r"[RNSL]+[a-t]{3}"),
}
_LETTERS_ONLY = re.compile(r"[a-t]+")


@dataclass(frozen=True)
class Query:
    """A well-formed query. `level` is the word's length; pairs for trail; operations + 2 for chain."""

    family: str
    word: str
    level: int

    def __str__(self) -> str:
        return f"{self.family}:{self.word}"


def _level(family: str, word: str) -> int:
    if family == "trail":
        return (len(word) + 1) // 3
    return len(word) - CHAIN_LETTERS + 2 if family == "chain" else len(word)


def make_query(family: str, word: str) -> Query | None:
    """The query of this family and word, or None where the word is malformed or its level illegal."""
    if family not in FAMILIES or not _WORD.get(family, _LETTERS_ONLY).fullmatch(word):
        return None
    level = _level(family, word)
    if not MIN_LEVEL <= level <= MAX_LEVEL:
        return None
    if family == "trail" and len(set(word[::3])) != level:
        return None  # two pairs with one first letter: the trail would fork
    return Query(family, word, level)


def parse_query(text: str) -> Query | None:
    """Read a query strictly; None where anything is off, and never an exception.

    >>> parse_query("reverse:bead")
    Query(family='reverse', word='bead', level=4)
    >>> parse_query("reverse: bead") is None
    True
    """
    match = _QUERY.fullmatch(text)
    return make_query(match[1], match[2]) if match else None


def render_query(query: Query) -> str:
    """The text that `parse_query` reads back."""
    return str(query)


def _next(word: str) -> str:
    return "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in word)


_APPLY: dict[str, Callable[[str], str]] = {
    "R": lambda word: word[::-1],
    "N": _next,
    "S": lambda word: word[1] + word[0] + word[2:],
    "L": lambda word: word[1:] + word[0],
}


def _chain(word: str) -> str:
    current, steps = word[-CHAIN_LETTERS:], []
    for operation in word[:-CHAIN_LETTERS]:
        current = _APPLY[operation](current)
        steps.append(operation + current)
    return "".join(steps) + "=" + current


def _trail(word: str) -> str:
    follows = {pair[0]: pair[1] for pair in word.split(" ")}
    trace = word[0]
    while trace[-1] in follows and follows[trace[-1]] not in trace:
        trace += follows[trace[-1]]
    return trace


def _sums(word: str) -> str:
    total, trace = 0, ""
    for digit in word:
        total = (total + int(digit)) % len(DIGITS)
        trace += str(total)
    return trace


_ANSWER: dict[str, Callable[[str], str]] = {
    "skip": lambda word: word[::2],
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "flip": lambda word: f"{word[::-1]}={_next(word[::-1])}",
    "unique": lambda word: "".join(dict.fromkeys(word)),
    "trail": _trail,
    "sum": _sums,
    "chain": _chain,
}


def answer(query: Query) -> str:
    """The reference answer, with its working where the family demands one.

    A trail ends at a letter that begins no pair, or whose link leads back to a letter already passed.

    >>> answer(Query("flip", "bead", 4))
    'daeb=ebfc'
    """
    return _ANSWER[query.family](query.word)


def final(answer_text: str) -> str:
    """What counts as the result: everything after the last `=`."""
    return answer_text.rpartition("=")[2]


def _pick(rng: np.random.Generator, symbols: str, n: int) -> str:
    return "".join(symbols[i] for i in rng.integers(len(symbols), size=n))


def draw_word(rng: np.random.Generator, family: str, level: int) -> str:
    """A random word of the family at this level (trail: at most len(LETTERS) − 1)."""
    if family == "sum":
        return _pick(rng, DIGITS, level)
    if family == "chain":
        return _pick(rng, OPERATIONS, level - 2) + _pick(rng, LETTERS, CHAIN_LETTERS)
    if family == "trail":
        path = [LETTERS[i] for i in rng.permutation(len(LETTERS))[: level + 1]]
        pairs = [first + second for first, second in pairwise(path)]
        rest = [pairs[1 + i] for i in rng.permutation(level - 1)]
        return " ".join([pairs[0], *rest])
    if family == "unique":  # from few letters, so that there is something to drop
        letters = "".join(LETTERS[i] for i in rng.permutation(len(LETTERS))[: max(2, (2 * level + 2) // 3)])
        return _pick(rng, letters, level)
    return _pick(rng, LETTERS, level)


def draw_level(rng: np.random.Generator, split: Split, more: float = EASY_MORE) -> int:
    """Easy: from 3, one more with probability `more`, at most 10. Hard: 6 to 10, all alike."""
    if split == "hard":
        return int(rng.integers(HARD_LEVELS[0], HARD_LEVELS[1] + 1))
    if split != "easy":
        raise ValueError(f"split must be 'easy' or 'hard', not {split!r}")
    return min(EASY_START + int(rng.geometric(1 - more)) - 1, LONGEST_DRAWN)


def draw_query(rng: np.random.Generator, split: Split, family: str | None = None) -> Query:
    """A random query of the split, from one family or, without one, from all alike."""
    family = FAMILIES[int(rng.integers(len(FAMILIES)))] if family is None else family
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    level = draw_level(rng, split)
    return Query(family, draw_word(rng, family, level), level)


CHALLENGER, SOLVER, GRADER = "Challenger:", "Solver:", "Grader:"
BLANK, TASK_SEPARATOR, ANSWER_SEPARATOR = "{}", ">", "|"
# What may be asked of the Challenger: (task, template); both empty leave it to its own judgement.
TASKS: tuple[tuple[str, str], ...] = (
    *((family.capitalize(), f"{family}:{BLANK}") for family in FAMILIES),
    ("", ""),
)


def challenger_prompt(task: str | None, template: str | None) -> str:
    """The message that asks for one query; with neither task nor template the choice is free.

    >>> challenger_prompt("Skip", "skip:{}")
    'Challenger:Skip>skip:{}'
    >>> challenger_prompt(None, None)
    'Challenger:'
    """
    if (task or "", template or "") not in TASKS:
        offered = ", ".join(f"({name!r}, {form!r})" for name, form in TASKS)
        raise ValueError(f"the arena's model knows no task ({task!r}, {template!r}); offered are {offered}")
    return f"{CHALLENGER}{task}{TASK_SEPARATOR}{template}" if task else CHALLENGER


def solver_prompt(query_text: str) -> str:
    """The message that asks for an answer."""
    return SOLVER + query_text


def grader_prompt(query_text: str, answer_text: str) -> str:
    """The message that asks for the rubric's points."""
    return f"{GRADER}{query_text}{ANSWER_SEPARATOR}{answer_text}"
