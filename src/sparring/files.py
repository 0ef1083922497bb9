"""Files written whole or not at all: a crash at any moment leaves the old file or the new."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


class RunFolderError(ValueError):
    """A run's folder cannot be used or written; the message names the path and what to do."""


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds `path` or, where that is not there yet, its nearest parent."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def fsync_path(path: Path) -> None:
    """Ask the disk to hold a file's bytes or a folder's entries (folders: a no-op on Windows)."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, write: Callable[[Path], object], *, sync: bool = True) -> None:
    """Let `write` fill a file beside `path`, then put it in place: readers see the old file or the new.

    sync: wait until the disk holds it. Without, a killed process still leaves no half of it, but a power cut may.

    Raises RunFolderError, the old file untouched, where the disk refuses.
    """
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        if sync:
            fsync_path(aside)
        aside.replace(path)
        if sync:
            fsync_path(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # what went wrong before is what is told
            aside.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    write_atomic(path, lambda aside: aside.write_bytes(text.encode()))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinities, which JSON lacks, are refused."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be written as JSON: {error}") from error
    write_text_atomic(path, text + "\n")


def write_error(path: Path, error: OSError) -> RunFolderError:
    """What a disk's refusal is to the user."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return RunFolderError(f"{path} could not be written: it is a file or within one, and a folder is needed")
    return RunFolderError(
        f"{path} could not be written: {error.strerror or error} ({free_bytes(path) / 1e6:.1f} MB free). "
        "Free some space, make the folder writable, or choose another folder (--out)"
    )
