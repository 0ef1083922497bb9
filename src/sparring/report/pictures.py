"""The pictures of a page's threads: each once, small, as data of the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from sparring.gallery import EXACT, SIDE, SMALLER, kept
from sparring.runfolder import RunFolder

LARGEST = 16_000_000
"""Bytes of pictures in a page, in base64; beyond it pictures are left out."""


@dataclass(frozen=True)
class Shown:
    """A picture in the page: its place among all, and itself as WEBP in base64."""

    place: int
    data: str


@dataclass
class Pictures:
    """The pictures of some runs' threads, in the order of play; equal ones of several runs are one.

    name: as turns name them. file: where it lies, "" where the run did not keep it. size: [width, height] of those in
    the page, once `shown` was asked. notes: a sentence for each file that can't be read.
    """

    several: bool
    name: list[str] = field(default_factory=list[str])
    file: list[str] = field(default_factory=list[str])
    size: list[tuple[int, int] | None] = field(default_factory=list["tuple[int, int] | None"])
    notes: list[str] = field(default_factory=list[str])
    _paths: list[Path | None] = field(default_factory=list["Path | None"])
    _places: dict[str, int] = field(default_factory=dict[str, int])

    def __len__(self) -> int:
        return len(self.name)

    def add(self, run: str, folder: Path, names: Sequence[str]) -> list[int]:
        """The places of a thread's pictures."""
        return [self._place(run, folder, name) for name in names]

    def _place(self, run: str, folder: Path, name: str) -> int:
        place = self._places.setdefault(name, len(self.name))
        if place == len(self.name):
            path = kept(RunFolder(folder).pictures, name)
            self.name.append(name)
            self.file.append("" if path is None else f"{run + '/' if self.several else ''}pictures/{path.name}")
            self.size.append(None)
            self._paths.append(path)
        return place

    def shown(self, largest: int = LARGEST) -> list[Shown]:
        """Those that there is room for, spread evenly over the runs where there is none for all."""
        found: list[Shown] = []
        room = largest
        for place in _spread(len(self)):
            path = self._paths[place]
            if path is None:
                continue
            try:
                content, self.size[place] = _small(path)
            except Exception as error:  # noqa: BLE001 - decoders of broken files raise anything
                self.notes.append(f"{self.file[place]} could not be read: {error}")
                self.file[place] = ""
                continue
            data = base64.b64encode(content).decode()
            room -= len(data)
            if room < 0:
                self.size[place] = None
                break
            found.append(Shown(place, data))
        return found

    def columns(self) -> dict[str, list[Any]]:
        """What the page knows of each, besides itself."""
        return {"name": self.name, "file": self.file, "size": self.size}


def _spread(count: int) -> Iterator[int]:
    """The numbers below a count, each first part of them spread evenly.

    >>> list(_spread(6))
    [0, 4, 2, 1, 5, 3]
    """
    bits = max(1, (count - 1).bit_length())
    places = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return (place for place in places if place < count)


@lru_cache(maxsize=4096)  # a page that follows a run is made again and again; a file is named by what it holds
def _small(file: Path) -> tuple[bytes, tuple[int, int]]:
    """A kept picture as WEBP, and its width and height; exact pixels, many times larger, stay in the run's folder."""
    with Image.open(file, formats=("PNG", "WEBP")) as image:
        if max(image.size) > SIDE:
            raise ValueError(f"{image.width} x {image.height} pixels; a run keeps at most {SIDE}")
        if file.suffix == SMALLER:
            image.verify()
            return file.read_bytes(), image.size
        assert file.suffix == EXACT
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=80, method=2)
        return buffer.getvalue(), image.size
