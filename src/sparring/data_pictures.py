"""A data set of pictures out of a table of questions and the image files that it names.

Rows are read, checked and written (`data_shards.py`) one after the other: what is in memory is one group of them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sparring.data_images import MARKER
from sparring.data_shards import Shards, put_in_place, skipped_beside
from sparring.files import RunFolderError, free_bytes
from sparring.images import MAX_PIXELS, Picture, PictureError

TABLES = (".jsonl", ".csv")
FILE_BYTES = 2**28
"""The largest image file that is read."""
TOLD_EVERY = 5000


@dataclass(frozen=True)
class Columns:
    """The columns of the table that is read. Those of problem_type and source may be missing."""

    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    problem_type: str = "problem_type"
    source: str = "source"


@dataclass
class Converted:
    """What came of it. skipped: rows that can't be used, all of them in `skipped_file`; reasons: the first few's."""

    rows: int = 0
    files: int = 0
    bytes: int = 0
    skipped: int = 0
    reasons: list[str] = field(default_factory=list[str])
    skipped_file: Path | None = None


class _UnusableError(ValueError):
    """A row that can't be used; the message says why."""


def convert(
    table: Path,
    out: Path,
    *,
    images: Path | None = None,
    columns: Columns = Columns(),
    max_pixels: int = MAX_PIXELS,
    longest_side: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Converted:
    """Write the data set's folder, whole or not at all. Rows that can't be used are left out, counted and written, with
    the reason, to the file OUT-skipped.jsonl.

    Args:
        table: .jsonl or .csv; its image column names a file, or (.jsonl) a list of them.
        images: what names count from, and where files must lie; the table's folder by default.
        max_pixels: a larger image is refused by its header, before anything is decoded.
        longest_side: larger images are scaled down to this many pixels (JPEG stays JPEG, all others become PNG).
        overwrite: put it in place of an earlier data set.
        say: told how far it is.

    Raises:
        ValueError: a table that can't be read or lacks a column, no row that can be used, or something else in the
            place of the data set. Nothing is changed then.
    """
    out = out.resolve()
    _require_place(out, overwrite=overwrite)
    if table.resolve() == skipped_beside(out):
        raise ValueError(f"{table} is where the rows that {out.name} skips are listed: rename the table, or OUT")
    maker = _Maker(images or table.parent, columns, max_pixels, longest_side)
    aside = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        (aside / "data").mkdir(parents=True)
        made = _fill(aside, table, maker, say)
        made.skipped_file = put_in_place(aside, out, skipped=made.skipped > 0)
    except OSError as error:
        raise RunFolderError(
            f"{out} could not be written: {error.strerror or error} ({free_bytes(out) / 1e6:.1f} MB free). "
            "Free some space, make the folder writable, or choose another one as OUT"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return made


def _require_place(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"{out} is there already: --overwrite puts the new data set in its place")
    found = (entry for entry in out.rglob("*") if not entry.is_dir()) if out.is_dir() else iter([out])
    if strange := next((file for file in found if file.parent != out / "data" or file.suffix != ".parquet"), None):
        raise ValueError(f"{out} is no data set of pictures ({strange} is in it): --overwrite would remove it")


# --- reading -----------------------------------------------------------------------------------------


def _lines(table: Path) -> Iterator[tuple[int, Any]]:
    """Rows by number (a line's in .jsonl); in place of one that can't be read the error."""
    try:
        if table.suffix == ".csv":
            yield from _csv_lines(table)
        else:
            yield from _json_lines(table)
    except OSError as error:
        raise ValueError(f"{table} can't be read: {error.strerror}") from error


def _csv_lines(table: Path) -> Iterator[tuple[int, Any]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from enumerate(csv.DictReader(file, strict=True), 1)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{table} is no CSV file in UTF-8: {error}") from error


def _json_lines(table: Path) -> Iterator[tuple[int, Any]]:
    with table.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield number, _UnusableError(f"it is not JSON ({error})")


@dataclass
class _Maker:
    """Rows of the table → rows of the data set."""

    folder: Path
    columns: Columns
    max_pixels: int
    longest_side: int | None

    def require_columns(self, row: Mapping[str, Any], table: Path) -> None:
        for option in ("image", "question", "answer"):
            name = getattr(self.columns, option)
            if name not in row:
                raise ValueError(
                    f"{table} has no column {name!r}: name the one of the {option} by --{option}; it has: "
                    f"{', '.join(map(str, row))}"
                )

    def row(self, given: Any) -> dict[str, Any]:
        """Raises _UnusableError where the row or one of its images can't be used."""
        if isinstance(given, _UnusableError):
            raise given
        if not isinstance(given, Mapping):
            raise _UnusableError("it is no object with columns")
        c = self.columns
        question, answer = self._text(given, c.question), self._text(given, c.answer)
        if question is None or answer is None:
            raise _UnusableError(f"its {c.question if question is None else c.answer} is missing")
        names = self._names(given.get(c.image))
        return {
            "problem": question if MARKER in question else MARKER * len(names) + question,
            "answer": answer,
            "images": [{"bytes": self._image(name), "path": Path(name).name} for name in names],
            "problem_type": self._text(given, c.problem_type),
            "source": self._text(given, c.source),
        }

    def _text(self, given: Mapping[str, Any], name: str) -> str | None:
        value = given.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            raise _UnusableError(f"its {name} is no text")
        if value is None or not value.strip():
            return None
        _require_utf8(value, name)
        return value

    def _names(self, value: Any) -> list[str]:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise _UnusableError(f"its {self.columns.image} names no image file")
        for name in names:
            _require_utf8(name, self.columns.image)
        return names

    def _image(self, name: str) -> bytes:
        path = self.folder / name
        try:
            if "\0" not in name and not path.resolve().is_relative_to(self.folder.resolve()):
                raise _UnusableError(f"{name}: lies outside {self.folder}")
            if not path.is_file():
                raise _UnusableError(f"{name}: no such file")
            if path.stat().st_size > FILE_BYTES:
                raise _UnusableError(f"{name}: more than {FILE_BYTES // 2**20} MiB")
            data = path.read_bytes()
        except OSError as error:
            raise _UnusableError(f"{name}: can't be read ({error.strerror})") from error
        try:
            picture = Picture.open(data, name=name, max_pixels=self.max_pixels)
        except PictureError as error:
            raise _UnusableError(str(error)) from error
        longest = self.longest_side
        return data if longest is None or max(picture.width, picture.height) <= longest else _scaled(picture, longest)


def _require_utf8(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _UnusableError(f"its {name} holds half a character") from error


def _scaled(picture: Picture, longest: int) -> bytes:
    assert isinstance(picture.source, bytes)
    rgb, buffer = picture.rgb(), io.BytesIO()
    rgb.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    if picture.source.startswith(b"\xff\xd8\xff"):
        rgb.save(buffer, "JPEG", quality=95)
    else:
        rgb.save(buffer, "PNG")
    return buffer.getvalue()


def _fill(aside: Path, table: Path, maker: _Maker, say: Callable[[str], None]) -> Converted:
    made, first = Converted(), True
    with Shards(aside / "data") as shards, (aside / "skipped.jsonl").open("w", encoding="utf-8") as skipped:
        for number, given in _lines(table):
            if first and isinstance(given, Mapping):
                maker.require_columns(given, table)
                first = False
            try:
                shards.add(maker.row(given))
                made.rows += 1
            except _UnusableError as error:
                made.skipped += 1
                skipped.write(json.dumps({"row": number, "reason": str(error)}) + "\n")
                if len(made.reasons) < 5:
                    made.reasons.append(f"row {number}: {error}")
            if (made.rows + made.skipped) % TOLD_EVERY == 0:
                say(f"{made.rows} rows written, {made.skipped} skipped")
    if not made.rows:
        why = f"none of its {made.skipped} rows can be used ({made.reasons[0]})" if made.reasons else "it has no row"
        raise ValueError(f"{table}: {why}")
    made.files, made.bytes = shards.count, shards.bytes
    return made
