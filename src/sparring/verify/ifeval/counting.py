"""Words, sentences and capital words, as IFEval counts them: by NLTK's rules, without its data files.

Sentences follow Punkt (Kiss & Strunk 2006) with fixed lists in place of its trained model. Capital words follow NLTK's
word tokenizer (Penn Treebank's conventions) as far as it decides which pieces are in capitals.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")

# --- sentences ---------------------------------------------------------------------------------------

_APART_CHARACTERS = ")\";}]*:@'({[?!‘’“”«»"
_CANDIDATE = re.compile(rf"[.?!](?=[{re.escape(_APART_CHARACTERS)}]|\s+(?P<next>\S+))")
_CLOSING = re.compile(r"[\"')\]}‘’“”«»]+(?:\s+|(?=--)|$)")
_TOKEN = re.compile(rf"--+|\.\.+|[^\s{re.escape(_APART_CHARACTERS)}]+|\S")
_LONGEST_WORD = 200
"""Characters before a full stop that are looked at."""
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")
_NUMERAL = re.compile(r"-?[.,]?[0-9][0-9,.-]*")

_ABBREVIATIONS = """
    adm al approx apr aug ave blvd bros capt cf cmdr co col corp cpl dec dept dr est etc feb fig fri ft gen gov hon inc
    jan jr lt ltd maj mar messrs mon mr mrs ms mt nov oct op ph.d pres prof pt rep rev sat sen sept sgt sr st sun tel
    thu tue univ vol vs wed
"""
_STARTERS = """
    a after all also although an and another as at because before both but by despite each even for from he her his
    however i if in it its many most my no now of on one our she since so some such that the their then there these
    they this those though to under we when while with yet you your
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
STARTERS = frozenset(_STARTERS.split())
"""Words that, in capitals, begin a sentence even after an abbreviation."""


def count_words(text: str) -> int:
    r"""Runs of letters, digits and underscores: "don't" is two.

    >>> count_words("Don't stop_now, 3.5!")
    5
    """
    return len(_WORD.findall(text))


def count_sentences(text: str) -> int:
    """Sentences, by Punkt's rules.

    ? and ! end one wherever a word or a bracket follows, a full stop does unless it belongs to an abbreviation, an
    initial, an ellipsis, or a number before a lower-case word. A line's end is no sentence's.

    >>> count_sentences("Dr. Who met J. Smith at 5 p.m. sharp. Well... nothing! (Really?) So"), count_sentences(" ")
    (4, 0)
    """
    text = text.strip()
    pieces: list[str] = []
    start = 0
    for found in _last_of_each_word(text):
        following = found["next"]
        before = text[max(start, found.end() - _LONGEST_WORD) : found.end()].split()[-1]
        after = text[found.end()] if following is None else following
        if _ends(_TOKEN.findall(before), _TOKEN.findall(after)[0]):
            pieces.append(text[start : found.end()])
            start = found.end() if following is None else found.start("next")
    return _filled([*pieces, text[start:]])


def _last_of_each_word(text: str) -> list[re.Match[str]]:
    """Where a sentence may end: of several signs in one word, as in "What?!", the last."""
    last: dict[int, re.Match[str]] = {}
    words = (word.end() for word in re.finditer(r"\S+", text))
    end = next(words, 0)
    for found in _CANDIDATE.finditer(text):
        while end < found.end():
            end = next(words)
        last[end] = found
    return list(last.values())


def _ends(word: list[str], after: str) -> bool:
    """Whether a sentence ends in a word, given as tokens, before the token `after`."""
    for token, following in zip(word, [*word[1:], after], strict=True):
        if token in ("?", "!") or (token.endswith(".") and _full_stop(token, following)):
            return True
    return False


def _full_stop(piece: str, following: str) -> bool:
    """Whether the full stop that ends a token ends a sentence too."""
    if piece == ".":
        return True
    bare = piece[:-1].casefold()
    starts = following[:1].isupper() and following.casefold().rstrip(".,;:") in STARTERS
    if piece.endswith("..") or _is_abbreviation(bare):
        return starts
    if len(bare) == 1 and bare.isalpha():
        return starts or not following[:1].isalpha()
    if _NUMERAL.fullmatch(bare):
        return not (following[:1].islower() or following in set(";:,.!?"))
    return True


def _is_abbreviation(bare: str) -> bool:
    return bare in ABBREVIATIONS or bare.rpartition("-")[2] in ABBREVIATIONS or bool(_DOTTED.fullmatch(bare))


def _filled(pieces: list[str]) -> int:
    """How many are left when closing quotes and brackets have gone to the sentence before them."""
    count, taken = 0, 0
    for index, piece in enumerate(pieces):
        closing = _CLOSING.match(piece) if index else None
        taken = closing.end() if closing else 0
        count += bool(piece[taken:].strip())
    return count


# --- capital words -----------------------------------------------------------------------------------

_APART = re.compile(r"--|\.{2,}|\.(?=[\])}>\"']*(?:\s|$))|[«»“”‘’„`;@#$%&?!*\"()\[\]{}<>‒–—―]|''|[:,](?!\d)")
_CLITICS = re.compile(r"(?<=[^' ])(N'T|n't|'(?:LL|ll|RE|re|VE|ve|[sSmMdD]))(?= )")
_CONTRACTIONS = re.compile(r"\b(?:(CAN)(NOT)|(GIM|LEM)(ME)|(GON|WAN)(NA)|(GOT)(TA)|(D)('YE)|(MORE)('N))\b")
_OPENING = re.compile(r"(?<!\w)'(?!(?:RE|VE|LL|[MTSDN])\b)(?=\w)", re.IGNORECASE)


def count_capital_words(text: str) -> int:
    """Tokens in capitals, as NLTK's word tokenizer splits them: "WON'T STOP-GO" has three.

    >>> count_capital_words("WON'T STOP-GO 3D, I said (NASA).")
    6
    """
    return sum(piece.isupper() for piece in _tokens(text))


def _tokens(text: str) -> list[str]:
    text = _APART.sub(" ", _OPENING.sub("' ", text))
    text = _CLITICS.sub(r" \1", " ".join(text.split()).join("  "))
    return _CONTRACTIONS.sub(lambda found: " ".join(("", *filter(None, found.groups()), "")), text).split()
