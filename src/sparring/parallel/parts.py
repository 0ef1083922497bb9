"""Named tensors in safetensors files: written by the ranks that hold parts of them, read by rank 0 for all.

Tensors are whole in the files, however they were sharded, so any number of ranks reads them, and transformers too. One
is put together at a time: no rank ever holds more than its own shards and that one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from sparring.parallel.ranks import Ranks, deal
from sparring.parallel.tensors import is_sharded, whole

Digest = tuple[int, str]  # size, SHA-256
Kind = tuple[tuple[int, ...], torch.dtype]

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Digest]:
    """Write `stem.safetensors`, or where tensors are sharded a part from each writing rank and their index.

    A meeting: all ranks give the same names in the same order. Gives the digests of the files but the index, which the
    writers took while they wrote.

    Raises:
        OSError: a part could not be written; raised on all ranks.
    """
    writers = ranks.writers if any(map(is_sharded, tensors.values())) else (0,)
    names = list(tensors)
    dealt = deal([tensor.numel() * tensor.element_size() for tensor in tensors.values()], len(writers))
    files = [_file(stem, index, len(writers)) for index in range(len(writers))]
    mine: dict[str, Tensor] = {}
    if ranks.rank in writers:
        mine = {names[index]: tensors[names[index]] for index in dealt[writers.index(ranks.rank)]}
    part = _Part(folder / files[writers.index(ranks.rank)], mine) if ranks.rank in writers else None
    for name, tensor in tensors.items():
        value = whole(tensor)
        if part is not None and name in mine:
            part.add(value)
    digests = ranks.together(f"writing {stem}", lambda: None if part is None else part.close())
    if len(writers) > 1:
        places = {names[index]: file for file, indices in zip(files, dealt, strict=True) for index in indices}
        ranks.first(f"writing the index of {stem}", lambda: _write_index(folder, stem, tensors, places))
    return {file: digest for file, writer in zip(files, writers, strict=True) if (digest := digests[writer])}


def _file(stem: str, index: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_index(folder: Path, stem: str, tensors: Mapping[str, Tensor], places: Mapping[str, str]) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": {name: places[name] for name in tensors}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


class _Part:
    """One safetensors file, written tensor by tensor; a failure waits until it is closed."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in tensors.items():
            start, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._path, self._size, self._hash = path, 0, hashlib.sha256()
        self._error: OSError | None = None
        self._file = None
        try:
            self._file = path.open("wb")
        except OSError as error:
            self._error = error
        self._write(len(text).to_bytes(8, "little") + text)

    def add(self, tensor: Tensor) -> None:
        """The next tensor."""
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._write(memoryview(cast(Any, data.numpy())))

    def close(self) -> Digest:
        """Size and hash. Raises OSError where anything was not written."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._error = self._error or error
        if self._error is not None:
            raise self._error
        return self._size, self._hash.hexdigest()

    def _write(self, data: bytes | memoryview) -> None:
        if self._error is not None or self._file is None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error
        self._size += len(data)
        self._hash.update(data)


class TensorFiles(Mapping[str, Tensor]):
    """The tensors in safetensors files, each read when it is asked for.

    own_name: a name in the files to the name it is asked for by.
    """

    def __init__(self, files: list[Path], own_name: Callable[[str], str] = str) -> None:
        opened: list[Any] = [safe_open(file, "pt") for file in files]
        self._of = {own_name(name): (file, name) for file in opened for name in file.keys()}  # noqa: SIM118 - no mapping

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._of[name]
        return file.get_tensor(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def kind(self, name: str) -> Kind:
        """A tensor's shape and dtype, without reading it."""
        file, stored = self._of[name]
        there = file.get_slice(stored)
        return tuple(there.get_shape()), _DTYPES[there.get_dtype()]


class FromFirst(Mapping[str, Tensor]):
    """Rank 0's tensors, on every rank. To ask for one is a meeting.

    Args:
        tensors: rank 0's; not looked at elsewhere.
        device: where they are wanted.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None, ranks: Ranks, device: torch.device) -> None:
        self._tensors, self._ranks, self._device = tensors, ranks, device
        self._known = ranks.first("reading tensors", self._describe)

    def __getitem__(self, name: str) -> Tensor:
        shape, dtype = self._known[name]
        if self._ranks.leads:
            assert self._tensors is not None
            value = self._tensors[name].to(self._device)
        else:
            value = torch.empty(shape, dtype=dtype, device=self._device)
        self._ranks.broadcast_(value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def kind(self, name: str) -> Kind:
        """A tensor's shape and dtype, without reading it."""
        return self._known[name]

    def _describe(self) -> dict[str, Kind]:
        assert self._tensors is not None
        if isinstance(self._tensors, TensorFiles):
            return {name: self._tensors.kind(name) for name in self._tensors}
        return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()}
