"""The files of a data set of pictures: written group by group, put in place whole.

    data/train-00000-of-00002.parquet …     problem, answer, images [{bytes, path}], problem_type, and source

These are Vision-SR1-47K's columns and `source`, the images inside, as the `datasets` library reads and writes them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from sparring.files import fsync_path

GROUP_ROWS, GROUP_BYTES = 64, 2**24
"""Rows and bytes of images that are written together: what a reader of one row has to read."""
SHARD_BYTES = 2**28
"""Bytes of images in one file."""

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TEXTS = ("problem", "answer", "problem_type", "source")
_FEATURES = {
    **{name: {"dtype": "string", "_type": "Value"} for name in _TEXTS},
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
}
SCHEMA = pa.schema(
    [
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("images", pa.list_(_IMAGE)),
        ("problem_type", pa.string()),
        ("source", pa.string()),
    ],
    # What tells the datasets library that these are images.
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


class Shards:
    """Parquet files of about SHARD_BYTES; in the end their names tell how many they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.count = self.bytes = 0
        self._group: list[dict[str, Any]] = []
        self._group_bytes = self._shard_bytes = 0
        self._writer: parquet.ParquetWriter | None = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None and self._group:
            self._write()
        self._close()
        if kind is not None:
            return
        for number in range(self.count):
            named = self._folder / f"train-{number:05}-of-{self.count:05}.parquet"
            self._numbered(number).rename(named)
            fsync_path(named)
        fsync_path(self._folder)

    def add(self, row: dict[str, Any]) -> None:
        """Take a row of SCHEMA."""
        self._group.append(row)
        self._group_bytes += sum(len(image["bytes"]) for image in row["images"])
        if len(self._group) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        if self._writer is None:
            # A dictionary of images would be kept in memory, and none comes twice.
            self._writer = parquet.ParquetWriter(self._numbered(self.count), SCHEMA, use_dictionary=False)
            self.count += 1
        self._writer.write_table(pa.Table.from_pylist(self._group, SCHEMA))
        self._shard_bytes += self._group_bytes
        self.bytes += self._group_bytes
        self._group, self._group_bytes = [], 0
        if self._shard_bytes >= SHARD_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._shard_bytes = None, 0

    def _numbered(self, number: int) -> Path:
        return self._folder / f"{number}.parquet"


def skipped_beside(out: Path) -> Path:
    """The list of the rows that a data set's folder skips."""
    return out.with_name(f"{out.name}-skipped.jsonl")


def put_in_place(aside: Path, out: Path, *, skipped: bool) -> Path | None:
    """The folder under its name; the list of what was skipped beside it."""
    told = skipped_beside(out)
    if skipped:
        (aside / "skipped.jsonl").replace(told)
    else:
        (aside / "skipped.jsonl").unlink()
        told.unlink(missing_ok=True)
    old = aside.with_name(f"{aside.name}-old")
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    fsync_path(out.parent)
    shutil.rmtree(old, ignore_errors=True)
    return told if skipped else None
