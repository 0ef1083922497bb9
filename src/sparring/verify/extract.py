r"""Where a model's text gives its result.

Every reader is total: whatever the text, it returns a piece of it, or None where there is no result; never a guess.
Time grows with the text's length alone.
"""

from __future__ import annotations

import re
from collections import deque

LONGEST = 4_000
"""Characters of a result; what is longer is no final answer."""

_TOKEN = re.compile(r"\\(?:(boxed|fbox)(?![A-Za-z])\s*)?|[{}]")
_WHOLE_BOX = re.compile(r"\s*\\(?:boxed|fbox)\s*\{(.*)\}\s*", re.DOTALL)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]+([^\s{}\\$.,;]{1,64})")
_OPEN_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASHES = re.compile(
    r"^[ \t]*####[ \t]*((?:[$€£][ \t]?)?[-+−]?[ \t]?[$€£]?(?:[0-9][0-9,/]*(?:\.[0-9]+)?|\.[0-9]+)"
    r"[ \t]?[A-Za-z%°$€£ \t]{0,40}?)\.?[ \t]*$",
    re.MULTILINE,
)
_STATED = re.compile(r"\banswers?[ \t*_`]*(?:\b(?:is|are)\b[ \t*_`]*:?|:|=)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_WRAPPERS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    *((mark, mark) for mark in ("**", "__", "*", "`")),
)
_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?[ \t]?[$€£]?"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE][-+]?[0-9]{1,4}|/[0-9]+)?(?![0-9]|\.[0-9])"
    r"(?:[ \t]?%|[ \t](?:hundred|thousand|million|billion|trillion)\b)?"
)


def final_answer(text: str) -> str | None:
    r"""The result a text ends on: its last \boxed{…}, else "#### x", else "the answer is x", else its last number.

    None where there is none of them, or where the text breaks off inside its only box.

    >>> final_answer(r"So \boxed{\frac{1}{2}}."), final_answer("3 + 4 = 7"), final_answer("I don't know.")
    ('\\frac{1}{2}', '7', None)
    """
    found = boxed(text)
    if found is None and _OPEN_BOX.search(text):
        return None
    for read in (hashed, stated, last_number):
        found = read(text) if found is None else found
    return found if found is None or len(found) <= LONGEST else None


def boxed(text: str) -> str | None:
    r"""What the last balanced \boxed{…} holds, nested boxes opened; "\boxed 7" where no braces follow any.

    >>> boxed(r"\boxed{1} and \boxed{\{a \mid \boxed{2}\}} but \boxed{3"), boxed(r"\boxed{")
    ('\\{a \\mid \\boxed{2}\\}', None)
    """
    found = _last_box(text)
    if found is None:
        bare = _BARE_BOX.findall(text)
        return bare[-1] if bare else None
    if len(found) <= LONGEST:
        while (inner := _WHOLE_BOX.fullmatch(found)) is not None and _last_box(found) == inner[1]:
            found = inner[1]
    return found.strip() or None


def _last_box(text: str) -> str | None:
    """The balanced box that closes last: one pass, with the open braces on a stack."""
    open_boxes: list[int | None] = []  # where a box's content starts; None for other braces
    span: tuple[int, int] | None = None
    position = 0
    while (token := _TOKEN.search(text, position)) is not None:
        position = token.end()
        if token[0] == "{":
            open_boxes.append(None)
        elif token[0] == "}":
            start = open_boxes.pop() if open_boxes else None
            if start is not None:
                span = (start, token.start())
        elif token[1] is None:
            position += 1  # an escaped character: \{ opens nothing
        elif text[position : position + 1] == "{":
            position += 1
            open_boxes.append(position)
    return text[slice(*span)] if span else None


def hashed(text: str) -> str | None:
    r"""The number after the last "####" of a line of its own (GSM8K's form); a heading "#### Step 3" is none.

    >>> hashed("so 72.\n#### 72"), hashed("#### 3. Add up"), hashed("#### $1,080 a year")
    ('72', None, '$1,080 a year')
    """
    found = _HASHES.findall(text)
    return found[-1].strip() if found else None


def stated(text: str) -> str | None:
    r"""What follows the last "the answer is", "answer:" or "answers are", to the end of its sentence.

    >>> stated("The answer is **18 dollars**. Done."), stated("Final Answer:\n$x = 3.5$"), stated("No answer.")
    ('18 dollars', 'x = 3.5', None)
    """
    last = _last(_STATED, text)
    if last is None:
        return None
    rest = text[last.end() : last.end() + LONGEST].lstrip(" \t\r\n*_`:")
    line = rest.partition("\n")[0]
    end = _SENTENCE_END.search(line)
    return unwrapped(line[: end.start()] if end else line) or None


def unwrapped(text: str) -> str:
    r"""Without blank space, Markdown's emphasis and dollar signs around it, and a full stop after it.

    >>> unwrapped("**$x$**."), unwrapped(r"\(2\)"), unwrapped("$5")
    ('x', '2', '$5')
    """
    text = text.strip()
    changed = len(text) <= LONGEST
    while changed:
        before, text = text, text.rstrip(". \t\r\n")
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : len(text) - len(closing)]
            if (
                len(text) > len(opening) + len(closing)
                and text == f"{opening}{inner}{closing}"
                and opening not in inner
            ):
                text = inner.strip()
        text = _loose_marks(text)
        changed = text != before
    return text


def _loose_marks(text: str) -> str:
    """Emphasis that is open on one side only: "**Answer:** 5" leaves "5", "**the answer is 5**" leaves "5**"."""
    for mark in ("**", "__", "`"):
        if text.count(mark) == 1:
            text = text.removeprefix(mark).removesuffix(mark).strip()
    return text


def last_number(text: str) -> str | None:
    """The last number, with its sign, currency, percent sign, exponent or denominator.

    >>> last_number("1,000 of 2.5e3, then -3/4 and 50 %."), last_number("x86 and a1")
    ('50 %', None)
    """
    last = _last(_NUMBER, text)
    return last[0].strip() if last else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)
