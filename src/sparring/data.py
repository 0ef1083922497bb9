"""Prompt sets: rows from a local JSON, JSONL or Parquet file, in an order that any step can find again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.sampling.seeds import generator
from sparring.types import Message


@dataclass(frozen=True)
class Row:
    """One prompt: its text (or whole chat messages) and the columns that reach the reward by name."""

    query: str
    messages: tuple[Message, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


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

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, step: int, n: int, seed: int) -> list[Row]:
        """The n rows of a step (from 1): every row once an epoch, in an order drawn from (seed, epoch)."""
        first = (step - 1) * n
        return [self._row(index, seed) for index in range(first, first + n)]

    def _row(self, index: int, seed: int) -> Row:
        epoch, place = divmod(index, len(self.rows))
        if not hasattr(self, "_order") or self._order[0] != (seed, epoch):
            order = generator(seed, epoch, f"epoch/{self.name}").permutation(len(self.rows))
            self._order = ((seed, epoch), order)
        return self.rows[int(self._order[1][place])]


def load_prompts(path: Path) -> PromptSet:
    """Read a prompt file: columns `prompt` (text or messages), chat `messages`, or Alpaca's `instruction` and `input`.

    Raises:
        ValueError: no such file, an unknown ending, a damaged file, or a row (named by its number) that is no
            object, or whose prompt is missing or neither text nor messages.
    """
    if not path.is_file():
        raise ValueError(f"there is no prompt file {path}")
    records = _read(path)
    return PromptSet([_row(record, path, number) for number, record in enumerate(records, 1)], path.name)


def _read(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            return parquet.read_table(path).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is not Parquet: {error}") from error
    text = path.read_bytes().decode("utf-8")
    if path.suffix == ".json":
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(records, list):
            raise ValueError(f"{path}: expected a JSON list of rows")
        return records
    if path.suffix == ".jsonl":
        # Not splitlines(): JSON allows U+2028 and other line ends inside a string.
        return [_json_line(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    raise ValueError(f"{path}: a prompt file ends in .jsonl, .json or .parquet")


def _json_line(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from error


def _row(record: Any, path: Path, number: int) -> Row:
    if not isinstance(record, dict):
        raise ValueError(f"{path}, row {number} is no object with columns")  # noqa: TRY004 - a user's file
    for name in ("messages", "prompt"):
        if isinstance(record.get(name), list):
            return _conversation(record, name, path, number)
    if "prompt" in record:
        prompt = "" if record["prompt"] is None else record["prompt"]  # an empty row: counted and skipped
        if not isinstance(prompt, str):
            given = type(prompt).__name__
            raise ValueError(f"{path}, row {number}: its prompt must be text or a list of messages, not {given}")
        return Row(prompt, None, {k: v for k, v in record.items() if k != "prompt"})
    if "instruction" in record:
        given = str(record.get("input") or "").strip()
        text = str(record["instruction"] or "")
        columns = {name: value for name, value in record.items() if name not in {"instruction", "input"}}
        return Row(f"{text}\n\n{given}" if given else text, None, columns)
    raise ValueError(
        f"{path}, row {number} has none of the columns prompt, messages, instruction; it has: {', '.join(record)}"
    )


def _conversation(record: Mapping[str, Any], name: str, path: Path, number: int) -> Row:
    """A row from its column of messages: `messages`, or the `prompt` of TRL's conversational data sets."""
    messages = tuple(record[name])
    if not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages):
        raise ValueError(f"{path}, row {number}: each of its messages must be an object with role and content")
    # The last assistant message is the answer a data set carries; the prompt ends before it.
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    columns = {column: value for column, value in record.items() if column != name}
    return Row(str(messages[-1]["content"]) if messages else "", messages, columns)
