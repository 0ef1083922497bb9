r"""Which option a text chooses: "A", "A.", "(A)", "A. cat", "\boxed{A}", "answer: A"."""

from __future__ import annotations

import re

from sparring.verify.extract import boxed, stated, unwrapped

OPTIONS = "ABCDEFGHIJ"

_LATEX_TEXT = re.compile(r"\\(?:text|mbox|mathrm|mathbf|textbf|textit|textrm)\s*\{([^{}]*)\}")
_OTHER = r"(?!\s*(?:,|/|&|or\b|and\b)\s*\(?[A-J]\b)"
_BRACKETED = re.compile(rf"(?:options?|choices?)?\s*[(\[]\s*([A-Ja-j])\s*[)\]]{_OTHER}(?!\w)", re.IGNORECASE)
_DELIMITED = re.compile(rf"(?:(?:[Oo]ption|[Cc]hoice)\s+)?([A-J])(?:[.):](?=\s|$)|\s+(?:because|since|as)\b){_OTHER}")
_ALONE = re.compile(r"(?:(?:option|choice)\s+)?([A-J])[.):]?", re.IGNORECASE)

_LONE = re.compile(r"\([A-J]\)|[A-J][.)]?")


def chosen_option(text: str) -> str | None:
    r"""The option's letter, A to J: of the last box, else of "answer: …", else of the whole text or its last line.

    None where no option is named there, or more than one. A word is no option: of "A cat" nothing is read.

    >>> [chosen_option(text) for text in ("A", "(b)", "C. cat", r"\boxed{\text{(D)}}", "So the answer is E.", "A cat")]
    ['A', 'B', 'C', 'D', 'E', None]
    """
    for read in (boxed, stated):
        piece = read(text)
        if piece is not None:
            return _option(piece)
    whole = _option(text)
    return whole if whole is not None else _option(text.rstrip().rpartition("\n")[2])


def lone_option(value: object) -> bool:
    """Whether a reference is an option's letter and nothing else.

    >>> [lone_option(value) for value in ("B", "(B)", " B. ", "b", "B. cat", "K", 1)]
    [True, True, True, False, False, False, False]
    """
    return isinstance(value, str) and _LONE.fullmatch(value.strip()) is not None


def _option(piece: str) -> str | None:
    piece = unwrapped(_LATEX_TEXT.sub(r" \1 ", piece[:1000]))
    found = _ALONE.fullmatch(piece) or _BRACKETED.match(piece) or _DELIMITED.match(piece)
    return found[1].upper() if found else None
