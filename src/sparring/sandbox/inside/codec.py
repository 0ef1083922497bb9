"""Messages between a sandboxed program and its judge: plain values as bytes, over pipes.

Reading gives plain values and calls nothing of the writer's, whatever the bytes. Standard library alone, Python 3.8 and
later, and few imports: they are most of what a short program costs.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LARGEST = 2**24
"""Bytes of one message."""


class Uncrossable(TypeError):  # noqa: N818 - the program's own error, in its words
    """A value that is none of those which cross between processes."""


class Broken(ValueError):  # noqa: N818
    """Bytes that are no encoded value."""


class Gone(BaseException):
    """The other process ended: no test can catch it."""


_BUILD: dict[str, Callable[[list[Any]], Any]] = {"l": list, "t": tuple, "S": set, "F": frozenset, "I": iter}


def encode(value: object) -> bytes:
    """A plain value as bytes (a letter, then what it needs); subclasses as what they extend. Raises Uncrossable."""
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def _encode(value: Any, parts: list[bytes]) -> None:
    if value is None:
        parts.append(b"n")
    elif isinstance(value, bool):
        parts.append(b"y" if value else b"x")
    elif isinstance(value, int):
        _sized("i", format(int(value), "x").encode(), parts)
    elif isinstance(value, float):
        _sized("f", float.hex(value).encode(), parts)
    elif isinstance(value, complex):
        _sized("c", f"{float.hex(value.real)},{float.hex(value.imag)}".encode(), parts)
    elif isinstance(value, str):
        _sized("s", str.encode(value, "utf-8", "surrogatepass"), parts)
    elif isinstance(value, (bytes, bytearray)):
        _sized("b", bytes(value), parts)
    else:
        _encode_many(value, parts)


def _encode_many(value: Any, parts: list[bytes]) -> None:
    if isinstance(value, range):
        _many("r", (value.start, value.stop, value.step), parts)
    elif isinstance(value, dict):
        _many("d", [part for item in dict.items(value) for part in item], parts)
    elif isinstance(value, list):
        _many("l", list.__iter__(value), parts)
    elif isinstance(value, tuple):
        _many("t", tuple.__iter__(value), parts)
    elif isinstance(value, set):
        _many("S", set.__iter__(value), parts)
    elif isinstance(value, frozenset):
        _many("F", frozenset.__iter__(value), parts)
    elif hasattr(value, "__next__"):
        _many("I", value, parts)
    elif isinstance(value, (type({}.keys()), type({}.values()), type({}.items()))):
        _many("l", value, parts)
    elif hasattr(value, "__index__"):  # numpy's integers
        _encode(value.__index__(), parts)
    else:
        raise Uncrossable(type(value).__name__)


def _sized(letter: str, data: bytes, parts: list[bytes]) -> None:
    parts.append(f"{letter}{len(data)}:".encode())
    parts.append(data)


def _many(letter: str, items: Iterable[Any], parts: list[bytes]) -> None:
    items = list(items)
    parts.append(f"{letter}{len(items)}:".encode())
    for item in items:
        _encode(item, parts)


def decode(data: bytes) -> Any:
    """The value of encoded bytes. Raises Broken, whatever the bytes."""
    try:
        value, end = _decode(data, 0)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise Broken(str(error)) from None
    if end != len(data):
        raise Broken("more than one value")
    return value


def _decode(data: bytes, at: int) -> tuple[Any, int]:
    letter = chr(data[at])
    if letter in "nyx":
        return {"n": None, "y": True, "x": False}[letter], at + 1
    colon = data.index(b":", at, at + 12)
    size, at = int(data[at + 1 : colon]), colon + 1
    if not 0 <= size <= len(data) - at:
        raise Broken("cut short")
    if letter in "ifcsb":
        return _atom(letter, data[at : at + size]), at + size
    items: list[Any] = []
    for _ in range(size):
        item, at = _decode(data, at)
        items.append(item)
    if letter == "d":
        return dict(zip(items[::2], items[1::2])), at  # noqa: B905 - strict is newer than Python 3.8
    return range(*items) if letter == "r" else _BUILD[letter](items), at


def _atom(letter: str, data: bytes) -> Any:
    if letter == "i":
        return int(data, 16)
    if letter == "f":
        return float.fromhex(data.decode())
    if letter == "c":
        real, imaginary = data.decode().split(",")
        return complex(float.fromhex(real), float.fromhex(imaginary))
    return data.decode("utf-8", "surrogatepass") if letter == "s" else bytes(data)


class Channel:
    """Messages between judge and program."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink

    def send(self, value: object) -> None:
        """Raises Uncrossable before anything is sent, and Gone where nobody reads."""
        data = encode(value)
        view = memoryview(b"%016x" % len(data) + data)
        try:
            while view:
                view = view[os.write(self._sink, view) :]
        except OSError:
            raise Gone from None

    def receive(self) -> Any:
        """Raises Gone at the end, and Broken."""
        try:
            size = int(self._exactly(16), 16)
        except ValueError as error:
            raise Broken(str(error)) from None
        if not 0 <= size <= LARGEST:
            raise Broken("too long")
        return decode(self._exactly(size))

    def last(self) -> Any:
        """A message that is there already; None where none is."""
        os.set_blocking(self._source, False)
        try:
            return self.receive()
        except (Gone, Broken, BlockingIOError):
            return None

    def _exactly(self, size: int) -> bytes:
        pieces: list[bytes] = []
        while size:
            piece = os.read(self._source, min(size, 2**20))
            if not piece:
                raise Gone
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
