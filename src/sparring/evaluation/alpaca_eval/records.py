"""Records of a JSON or JSONL file, read field by field: every error names the file, the line and the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file.

    Attributes:
        fields: its content.
        where: names it in errors: "verdicts.jsonl, line 3" or "annotations.json, item 3" (from 1).
    """

    fields: Mapping[str, Any]
    where: str

    def get(self, name: str) -> Any:
        """A field that must be there; null is None."""
        if name not in self.fields:
            raise ValueError(f"{self.where} has no {name!r}; it has {', '.join(map(repr, self.fields)) or 'no field'}")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A field that must be text."""
        value = self.get(name)
        return value if isinstance(value, str) else self._refuse(name, "text")

    def text_or_none(self, name: str) -> str | None:
        """Text; None where it is absent or null."""
        return None if self.fields.get(name) is None else self.text(name)

    def count_or_none(self, name: str) -> int | None:
        """A whole number from 0; None where it is absent or null."""
        value = self.fields.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            return value
        return self._refuse(name, "a whole number from 0")

    def flag_or_none(self, name: str) -> bool | None:
        """True or false; None where it is absent or null."""
        value = self.fields.get(name)
        return value if value is None or isinstance(value, bool) else self._refuse(name, "true or false")

    def log_probability_or_none(self, name: str) -> float | None:
        """A natural logarithm of a probability; None where it is absent or null."""
        value = self.fields.get(name)
        if value is None:
            return None
        if _is_number(value) and -1e9 < value <= 0:
            return float(value)
        return self._refuse(name, "a log-probability (at most 0) or null")

    def preference(self, name: str) -> float | None:
        """AlpacaEval's preference: 1 (reference) … 2 (model), 0 or 1.5 for a draw, null where it wasn't parsed."""
        value = self.get(name)
        if value is None:
            return None
        if _is_number(value) and (value == 0 or 1 <= value <= 2):
            return float(value)
        return self._refuse(name, "a number from 1 (reference better) to 2 (model better), 0 (draw) or null")

    def _refuse(self, name: str, expected: str) -> Any:
        shown = json.dumps(self.fields[name])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise ValueError(f"{self.where}: {name!r} must be {expected}, not {shown}")


def read_records(path: Path) -> list[Record]:
    """The objects of a .jsonl file (one a line; blank lines are skipped) or a .json file (a list of them).

    Raises:
        ValueError: no such file, another ending, no UTF-8, not JSON, no objects, or nothing in it.
    """
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path}: expected a .json file (a list of objects) or a .jsonl file (an object a line)")
    text = read_text(path)
    if path.suffix == ".jsonl":
        # Not splitlines(): JSON allows U+2028 and other line ends inside a string.
        lines = [(line, f"{path}, line {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        values = [(_parsed(line, where), where) for line, where in lines]
    else:
        items = _parsed(text, str(path)) if text.strip() else []
        if not isinstance(items, list):
            raise ValueError(f"{path}: expected a JSON list of objects")
        values = [(item, f"{path}, item {number}") for number, item in enumerate(items, 1)]
    if not values:
        raise ValueError(f"{path} is empty: expected one object for each instruction")
    for value, where in values:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, found {type(value).__name__}")  # noqa: TRY004 - a user's file
    return [Record(value, where) for value, where in values]


def read_text(path: Path) -> str:
    """A UTF-8 file's text, without a byte order mark.

    Raises:
        ValueError: no such file, or no UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    # RecursionError: brackets thousands deep. ValueError: also a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)
