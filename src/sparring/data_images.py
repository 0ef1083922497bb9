"""The images of a data set's rows: in a column `images` (a list) or `image`, as paths, bytes or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparring.data_held import Held

MARKER = "<image>"
"""Stands in a text where an image belongs."""
COLUMNS = ("images", "image")


def images_of(record: Mapping[str, Any], folder: Path | None, where: str) -> tuple[Path | bytes | Held, ...]:
    """A row's images, unopened; relative paths count from `folder`.

    folder: None for rows of the hub, which name no files of this machine. A file of one's own may: its paths may be
    absolute or lead out of the folder with "..".

    The `datasets` library and Parquet files hold an image as {"bytes": …, "path": …}.

    Raises:
        ValueError: an entry that is neither path nor bytes, or a path in a row of the hub.
    """
    name = next((name for name in COLUMNS if record.get(name) is not None), None)
    if name is None:
        return ()
    value = record[name]
    return tuple(
        _image(entry, folder, f"{where}: its {name}") for entry in (value if isinstance(value, list) else [value])
    )


def _image(entry: Any, folder: Path | None, where: str) -> Path | bytes | Held:
    if isinstance(entry, Mapping):
        held = entry.get("bytes")
        entry = entry.get("path") if held is None else held
    if isinstance(entry, bytes) or hasattr(entry, "read"):
        return entry
    if isinstance(entry, str) and entry:
        if folder is None:
            raise ValueError(
                f"{where} are named by a path ({entry!r:.80}), and a data set of the hub must hold the images "
                "themselves: download it and name its folder"
            )
        return folder / entry.removeprefix("file://")
    raise ValueError(f"{where} must be paths, bytes or objects with either, not {type(entry).__name__}")


def image_columns(schema: Any) -> list[str]:
    """The columns of a table (its Arrow schema) that hold images as bytes."""
    return [name for name in COLUMNS if name in schema.names and _holds_bytes(schema.field(name).type)]


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return types.is_binary(kind) or types.is_large_binary(kind)


def set_aside(value: Any, hold: Callable[[bytes, int], Held]) -> Any:
    """A column's value with something small in place of each image's bytes.

    hold: bytes and the image's index in the value → what stands for them.
    """
    if isinstance(value, list):
        return [_aside(entry, index, hold) for index, entry in enumerate(value)]
    return _aside(value, 0, hold)


def _aside(entry: Any, index: int, hold: Callable[[bytes, int], Held]) -> Any:
    if isinstance(entry, bytes):
        return hold(entry, index)
    if isinstance(entry, dict) and entry.get("bytes"):
        return {**entry, "bytes": hold(entry["bytes"], index)}
    return entry
