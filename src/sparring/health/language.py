"""What language and form a text has, as far as counting shows: scripts, function words, code.

A profile is no language detector. It counts characters by script and words by lists of the commonest function words of
seven languages; what is said is how far a step's counts lie from those of the run's first steps. A change of subject or
register (prose to lists, to code, to formulas) moves it too, only less; two languages of one script that has no list
here look alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sparring.health.sketch import levelled

T = TypeVar("T")

MOST = 256
"""Texts that a profile looks at; of more, as many evenly spaced ones."""
CODE_SHOWN, CODE_MOST = 500, 512
"""Characters looked at for code at either end of a text, and answers looked at."""

# First code point of each range, and the class of what follows; Unicode's blocks, coarsely.
_RANGES = (
    (0x00, "sign"), (0x30, "digit"), (0x3A, "sign"), (0x41, "latin"), (0x5B, "sign"), (0x61, "latin"), (0x7B, "sign"),
    (0xC0, "latin"), (0x250, "other"), (0x370, "greek"), (0x400, "cyrillic"), (0x530, "other"), (0x590, "hebrew"),
    (0x600, "arabic"), (0x780, "other"), (0x900, "indic"), (0xE00, "thai"), (0xE80, "other"), (0x1100, "hangul"),
    (0x1200, "other"), (0x1E00, "latin"), (0x1F00, "greek"), (0x2000, "sign"), (0x2C00, "other"), (0x3000, "sign"),
    (0x3040, "kana"), (0x3100, "other"), (0x3400, "han"), (0xA000, "other"), (0xAC00, "hangul"), (0xD800, "other"),
    (0xF900, "han"), (0xFB00, "other"), (0xFF00, "sign"),
)  # fmt: skip
SCRIPTS = tuple(sorted({name for _, name in _RANGES}))
_STOP_WORDS = {
    "english": "the of and to a in is that it was for on are as with his they be at this have from or by not but what "
    "all were we when your can there an which their if will each how them then these so some her would make like",
    "german": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus "
    "er hat dass sie nach wird bei einer um am sind noch wie einem über so zum war haben nur oder aber vor",
    "french": "le de la les et des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec son "
    "ou mais comme nous vous leur elle cette aux ses être peut tout",
    "spanish": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si "
    "sin sobre este ya entre cuando todo esta ser son dos también fue había era muy",
    "italian": "di e il la che in a per un è del con non una su si da le dei nel al sono come più o ma anche gli della "
    "lo alla ha delle questo se i dal quando essere io ci",
    "portuguese": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem "
    "à seu sua ou ser quando muito há nos já está eu também só pelo pela",
    "dutch": "de en van het een in is dat op te zijn met voor niet aan er om ook als dan maar bij uit nog naar heeft "
    "door over ze worden hij was wordt of kan geen tot je deze zich onder",
}
LANGUAGES = (*_STOP_WORDS, "none")


def _places() -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, words in enumerate(_STOP_WORDS.values()):
        for word in dict.fromkeys(words.split()):
            places.setdefault(word, []).append(index)
    return places


_LANGUAGES_OF = _places()
_SCRIPT_OF = np.empty(0x10000, np.int64)
for (_start, _name), (_end, _) in zip(_RANGES, (*_RANGES[1:], (0x10000, "")), strict=True):
    _SCRIPT_OF[_start:_end] = SCRIPTS.index(_name)

_WORD = re.compile(r"[^\W\d_]+")
_ASKED_WORDS = (
    "code codes coded coding python java javascript typescript kotlin swift rust golang php perl matlab sql html css "
    "bash shell regex function functions script scripts algorithm algorithms class api json yaml xml latex snippet "
    "snippets pseudocode código codice funktion fonction función код"
)
_ASKED = frozenset(_ASKED_WORDS.split())
_ASKED_STEMS = ("program", "implement", "debug", "compil", "программ")
_ASKED_SIGNS = ("c++", "c#", "```", "代码", "代碼", "程序", "编程", "コード", "プログラム", "코드")
_CODE = re.compile(
    r"^[ \t]{0,24}(?:(?:async )?def \w{1,60}\(|class \w{1,60}[(:]|from [\w.]{1,80} import |print\(|console\.log\("
    r"|import \w{1,60}(?:\.\w{1,60}){0,6}(?: as \w{1,60})?[ \t]*$|#include[ \t]*[<\"]"
    r"|(?:public|private) (?:static |class )|function \w{1,60}\(|(?:const|let|var) \w{1,60} = |<\?php|#!/)",
    re.MULTILINE,
)


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spaced.

    >>> evenly("abcdef", 3)
    ['a', 'c', 'e']
    """
    n = len(items)
    return [items[index * n // most] for index in range(most)] if n > most else list(items)


def profile(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """[len(SCRIPTS) + len(LANGUAGES)]: shares of the characters by script, then of the words by language.

    Each of the two sums to 1, or is 0 where there is nothing to count. A word of several lists counts for them in equal
    parts.
    """
    bare = [levelled(text) for text in evenly(texts, MOST)]
    codes_T = np.frombuffer("".join("".join(text.split()) for text in bare).encode("utf-32-le"), np.uint32)
    scripts = np.bincount(_SCRIPT_OF[np.minimum(codes_T, 0xFFFF)], minlength=len(SCRIPTS)).astype(np.float64)
    languages = np.zeros(len(LANGUAGES))
    for word in (word for text in bare for word in _WORD.findall(text)):
        found = _LANGUAGES_OF.get(word)
        for place in found or (len(LANGUAGES) - 1,):
            languages[place] += 1 / len(found or (1,))
    return np.concatenate([scripts / max(1.0, scripts.sum()), languages / max(1.0, languages.sum())])


def distance(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """How far two profiles lie apart, in [0, 1]: the larger total variation distance of scripts and of words."""
    apart = np.abs(one - other)
    return float(max(apart[: len(SCRIPTS)].sum(), apart[len(SCRIPTS) :].sum()) / 2)


def asks_for_code(query: str) -> bool:
    """Whether a query names code, a language or a program; rather too often than too seldom.

    >>> asks_for_code("Write a Python function that adds."), asks_for_code("Why is the sky blue?")
    (True, False)
    """
    shown = _ends(query).casefold()
    words = _WORD.findall(shown)
    return any(word in _ASKED or word.startswith(_ASKED_STEMS) for word in words) or any(
        sign in shown for sign in _ASKED_SIGNS
    )


def has_code(answer: str) -> bool:
    """Whether an answer holds a fenced block, or a line that opens a program.

    >>> has_code("Sure:\\n```\\nx\\n```"), has_code("import os\\nprint(1)"), has_code("They import goods.")
    (True, True, False)
    """
    shown = _ends(answer)
    return "```" in shown or "~~~" in shown or _CODE.search(shown) is not None


def _ends(text: str) -> str:
    return text if len(text) <= 2 * CODE_SHOWN else f"{text[:CODE_SHOWN]}\n{text[-CODE_SHOWN:]}"
