"""The pictures that a run's turns show, beside the turns: each once, small, and bounded in number and bytes.

A file is named by its picture's handle, so a resumed run finds what is there and writes no picture twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sparring.files import write_atomic

if TYPE_CHECKING:
    from PIL import Image

    from sparring.images import Picture
    from sparring.types import Prompt, Turn

SIDE = 256
"""Pixels of the longest side; a larger picture is kept as a smaller copy."""
MOST_A_STEP = 64
"""New pictures of one step: opening large ones takes the time of the step, and a long run shall show late ones too."""
MOST_BYTES = 2**28
"""Bytes of a run's pictures."""
EXACT, SMALLER = ".png", ".webp"
_NAME = re.compile(r"[0-9a-f]{1,16}")


def name_of(picture: Picture) -> str:
    """What a picture is called in a run's folder and its turns."""
    return f"{-picture.handle:x}"


def pictures_in(prompt: Prompt) -> list[Picture]:
    """The pictures that a prompt shows, in order."""
    return [
        part["image"]
        for message in prompt.messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]


def shown_by(turns: Iterable[Turn]) -> Iterator[Picture]:
    """The pictures of these turns' prompts, in the order of play."""
    prompts = {id(turn.prompt): turn.prompt for turn in turns}  # answers share their prompt
    return (picture for prompt in prompts.values() for picture in pictures_in(prompt))


def kept(folder: Path, name: str) -> Path | None:
    """The file of a picture; None where it was not kept, or the name, of a damaged file of turns, is none."""
    files = [folder / f"{name}{form}" for form in (EXACT, SMALLER)] if _NAME.fullmatch(name) else []
    return next((file for file in files if file.is_file()), None)


class Gallery:
    """Keeps pictures in a folder, which is made with the first.

    Args:
        say: told, once each, which bound was reached and that a picture could not be read any more.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say
        self._names: set[str] | None = None  # of what is there; None: not looked yet
        self._bytes = 0
        self._told: set[str] = set()

    def keep(self, pictures: Iterable[Picture]) -> None:
        """Keep those of one step that are not there yet.

        Raises RunFolderError where the disk refuses.
        """
        new = 0
        for picture in pictures:
            if self._names is None:
                self._names = self._look()
            name = name_of(picture)
            if name in self._names:
                continue
            if new == MOST_A_STEP:
                self._tell(f"of a step's new pictures the first {MOST_A_STEP} are kept in {self.folder}")
                return
            if self._bytes >= MOST_BYTES:
                self._tell(f"{self.folder} holds {self._bytes / 1e6:.0f} MB: no further pictures are kept")
                return
            if self._write(picture, name):
                self._names.add(name)
                new += 1

    def _look(self) -> set[str]:
        files = [*self.folder.glob(f"*{EXACT}"), *self.folder.glob(f"*{SMALLER}")]
        sizes = {file.stem: size for file in files if (size := file.stat().st_size)}  # a power cut may leave empty ones
        self._bytes = sum(sizes.values())
        return set(sizes)

    def _write(self, picture: Picture, name: str) -> bool:
        from sparring.images import PictureError

        try:
            rgb = picture.rgb()
        except PictureError as error:
            self._tell("a picture could not be kept", f": {error}")
            return False
        file = self.folder / f"{name}{EXACT if max(rgb.size) <= SIDE else SMALLER}"
        # Unsynced: a disk takes longer to hold a small picture than all else here, and one that is lost is no loss.
        write_atomic(file, lambda aside: _save(rgb, aside, file.suffix), sync=False)
        self._bytes += file.stat().st_size
        return True

    def _tell(self, what: str, more: str = "") -> None:
        if what not in self._told:
            self._told.add(what)
            self._say(what + more)


def _save(rgb: Image.Image, file: Path, form: str) -> None:
    if form == SMALLER:
        rgb.thumbnail((SIDE, SIDE))
    rgb.save(file, form[1:].upper())
