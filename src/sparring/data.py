"""Prompt sets: rows from a local file or folder or from the hub, in an order that any step can find again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.data_held import Held
from sparring.data_images import COLUMNS, MARKER, images_of
from sparring.data_records import NAMES, Names, matching, nearest, read_records
from sparring.images import MAX_PIXELS, PictureError, header
from sparring.rewards.base import RESERVED
from sparring.sampling.seeds import generator
from sparring.types import Message

logger = logging.getLogger(__name__)

PROMPT_COLUMNS = ("messages", "prompt", "instruction", "question", "problem", "query")
"""Where a row's prompt is looked for, in this order; an instruction's `input` belongs to it."""

SHOWN = 5
"""Rows with pictures that can't be used which are named one by one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt: its text (or whole chat messages) and the columns that reach the reward by name.

    images: files or encoded bytes, opened when the row is played; those of a data set are read from it then. where: how
    messages call the row.
    """

    query: str
    messages: tuple[Message, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Path | bytes | Held, ...] = ()
    where: str = ""


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
    max_pixels: int = MAX_PIXELS,
    names: Names = NAMES,
) -> PromptSet:
    """A file (.jsonl, .json, .parquet) or a pattern of files (data/*.jsonl), a folder of such files, a folder saved by
    `datasets`, or a hub id (owner/name).

    A prompt is text, or chat messages; an answer that ends the messages is cut off. An instruction is followed by its
    `input`, where that isn't blank (Alpaca's form). The other columns reach the reward by name, but for those whose
    names are the reward's own (`rewards.base.RESERVED`: prompts, completions, queries, answers ...), which are logged
    and reach it under no name.

    Folders and hub ids go through the `datasets` library; code that a data set brings along is never run.

    A row whose prompt holds half a character (a lone surrogate, which no tokenizer reads) is left out, named in the
    log and counted there.

    Rows of a file or folder may name pictures by any path, absolute or with "..": they are the user's own. Rows of the
    hub must hold them as bytes.

    Every picture's header is read: a row whose picture is missing, of no known format or too large is left out, named
    in the log and counted there. A picture that breaks off later is found when its row is played.

    Args:
        split: of a folder or a hub data set; "train[:1000]" is its first thousand rows.
        subset: the configuration of a hub data set that has several.
        column: the prompt's, where it is none of PROMPT_COLUMNS or another is meant.
        revision: branch, tag or commit of a hub data set.
        max_pixels: of a picture; rows with larger ones are left out.
        names: how errors call these settings.

    Raises:
        ValueError: nothing there, an unknown split, subset or column, a damaged file, or a row (named by its number)
            that is no object or whose prompt is missing or neither text nor messages.
    """
    records = read_records(source, split=split, subset=subset, revision=revision, names=names)
    path = Path(source)
    folder = images_folder(source)
    rows = [_row(record, column, f"{source}, row {number}", names, folder) for number, record in enumerate(records, 1)]
    _say_reserved(rows, source)
    rows = _with_whole_text(rows, source)
    return PromptSet(_with_pictures(rows, source, max_pixels), path.name if path.exists() else source)


def images_folder(source: str) -> Path | None:
    """The folder that relative paths of a data set's images count from; None where it is on the hub."""
    path = Path(source)
    return path if path.is_dir() else path.parent if path.is_file() or matching(source) else None


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
            f"{names.column}: {where} has no column {column!r}{nearest(column, list(record))}; "
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


def _with_whole_text(rows: Sequence[Row], source: str) -> list[Row]:
    """The rows whose prompts can be encoded."""
    halved = [number for number, row in enumerate(rows, 1) if not _encodes(row)]
    if not halved:
        return list(rows)
    if len(halved) == len(rows):
        raise ValueError(f"{source}: the prompts of all its {len(rows)} rows hold half a character (a lone surrogate)")
    for number in halved[:SHOWN]:
        logger.warning("left out: %s, row %d: its prompt holds half a character (a lone surrogate)", source, number)
    logger.warning(
        "%s: %d of %d rows are left out, as their prompts hold half a character", source, len(halved), len(rows)
    )
    left_out = set(halved)
    return [row for number, row in enumerate(rows, 1) if number not in left_out]


def _encodes(row: Row) -> bool:
    try:
        for text in (row.query, *(str(message["content"]) for message in row.messages or ())):
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_pictures(rows: Sequence[Row], source: str, max_pixels: int) -> list[Row]:
    """The rows whose pictures can be used, as far as their headers tell."""
    kept: list[Row] = []
    refused: list[str] = []
    for row in rows:
        try:
            for image in row.images:
                header(
                    image, name=f"{row.where}: its image" if isinstance(image, bytes) else None, max_pixels=max_pixels
                )
        except PictureError as error:
            refused.append(str(error) if str(error).startswith(row.where) else f"{row.where}: {error}")
        else:
            kept.append(row)
    if not refused:
        return kept
    if not kept:
        raise ValueError(f"{source}: none of its {len(rows)} rows has pictures that can be used ({refused[0]})")
    for reason in refused[:SHOWN]:
        logger.warning("left out: %s", reason)
    logger.warning(
        "%s: %d of %d rows are left out, as their pictures can't be used; %d are left",
        source,
        len(refused),
        len(rows),
        len(kept),
    )
    return kept


def _say_reserved(rows: Sequence[Row], source: str) -> None:
    taken = sorted(RESERVED & {name for row in rows for name in row.columns})
    if taken:
        logger.warning(
            "%s: rewards have arguments of their own named %s, so these columns don't reach them; rename them where "
            "a reward needs them",
            source,
            ", ".join(taken),
        )
