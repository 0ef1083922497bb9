"""The images of a data set's rows: in a column `images` (a list) or `image`, as paths, bytes or both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKER = "<image>"
"""Stands in a text where an image belongs."""
COLUMNS = ("images", "image")


def images_of(record: Mapping[str, Any], folder: Path | None, where: str) -> tuple[Path | bytes, ...]:
    """A row's images, unopened; relative paths count from `folder`.

    The `datasets` library and Parquet files hold an image as {"bytes": …, "path": …}.

    Raises:
        ValueError: an entry that is neither path nor bytes.
    """
    name = next((name for name in COLUMNS if record.get(name) is not None), None)
    if name is None:
        return ()
    value = record[name]
    return tuple(
        _image(entry, folder, f"{where}: its {name}") for entry in (value if isinstance(value, list) else [value])
    )


def _image(entry: Any, folder: Path | None, where: str) -> Path | bytes:
    if isinstance(entry, Mapping):
        held = entry.get("bytes")
        entry = entry.get("path") if held is None else held
    if isinstance(entry, bytes):
        return entry
    if isinstance(entry, str) and entry:
        return (folder or Path()) / entry.removeprefix("file://")
    raise ValueError(f"{where} must be paths, bytes or objects with either, not {type(entry).__name__}")
