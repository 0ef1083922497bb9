r"""Numbers as people and models write them: 1,234.5, $5, 3/4, 1 1/2, \frac{3}{4}, 2.5e-3, 1.2 \times 10^3, 50 %.

Values are exact fractions, so that equality is equality. Reading is total: None for what is not one number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 200
"""Characters of a number with its units; what is longer is prose."""

_LARGEST_EXPONENT = 400

_REPLACED = str.maketrans({"−": "-", "–": "-", "⁄": "/", "×": "x", "\u00a0": " ", "\u2009": " ", "\u202f": " "})
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?[0-9.]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9.]+)\s*\}|([0-9]))")
_LATEX_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|textrm)\s*\{([^{}]*)\}")
_LATEX_SIGNS = re.compile(r"\\(?:left|right|,|!|;|:|quad\b)|\^\{?\\circ\}?|\\(?:degree|circ)\b")
_GLUED = re.compile(r"(?<=[A-Za-z])(?<![0-9.][eE])(?:\^?\{?-?[0-9]\}?|[²³])")
_EQUALS = re.compile(r"=|\\approx|≈|\\equiv")
_NUMERAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_READ = re.compile(
    rf"(?P<sign>[-+]?)\s*[$€£]?\s*(?P<inner>-?)(?:(?P<whole>[0-9]+)\s+(?P<part>[0-9]+)/(?P<of>[0-9]+)"
    rf"|(?P<top>{_NUMERAL})(?:\s*/\s*(?P<bottom>{_NUMERAL}))?"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,4})|\s*(?:x|\*|\\times|\\cdot)\s*10\s*\^\s*\{?(?P<power>[-+]?[0-9]{1,4})\}?)?)"
    r"\s*(?:(?P<percent>\\?%|percent\b|per cent\b)|(?P<scale>hundred|thousand|million|billion|trillion)\b)?"
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_BEFORE = re.compile(r"[A-Za-z\s$€£:(]*")
_AFTER = re.compile(r"(?!\s*(?:[bdeijknpqrtuxyzBEIKMT]|bn|mn|[eE]xp)\b)[A-Za-z\s%°$€£./)'’-]*")
"""Units. A letter that may be a variable or a thousand is none: 2k, 5i, 3x."""
_SAME_UNIT = {
    spelled: unit
    for unit, spellings in {
        "ft": "foot feet",
        "in": "inch inches",
        "m": "meter meters metre metres",
        "cm": "centimeter centimeters centimetre centimetres",
        "mm": "millimeter millimeters millimetre millimetres",
        "km": "kilometer kilometers kilometre kilometres",
        "kg": "kilogram kilograms",
        "g": "gram grams",
        "s": "second seconds sec secs",
        "min": "minute minutes mins",
        "h": "hour hours hr hrs",
    }.items()
    for spelled in spellings.split()
}
_TERM = re.compile(r"(?:^|[^A-Za-z])[A-Za-z]\s*$")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it stands: `value` of "50 %" is 50, and `percent` says that a hundredth of it may be meant."""

    value: Fraction
    percent: bool = False

    def readings(self) -> tuple[Fraction, ...]:
        """What it may mean: 50 % is 50 and 1/2."""
        return (self.value, self.value / 100) if self.percent else (self.value,)


def read_number(text: str) -> Number | None:
    r"""The one number that a short text holds; words before and after it are its units.

    Of "x = 5" it is the right side. None where there is no number, or more than one ("3 or 4", "(1, 2)").

    >>> str(read_number(r"\$1,234.50 a year").value), str(read_number(r"x = -\frac{3}{4}").value), read_number("3 or 4")
    ('2469/2', '-3/4', None)
    """
    if len(text) > LONGEST:
        return None
    text = _plain(text)
    text = _EQUALS.split(text)[-1].strip()
    before = _BEFORE.match(text)
    assert before is not None  # it matches the empty text
    found = _READ.match(text, before.end())
    if found is None or not _AFTER.fullmatch(text, found.end()):
        return None
    if found["sign"] and _TERM.search(before[0]):
        return None  # x - 5
    value = _value(found)
    return None if value is None else Number(value, found["percent"] is not None)


def other_units(one: str, other: str) -> bool:
    r"""Whether two numbers as `read_number` reads them are followed by different units; one may have none.

    >>> other_units("10 km", "10 m"), other_units("12", "12 cm"), other_units("3 ft", r"3\text{ feet}")
    (True, False, False)
    """
    units = _units(one), _units(other)
    return all(units) and units[0] != units[1]


def _units(text: str) -> list[str]:
    text = _EQUALS.split(_undressed(text))[-1].strip()
    before = _BEFORE.match(text)
    found = _READ.match(text, before.end()) if before else None
    words: list[str] = re.findall(r"[A-Za-z°²³^0-9/-]+", text[found.end() :]) if found else []
    return [_SAME_UNIT.get(word.lower(), word) for word in words]


def close(reference: Number, given: Number, absolute: float = 0.0, relative: float = 0.0) -> bool:
    """Whether |given − reference| ≤ max(absolute, relative · |reference|), a percentage in either reading.

    Where both are percentages they are compared as they stand.

    >>> close(Number(Fraction(100)), Number(Fraction(101)), relative=0.02)
    True
    """
    if reference.percent and given.percent:
        pairs = [(reference.value, given.value)]
    else:
        pairs = [(wanted, got) for wanted in reference.readings() for got in given.readings()]
    most, share = Fraction(str(absolute)), Fraction(str(relative))  # as written: 0.3 is 3/10
    return any(abs(got - wanted) <= max(most, share * abs(wanted)) for wanted, got in pairs)


def _plain(text: str) -> str:
    """Without LaTeX's dress and units' exponents, fractions as a/b."""
    return _GLUED.sub("", _undressed(text)).strip().strip("*_`").strip()


def _undressed(text: str) -> str:
    text = text.translate(_REPLACED)
    for sign, spelled in _VULGAR.items():
        text = text.replace(sign, f" {spelled}")
    text = text.replace(r"\$", "$").replace("{,}", ",")
    text = _LATEX_TEXT.sub(lambda found: f" {found[1].strip()}", text)
    text = _LATEX_SIGNS.sub("", text)
    text = _LATEX_FRACTION.sub(lambda found: f" {found[1] or found[2]}/{found[3] or found[4]} ", text)
    return re.sub(r"-\s+(?=[0-9])", "-", text)


def _value(found: re.Match[str]) -> Fraction | None:
    if found["sign"] and found["inner"]:
        return None
    if found["whole"] is not None:
        value = _ratio(found["part"], found["of"])
        value = None if value is None else int(found["whole"]) + value
    else:
        value = _ratio(found["top"], found["bottom"] or "1")
    exponent = int(found["exponent"] or found["power"] or 0)
    if value is None or abs(exponent) > _LARGEST_EXPONENT:
        return None
    value *= Fraction(10) ** (exponent + _SCALES.get(found["scale"], 0))
    return -value if "-" in (found["sign"], found["inner"]) else value


def _ratio(top: str, bottom: str) -> Fraction | None:
    above, below = (Fraction(part.replace(",", "").rstrip(".") or "0") for part in (top, bottom))
    return above / below if below else None
