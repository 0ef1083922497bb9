r"""Results that are words: algebra would take "east" for e·a·s·t, and find it the same as "seat"."""

from __future__ import annotations

import re

from sparring.verify.extract import unwrapped

_LATEX_TEXT = re.compile(r"\\(?:text|mbox|mathrm|mathbf|textbf|textit|textrm)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[^\W\d_]+(?:(?:[\s,;.]+|(?<=[^\W\d_]{2})[-'’/](?=[^\W\d_]{2}))[^\W\d_]+)*")
_AROUND = ' \t\r\n.,;:?"“”'
_BRACKETED = re.compile(r"[(\[]([^\W\d_]+)[)\]]")
_MATHS = {"pi", "π", "inf", "infinity", "sqrt", "sin", "cos", "tan", "cot", "log", "ln", "exp"}
_SIGN = re.compile(r"[-+=^*/<>](?![^\W\d_]{2})|(?<![^\W\d_]{2})[-+=^*/<>]")


def words_of(text: str) -> str | None:
    r"""A result that is words or letters, without its dress; None where it holds digits, operators or LaTeX's commands,
    and for a lone letter, which may be a variable.

    >>> words_of(r"\text{east}"), words_of("(C), B"), words_of("(a, b)"), words_of("2x"), words_of("x")
    ('east', 'C , B', None, None, None)
    """
    bare = _BRACKETED.sub(r" \1 ", unwrapped(_LATEX_TEXT.sub(r" \1 ", text))).strip(_AROUND)
    bare = re.sub(r"(?<=[^\W\d_]{2})!+$", "", bare)  # n! is no word
    if len(bare) == 1 or _WORDS.fullmatch(bare) is None or _MATHS & set(re.split(r"\W+", bare.lower())):
        return None
    return bare


def signs_of(text: str) -> list[str]:
    """The operators in a result; those between two words ("left/right") are none.

    >>> signs_of("2x - 1"), signs_of("black-and-white"), signs_of("-x")
    (['-'], [], ['-'])
    """
    return _SIGN.findall(unwrapped(_LATEX_TEXT.sub(r" \1 ", text)))
