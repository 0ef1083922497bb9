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
    swap:beadc      skill   neighbours exchanged, an odd last one stays  ebdac
    fold:beadc      skill   first, last, second, last but one, ...   bceda
    chain:RNbea     skill   operations one by one on three letters   RaebNbfc=bfc   (working demanded)

Operations of a chain: R reverses, N takes each letter's next (t wraps to a), S swaps the first two, L moves
the first letter to the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

LETTERS = "abcdefghijklmnopqrst"
OPERATIONS = "RNSL"
FAMILIES: tuple[str, ...] = ("skip", "reverse", "sort", "flip", "unique", "swap", "fold", "chain")
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
_CHAIN_WORD = re.compile(r"[RNSL]+[a-t]{3}")
_LETTER_WORD = re.compile(r"[a-t]+")


@dataclass(frozen=True)
class Query:
    """A well-formed query. `level` is the word's length; operations + 2 for chain."""

    family: str
    word: str
    level: int

    def __str__(self) -> str:
        return f"{self.family}:{self.word}"


def _level(family: str, word: str) -> int:
    return len(word) - CHAIN_LETTERS + 2 if family == "chain" else len(word)


def make_query(family: str, word: str) -> Query | None:
    """The query of this family and word, or None where the word is malformed or its level illegal."""
    form = _CHAIN_WORD if family == "chain" else _LETTER_WORD
    if family not in FAMILIES or not form.fullmatch(word):
        return None
    level = _level(family, word)
    return Query(family, word, level) if MIN_LEVEL <= level <= MAX_LEVEL else None


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


def _fold(word: str) -> str:
    return "".join(word[i // 2] if i % 2 == 0 else word[-1 - i // 2] for i in range(len(word)))


_ANSWER: dict[str, Callable[[str], str]] = {
    "skip": lambda word: word[::2],
    "reverse": lambda word: word[::-1],
    "sort": lambda word: "".join(sorted(word)),
    "flip": lambda word: f"{word[::-1]}={_next(word[::-1])}",
    "unique": lambda word: "".join(dict.fromkeys(word)),
    "swap": lambda word: re.sub(r"(.)(.)", r"\2\1", word),
    "fold": _fold,
    "chain": _chain,
}


def answer(query: Query) -> str:
    """The reference answer, with its working where the family demands one.

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
    """A random word of the family at this level."""
    if family == "chain":
        return _pick(rng, OPERATIONS, level - 2) + _pick(rng, LETTERS, CHAIN_LETTERS)
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
