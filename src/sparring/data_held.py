"""Bytes that are not kept in memory: left where they are, or set down in a temporary file, and read when asked for."""

from __future__ import annotations

import tempfile
import threading
import weakref
from dataclasses import dataclass, field
from typing import IO, Any, Protocol


class Held(Protocol):
    """Bytes that lie somewhere else."""

    @property
    def name(self) -> str:
        """How messages call them."""
        ...

    def read(self) -> bytes:
        """The bytes, read anew. Raises OSError where they are no longer there."""
        ...


class Spool:
    """Sets bytes down in one nameless file of the temporary folder, which goes with the spool. For several threads."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0
        self._lock = threading.Lock()

    def keep(self, data: bytes, name: str) -> Spooled:
        """Take bytes. Raises OSError where the temporary folder has no room for them."""
        with self._lock:
            try:
                file = self._opened()
                file.seek(self._end)
                file.write(data)
                file.flush()
            except OSError as error:
                raise OSError(
                    f"images can't be set down in the temporary folder {tempfile.gettempdir()} ({error.strerror}): "
                    "free some space there, or name another folder in the environment variable TMPDIR"
                ) from error
            kept = Spooled(self, self._end, len(data), name)
            self._end += len(data)
            return kept

    def read(self, start: int, length: int) -> bytes:
        """What was kept there."""
        with self._lock:
            file = self._opened()
            file.seek(start)
            return file.read(length)

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="sparring-images-")  # noqa: SIM115 - as long as the spool
            weakref.finalize(self, self._file.close)
        return self._file


@dataclass(frozen=True, slots=True)
class Spooled:
    """Bytes in a spool."""

    spool: Spool = field(repr=False)
    start: int
    length: int
    name: str

    def read(self) -> bytes:
        """See `Held.read`."""
        return self.spool.read(self.start, self.length)


@dataclass(frozen=True, slots=True)
class Cell:
    """The bytes of one image in a data set of the `datasets` library, which maps its files into memory.

    dataset: in Arrow's format. index: of the image among those of its row's column.
    """

    dataset: Any = field(repr=False)
    row: int
    column: str
    index: int
    name: str

    def read(self) -> bytes:
        """See `Held.read`."""
        value = self.dataset[self.row].column(self.column)[0].as_py()
        entry = value[self.index] if isinstance(value, list) else value
        return entry["bytes"] if isinstance(entry, dict) else entry
