"""Texts and columns as a page carries them: JSON, gzip, base64, in blocks that the page unpacks when it needs them.

A text is kept once a block and named by its place there. What is compressed is cut into blocks of about a megabyte, so
that opening a page unpacks no more than it shows.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from math import isfinite
from typing import Any

BLOCK = 1_000_000
"""Characters of text in a block, about."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class Blocks:
    """Items, one after the other, in compressed blocks: each item's texts lie in one.

    Args:
        columns: lists of places of texts; an item adds to them what it has.
    """

    def __init__(self, *columns: str) -> None:
        self.names = columns
        self.packed: list[str] = []
        self.starts: list[int] = []
        self.size = 0
        self._items = 0
        self._open()

    def begin(self) -> None:
        """The next item begins."""
        if self._length >= BLOCK:
            self.close()
        if self._fresh:
            self.starts.append(self._items)
        self._fresh = False
        self._items += 1

    def add(self, column: str, *texts: str) -> None:
        """More texts of a column."""
        for text in texts:
            place = self._places.setdefault(text, len(self._places))
            self._columns[column].append(place)
            if place == len(self._texts):
                self._texts.append(text)
                self._length += len(text)

    def close(self) -> None:
        """Pack what is open; after the last item too."""
        if not self._fresh:
            self.packed.append(packed({"texts": self._texts, **self._columns}))
            self.size += len(self.packed[-1])
            self._open()

    def _open(self) -> None:
        self._texts = [""]
        self._places = {"": 0}
        self._columns: dict[str, list[int]] = {name: [] for name in self.names}
        self._length = 0
        self._fresh = True


def packed(content: Any) -> str:
    """JSON as gzip in base64. Half of a surrogate pair, which UTF-8 can't hold, becomes JSON's escape of it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = _SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def number(value: Any) -> float | int | None:
    """A finite number at the six digits that are shown at most; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
