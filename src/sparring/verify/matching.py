"""Matchers: an answer's result, a reference's, and whether they are the same.

A matcher is used by rewards (`rewards.verifiable`), by benchmarks and by the majority vote. Its readers are total: an
answer without a result is None, and wrong. A reference without one is an error: `UnusableReferenceError`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparring.verify.choices import OPTIONS, chosen_option
from sparring.verify.extract import boxed, final_answer, hashed, last_number, stated
from sparring.verify.numbers import Number, close, other_units, read_number
from sparring.verify.pool import Pool
from sparring.verify.words import words_of

_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
"""Blank space that separates nothing: "p - q" is "p-q", but "1 1/2" is not "11/2"."""


class UnusableReferenceError(ValueError):
    """A row's reference is no answer of its kind."""


class Matcher(ABC):
    """How one kind of answer is read and compared."""

    @abstractmethod
    def extract(self, text: str) -> str | None:
        """An answer's result; None where it has none."""

    @abstractmethod
    def reference(self, value: Any) -> str:
        """A reference's result.

        Raises:
            UnusableReferenceError: it has none.
        """

    @abstractmethod
    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """How right each (reference's result, answer's result) is, 0 to 1; None where it can't be told."""

    def compare(self, wanted: Sequence[str | None], given: Sequence[str | None]) -> list[float | None]:
        """One score a pair of results: None without a reference, 0 without a result, else the grade."""
        known = [(w, g) for w, g in zip(wanted, given, strict=True) if w is not None and g is not None]
        grades = iter(self.grade(known))
        return [None if w is None else 0.0 if g is None else next(grades) for w, g in zip(wanted, given, strict=True)]

    def require(self) -> None:  # noqa: B027 - most matchers need nothing
        """Raise ValueError where a library that comparisons need is not installed."""

    def drain(self) -> dict[str, float]:
        """Figures since the last call."""
        return {}

    def close(self) -> None:  # noqa: B027 - most matchers hold nothing open
        """Let go of what is held open."""


class Exact(Matcher):
    """The same text, character by character, but for blank space around it."""

    def extract(self, text: str) -> str | None:
        """The last box, else what follows "answer:" or "the answer is", else the whole text."""
        found = boxed(text)
        found = stated(text) if found is None else found
        return text.strip() or None if found is None else found

    def reference(self, value: Any) -> str:
        """The text as it stands."""
        return _text(value)

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """1 or 0."""
        return [float(reference == given) for reference, given in pairs]


class Normalised(Exact):
    """The same text but for case, articles, punctuation, blank space and unicode's variants; numbers by value."""

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """1 or 0."""
        return [float(_alike(reference, given)) for reference, given in pairs]


class Choice(Matcher):
    """The same option: its letter, A to J."""

    def extract(self, text: str) -> str | None:
        """See `choices.chosen_option`."""
        return chosen_option(text)

    def reference(self, value: Any) -> str:
        """A letter in any of an answer's forms, or the option's number from 0, as MMLU has it."""
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(OPTIONS):
            return OPTIONS[value]
        found = chosen_option(value) if isinstance(value, str) else None
        if found is None:
            raise UnusableReferenceError(f"{_shown(value)} names no option: a letter A to J, or its number from 0")
        return found

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """1 or 0."""
        return [float(reference == given) for reference, given in pairs]


@dataclass(frozen=True)
class Numeric(Matcher):
    """The same number: |given − reference| ≤ max(absolute, relative · |reference|); both 0: exactly.

    Units are not compared; a percentage may be meant as it stands or as its hundredth.
    """

    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.absolute < float("inf") and 0 <= self.relative < float("inf")):
            raise ValueError(f"tolerances are numbers from 0, not {self.absolute} and {self.relative}")

    def extract(self, text: str) -> str | None:
        """The number of the last box or "#### x"; else of "the answer is x"; else the last number of the text."""
        found = boxed(text)
        found = hashed(text) if found is None else found
        if found is not None:
            return found if read_number(found) is not None else None
        for piece in (stated(text), last_number(text)):
            if piece is not None and read_number(piece) is not None:
                return piece
        return None

    def reference(self, value: Any) -> str:
        """A number, or a text that ends on one (a whole solution with "#### 72")."""
        text = _text(value)
        found = text if read_number(text) is not None else self.extract(text)
        if found is None:
            raise UnusableReferenceError(f"{_shown(value)} is no number")
        return found

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """1 or 0."""
        return [
            float(close(_number(reference), _number(given), self.absolute, self.relative)) for reference, given in pairs
        ]


class Regression(Numeric):
    """How near a number is: 1 − min(1, |given − reference| / |reference|); for reference 0, 1 for 0 alone.

    Source: the regression reward of Video-R1, arXiv 2503.21776.
    """

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Between 0 and 1."""
        return [_nearness(_number(reference), _number(given)) for reference, given in pairs]


@dataclass(frozen=True)
class Expression(Matcher):
    """The same mathematical object: numbers, expressions, sets, intervals, matrices, equations, by math-verify.

    What is the same as text or as a number is settled here, and so are words, which are no products of letters, and
    numbers with different units; the rest goes to processes with a time limit. A comparison that is cut off is None,
    and counted.
    """

    pool: Pool = field(default_factory=Pool)

    def extract(self, text: str) -> str | None:
        r"""See `extract.final_answer`."""
        return final_answer(text)

    def reference(self, value: Any) -> str:
        r"""The text as it stands; of a whole solution what its \boxed{…} or "#### x" holds."""
        text = _text(value)
        found = boxed(text)
        found = hashed(text) if found is None else found
        return text if found is None else found

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """1 or 0; None where the comparison took too long or broke its process."""
        known = [_plainly_same(reference, given) for reference, given in pairs]
        asked = [pair for pair, verdict in zip(pairs, known, strict=True) if verdict is None]
        replies = iter(self.pool.ask(asked))
        verdicts = [next(replies) if verdict is None else verdict for verdict in known]
        # An error's name: what could not be compared has not been shown to be the same.
        return [None if verdict is None else float(verdict is True) for verdict in verdicts]

    def require(self) -> None:
        """See `Pool.require`."""
        self.pool.require()

    def drain(self) -> dict[str, float]:
        """See `Pool.drain`."""
        return self.pool.drain()

    def close(self) -> None:
        """End the processes."""
        self.pool.close()


@dataclass(frozen=True)
class ByFunction(Matcher):
    """A user's comparison: (reference, the answer's result) → True, False or a number from 0 to 1.

    Args:
        function: the comparison; the reference is the row's value, as text.
        read: an answer's text → its result, None where it has none.
    """

    function: Callable[[str, str], float]
    read: Callable[[str], str | None] = final_answer

    def extract(self, text: str) -> str | None:
        """By `read`."""
        return self.read(text)

    def reference(self, value: Any) -> str:
        """The text as it stands."""
        return _text(value)

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """What the function says."""
        return [float(self.function(reference, given)) for reference, given in pairs]


def normalised(text: str) -> str:
    """Case folded, without articles and punctuation, one space between words, unicode's variants made one.

    Signs inside and before a number stay; so does an article that ends the text, or stands among single letters: there
    it is an option or a name.

    >>> normalised("The  “Café”, U.S.!"), normalised("-3.5"), normalised("ﬁve  o'clock"), normalised("**A**")
    ('café us', '-3.5', 'five oclock', 'a')
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=[0-9])[.,:/](?=[0-9])|(?<![\w.])-(?=[.0-9])", lambda found: f"\0{ord(found[0])}\0", text)
    text = re.sub(r"[.'’]", "", text)
    text = "".join(" " if _is_mark(letter) else letter for letter in text)
    text = re.sub("\0([0-9]+)\0", lambda found: chr(int(found[1])), text)
    *words, last = text.split() or [""]
    if all(len(word) == 1 for word in (*words, last)):
        return " ".join((*words, last))
    return " ".join([*(word for word in words if word not in ("a", "an", "the")), last])


def _is_mark(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def _alike(reference: str, given: str) -> bool:
    wanted, got = read_number(reference), read_number(given)
    if wanted is not None and got is not None and _bare_number(reference) and _bare_number(given):
        return close(wanted, got)
    wanted_text = normalised(reference)
    return normalised(given) == wanted_text if wanted_text else reference == given


def _bare_number(text: str) -> bool:
    return not any(letter.isalpha() for letter in text)


def _plainly_same(reference: str, given: str) -> bool | None:
    """Whether two results are the same, where that needs no algebra; None where it does."""
    if _SPACE.sub("", reference) == _SPACE.sub("", given):
        return True
    words = words_of(reference), words_of(given)
    if words[0] is not None and words[1] is not None:
        return normalised(words[0]) == normalised(words[1])
    wanted, got = read_number(reference), read_number(given)
    if wanted is not None and got is not None and other_units(reference, given):
        return False
    if wanted is None or got is None or not (_bare_number(reference) and _bare_number(given)):
        return None
    if close(wanted, got):
        return True
    both_whole = wanted.value.denominator == got.value.denominator == 1
    return False if both_whole and not (wanted.percent or got.percent) else None


def _nearness(reference: Number, given: Number) -> float:
    errors = [
        abs(got - wanted) / abs(wanted) if wanted else float(got != 0)
        for wanted in reference.readings()
        for got in given.readings()
    ]
    return 1.0 - float(min(1.0, *errors)) if errors else 0.0


def _number(text: str) -> Number:
    number = read_number(text)
    assert number is not None  # extract and reference only let numbers through
    return number


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise UnusableReferenceError(f"{_shown(value)} is no answer: it must be text or a number")
    return str(value).strip()


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
