"""A benchmark's rows, from a file or the hub; errors name the file, the line and the field."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


@dataclass(frozen=True)
class Source:
    """Where a set is on the hub."""

    hub_id: str
    split: str
    subset: str | None = None


@dataclass(frozen=True)
class Row:
    """One row: its fields, and how errors call it ("gsm8k.jsonl, line 3")."""

    fields: Mapping[str, Any]
    where: str
    number: int

    def text(self, name: str) -> str:
        """A field that must be text with something in it."""
        value = self.value(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{self.where}: its {name} must be text, not {value!r}")
        return value

    def value(self, name: str) -> Any:
        """A field that must be there."""
        if name not in self.fields:
            raise ValueError(f"{self.where} has no field {name!r}; it has: {', '.join(self.fields) or 'none'}")
        return self.fields[name]


def read_rows(path: str | None, source: Source) -> list[Row]:
    """The rows of a file, or of the hub's set where `path` is None.

    Raises:
        ValueError: see `Benchmark.load`.
    """
    found = list(_hub(source) if path is None else _file(Path(path)))
    if not found:
        raise ValueError(f"{path or source.hub_id} is empty: it holds no row")
    return found


def _file(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise ValueError(f"there is no benchmark file {path}")
    if not path.name.endswith(FILES):
        raise ValueError(f"{path}: a benchmark file ends in {', '.join(FILES[:-1])} or {FILES[-1]}")
    if path.suffix == ".parquet":
        yield from _objects(_parquet(path), f"{path}, row")
        return
    text = _read(path)
    if path.suffix == ".json":
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(records, list):
            raise ValueError(f"{path}: expected a JSON list of rows")
        yield from _objects(records, f"{path}, row")
        return
    # Not splitlines(): JSON allows U+2028 and other line ends inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            yield _row(record, f"{path}, line", number)


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError) as error:  # a damaged gzip file too
        raise ValueError(f"{path} can't be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error


def _parquet(path: Path) -> list[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not Parquet: {error}") from error


def _hub(source: Source) -> Iterator[Row]:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ValueError(
            f"{source.hub_id} is read from the hub by the datasets library (pip install 'sparring[data]'); "
            "or give the path of a file"
        ) from error
    try:
        records = datasets.load_dataset(source.hub_id, name=source.subset, split=source.split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{source.hub_id} can't be loaded from the hub: {reason}; or give the path of a file"
        ) from error
    yield from _objects(list(records), f"{source.hub_id}, row")


def _objects(records: list[Any], where: str) -> Iterator[Row]:
    for number, record in enumerate(records, 1):
        yield _row(record, where, number)


def _row(record: Any, where: str, number: int) -> Row:
    if not isinstance(record, dict):
        raise ValueError(f"{where} {number} is no object with fields")  # noqa: TRY004 - a user's file
    return Row(record, f"{where} {number}", number)
