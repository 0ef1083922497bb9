"""The rows of a data set as they are: from files, folders and the hub, with images left where they lie."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.data_held import Cell, Held, Spool
from sparring.data_images import image_columns, set_aside

FILES = (".jsonl", ".json", ".parquet")
_FILE_NAME = re.compile(r".*\.(jsonl?|parquet|csv|tsv|txt|ya?ml|arrow|gz|zip|zst|bz2|xz)", re.IGNORECASE)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_AT_ONCE = 16  # rows with images that are in memory together


@dataclass(frozen=True, slots=True)
class Names:
    """How errors call the settings that describe a prompt set; the defaults are a run's."""

    prompts: str = "game.prompts"
    split: str = "game.prompt_split"
    subset: str = "game.prompt_subset"
    column: str = "game.prompt_column"
    revision: str = "game.prompt_revision"


NAMES = Names()


def read_records(source: str, *, split: str, subset: str | None, revision: str | None, names: Names) -> list[Any]:
    """The rows of what `load_prompts` takes, as they are.

    An image that a row holds as bytes stands there as a `Held`: a data set of pictures is larger than memory.
    """
    path = Path(source)
    if path.is_file():
        _refuse_settings(source, "one file", names, split=split, subset=subset, revision=revision)
        return _read(path)
    if files := matching(source):
        _refuse_settings(source, "a pattern of files", names, split=split, subset=subset, revision=revision)
        return [record for file in files for record in _read(file)]
    if source and path.is_dir():
        _refuse_settings(source, "a folder", names, revision=revision)
        read = _read_saved if _is_saved(path) else _read_set
        return read(source, names, split, subset)
    _require_hub_id(source, names)
    return _read_set(source, names, split, subset, revision)


def matching(source: str) -> list[Path]:
    """The files that a pattern (`data/A-*.json`) names, in order of their names; none where it is no pattern."""
    if not any(sign in source for sign in "*?["):
        return []
    path = Path(source)
    return sorted(file for file in path.parent.glob(path.name) if file.is_file()) if path.parent.is_dir() else []


def _refuse_settings(source: str, what: str, names: Names, *, split: str = "train", **given: str | None) -> None:
    """A setting that does nothing is a mistake."""
    used = {**given, "split": None if split == "train" else split}
    for name, value in used.items():
        if value is not None:
            called = getattr(names, name)
            raise ValueError(f"{called}={value} does nothing for {what}, and {source} is one: leave it out")


def _require_hub_id(source: str, names: Names) -> None:
    """A mistyped path must not be asked of the hub."""
    path = Path(source)
    if _FILE_NAME.fullmatch(source) or not _HUB_ID.fullmatch(source) or path.parent.is_dir():
        beside: list[str] = []
        with suppress(OSError):
            beside = [entry.name for entry in path.parent.iterdir()]
        hint = nearest(path.name, beside) or " (a data set of the hub reads owner/name)"
        raise ValueError(f"{names.prompts}: there is no prompt file {source}{hint}")


def nearest(name: str, known: Sequence[str]) -> str:
    """What may have been meant, for the end of a message."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# --- files -------------------------------------------------------------------------------------------


def _read(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix not in FILES:
        raise ValueError(f"{path}: a prompt file ends in {', '.join(FILES[:-1])} or {FILES[-1]}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    if path.suffix == ".jsonl":
        # Not splitlines(): JSON allows U+2028 and other line ends inside a string.
        return [_json_line(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a JSON list of rows")  # noqa: TRY004 - a user's file
    return records


def _read_parquet(path: Path) -> list[Any]:
    """Its images go to a spool as they are read: a row of Parquet can't be read without the hundreds beside it."""
    records: list[Any] = []
    spool = Spool()
    for shown, batch in _batches(path):
        for record in batch.to_pylist():
            for name in shown:
                where = f"{path}, row {len(records) + 1}: its {name}"
                record[name] = set_aside(record[name], lambda data, _, name=where: spool.keep(data, name))
            records.append(record)
    return records


def _batches(path: Path) -> Iterator[tuple[list[str], Any]]:
    """The columns with images, and some rows."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, memory_map=True) as file:  # else a whole group of rows is read at once
            shown = image_columns(file.schema_arrow)
            for batch in file.iter_batches(_AT_ONCE if shown else 2**14):
                yield shown, batch
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"{path} is not Parquet: {error}") from error
    finally:
        pyarrow.default_memory_pool().release_unused()


def _json_line(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from error


# --- the datasets library ----------------------------------------------------------------------------


def _library(names: Names) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{names.prompts} names a folder or a data set of the hub, which the datasets library reads: "
            "pip install 'sparring[data]'"
        ) from error
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise ValueError(
            f"datasets {datasets.__version__} can run code that a data set brings along: pip install 'datasets>=4'"
        )
    return datasets


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _read_saved(source: str, names: Names, split: str, subset: str | None) -> list[Any]:
    """The rows of what `save_to_disk` left: one split, or a dictionary of them."""
    datasets = _library(names)
    _refuse_settings(source, "a saved data set", names, subset=subset)
    try:
        saved = datasets.load_from_disk(source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{names.prompts}: {source} can't be read ({error})") from error
    splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    if split not in splits:
        raise ValueError(_no_split(source, split, list(splits), names))
    return _rows(splits[split], source)


def _read_set(source: str, names: Names, split: str, subset: str | None, revision: str | None = None) -> list[Any]:
    """The rows of a folder of files or of a hub data set."""
    datasets = _library(names)
    at = f" at {names.revision}={revision}" if revision else ""
    try:
        builder = datasets.load_dataset_builder(source, name=subset, revision=revision)
    except ValueError as error:  # an unknown one, or none where there are several: the message lists them
        given = f"{names.prompts}={source}, {names.subset}={subset}"
        raise ValueError(f"{given}: {_one_line(error)}") from error
    except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{names.prompts}: {source}{at} can't be loaded: {_one_line(error)}") from error
    try:
        builder.download_and_prepare()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = f" ({_one_line(error.__cause__)})" if error.__cause__ else ""
        raise ValueError(f"{names.prompts}: {source}{at} can't be read: {_one_line(error)}{cause}") from error
    try:
        dataset = builder.as_dataset(split=split)
    except ValueError as error:
        raise ValueError(_no_split(source, split, list(builder.info.splits), names)) from error
    return _rows(dataset, source)


def _rows(dataset: Any, source: str) -> list[Any]:
    """A split's rows; its images stay where they are, in files that the library maps into memory."""
    shown = image_columns(dataset.features.arrow_schema)
    if not shown:
        return dataset.to_list()
    cells = dataset.with_format("arrow")
    records: list[Any] = []
    for table in cells.iter(_AT_ONCE):
        for record in table.to_pylist():
            for name in shown:
                record[name] = set_aside(record[name], _left(cells, len(records), name, source))
            records.append(record)
    return records


def _left(cells: Any, row: int, name: str, source: str) -> Callable[[bytes, int], Held]:
    where = f"{source}, row {row + 1}: its {name}"
    return lambda _, index: Cell(cells, row, name, index, where)


def _no_split(source: str, split: str, known: list[str], names: Names) -> str:
    return f"{names.split}: {source} has no split {split!r}{nearest(split, known)}; it has: {', '.join(known)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
