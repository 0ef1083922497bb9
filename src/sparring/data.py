"""Prompt sets: rows from a local file or folder or from the hub, in an order that any step can find again."""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.data_images import COLUMNS, MARKER, images_of
from sparring.rewards.base import RESERVED
from sparring.sampling.seeds import generator
from sparring.types import Message

logger = logging.getLogger(__name__)

PROMPT_COLUMNS = ("messages", "prompt", "instruction", "question", "problem", "query")
"""Where a row's prompt is looked for, in this order; an instruction's `input` belongs to it."""

FILES = (".jsonl", ".json", ".parquet")
_FILE_NAME = re.compile(r".*\.(jsonl?|parquet|csv|tsv|txt|ya?ml|arrow|gz|zip|zst|bz2|xz)", re.IGNORECASE)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt: its text (or whole chat messages) and the columns that reach the reward by name.

    images: files or encoded bytes, opened when the row is played; where: how messages call the row.
    """

    query: str
    messages: tuple[Message, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Path | bytes, ...] = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class Names:
    """How errors call the settings that describe a prompt set; the defaults are a run's."""

    prompts: str = "game.prompts"
    split: str = "game.prompt_split"
    subset: str = "game.prompt_subset"
    column: str = "game.prompt_column"
    revision: str = "game.prompt_revision"


class Order:
    """In which order `count` rows come, epoch after epoch: anew in each, drawn from (seed, epoch, purpose)."""

    def __init__(self, count: int, purpose: str) -> None:
        self._count, self._purpose = count, purpose
        self._drawn: tuple[tuple[int, int], Any] | None = None

    def at(self, index: int, seed: int) -> int:
        """The row that comes at an index, counted through the epochs."""
        epoch, place = divmod(index, self._count)
        if self._drawn is None or self._drawn[0] != (seed, epoch):
            self._drawn = ((seed, epoch), generator(seed, epoch, self._purpose).permutation(self._count))
        return int(self._drawn[1][place])


class PromptSet:
    """Rows, shuffled anew each epoch.

    Args:
        rows: the prompts; empty ones are counted in `skipped` and left out.
        name: how errors and reports call the set.
    """

    def __init__(self, rows: Sequence[Row], name: str) -> None:
        self.name = name
        self.rows = [row for row in rows if row.query.strip()]
        self.skipped = len(rows) - len(self.rows)
        if not self.rows:
            raise ValueError(f"prompt set {name!r} holds no prompt ({self.skipped} empty rows)")
        self._order = Order(len(self.rows), f"epoch/{name}")

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, step: int, n: int, seed: int) -> list[Row]:
        """The n rows of a step (from 1): every row once an epoch, in an order drawn from (seed, epoch)."""
        first = (step - 1) * n
        return [self.rows[self._order.at(index, seed)] for index in range(first, first + n)]


def load_prompts(
    source: str,
    *,
    split: str = "train",
    subset: str | None = None,
    column: str | None = None,
    revision: str | None = None,
    names: Names = Names(),
) -> PromptSet:
    """A file (.jsonl, .json, .parquet), a folder of such files, a folder saved by `datasets`, or a hub id (owner/name).

    A prompt is text, or chat messages; an answer that ends the messages is cut off. An instruction is followed by its
    `input`, where that isn't blank (Alpaca's form). The other columns reach the reward by name, but for those whose
    names are the reward's own (`rewards.base.RESERVED`: prompts, completions, queries, answers ...), which are logged
    and reach it under no name.

    Folders and hub ids go through the `datasets` library; code that a data set brings along is never run.

    Args:
        split: of a folder or a hub data set; "train[:1000]" is its first thousand rows.
        subset: the configuration of a hub data set that has several.
        column: the prompt's, where it is none of PROMPT_COLUMNS or another is meant.
        revision: branch, tag or commit of a hub data set.
        names: how errors call these settings.

    Raises:
        ValueError: nothing there, an unknown split, subset or column, a damaged file, or a row (named by its number)
            that is no object or whose prompt is missing or neither text nor messages.
    """
    records = read_records(source, split=split, subset=subset, revision=revision, names=names)
    path = Path(source)
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    rows = [_row(record, column, f"{source}, row {number}", names, folder) for number, record in enumerate(records, 1)]
    _say_reserved(rows, source)
    return PromptSet(rows, path.name if path.exists() else source)


def read_records(source: str, *, split: str, subset: str | None, revision: str | None, names: Names) -> list[Any]:
    """The rows of what `load_prompts` takes, as they are."""
    path = Path(source)
    if path.is_file():
        _refuse_settings(source, "one file", names, split=split, subset=subset, revision=revision)
        return _read(path)
    if source and path.is_dir():
        _refuse_settings(source, "a folder", names, revision=revision)
        read = _read_saved if _is_saved(path) else _read_set
        return read(source, names, split, subset)
    _require_hub_id(source, names)
    return _read_set(source, names, split, subset, revision)


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
        hint = _nearest(path.name, beside) or " (a data set of the hub reads owner/name)"
        raise ValueError(f"{names.prompts}: there is no prompt file {source}{hint}")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# --- files -------------------------------------------------------------------------------------------


def _read(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            return parquet.read_table(path).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is not Parquet: {error}") from error
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
    return splits[split].to_list()


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
        return builder.as_dataset(split=split).to_list()
    except ValueError as error:
        raise ValueError(_no_split(source, split, list(builder.info.splits), names)) from error


def _no_split(source: str, split: str, known: list[str], names: Names) -> str:
    return f"{names.split}: {source} has no split {split!r}{_nearest(split, known)}; it has: {', '.join(known)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# --- rows --------------------------------------------------------------------------------------------


def _row(record: Any, column: str | None, where: str, names: Names, folder: Path | None) -> Row:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is no object with columns")  # noqa: TRY004 - a user's file
    name = _prompt_column(record, column, where, names)
    value = record[name]
    used = {name}
    if isinstance(value, list):
        messages = _conversation(value, name, where)
        query = messages[-1]["content"] if messages else ""
    elif value is None or (isinstance(value, str) and name != "messages"):
        messages, query = None, value or ""  # an empty row: counted and skipped
        given = record.get("input")
        if name == "instruction" and isinstance(given, str | None):
            used.add("input")
            query = f"{query}\n\n{given.strip()}" if given and given.strip() else query
    else:
        form = "a list of messages" if name == "messages" else "text or a list of messages"
        raise ValueError(f"{where}: its {name} must be {form}, not {type(value).__name__}")
    images = images_of(record, folder, where)
    if images:  # they are shown before the text
        used.update(COLUMNS)
        query = query.replace(MARKER, "").strip()
    columns = {key: value for key, value in record.items() if key not in used}
    return Row(query, messages, columns, images, where if images else "")


def _prompt_column(record: Mapping[str, Any], column: str | None, where: str, names: Names) -> str:
    if column is not None:
        if column in record:
            return column
        raise ValueError(
            f"{names.column}: {where} has no column {column!r}{_nearest(column, list(record))}; "
            f"it has: {', '.join(record)}"
        )
    known = [name for name in PROMPT_COLUMNS if name in record]
    if not known:
        raise ValueError(
            f"{where} has none of the columns {', '.join(PROMPT_COLUMNS)}: set {names.column} to one of those "
            f"it has: {', '.join(record)}"
        )
    # Where rows of several forms make one table, the columns of the others are null.
    return next((name for name in known if record[name] is not None), known[0])


def _conversation(value: Sequence[Any], name: str, where: str) -> tuple[Message, ...]:
    """Messages up to where the model speaks: an answer at their end is the data set's own."""
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"{where}: each message of its {name} must be an object with role and content")
        role, content = message["role"], "" if message["content"] is None else message["content"]
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"{where}: the role and content of each message of its {name} must be text")  # noqa: TRY004
        # A table gives every message every key, and chat templates ask whether a key is there.
        messages.append({**{key: inner for key, inner in message.items() if inner is not None}, "content": content})
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return tuple(messages)


def _say_reserved(rows: Sequence[Row], source: str) -> None:
    taken = sorted(RESERVED & {name for row in rows for name in row.columns})
    if taken:
        logger.warning(
            "%s: rewards have arguments of their own named %s, so these columns don't reach them; rename them where "
            "a reward needs them",
            source,
            ", ".join(taken),
        )
