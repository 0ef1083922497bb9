"""A few sample turns of a run: queries with their answers, early, in the middle and late."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

THREADS, ANSWERS = 2, 4  # shown of a step; of a thread
LONGEST_TEXT, LONGEST_INFO = 1200, 160  # characters
_COLUMNS = (
    *("step", "index", "parent", "role", "prompt", "text", "finish", "completion_tokens"),
    *("payoff", "parts", "advantage", "trained", "info"),
)


@dataclass(frozen=True)
class TurnView:
    """One turn as shown. `parts` are the named parts of its payoff, None where a part could not be scored."""

    role: str
    text: str
    finish: str
    tokens: int | None
    payoff: float | None
    parts: tuple[tuple[str, float | None], ...]
    advantage: float | None
    trained: bool
    info: str


@dataclass(frozen=True)
class Thread:
    """A query (None in a game on a data set, which has prompts only) with its first answers."""

    prompt: str
    query: TurnView | None
    answers: tuple[TurnView, ...]
    more: int


@dataclass(frozen=True)
class Moment:
    """Some threads of one step; `when` is early, middle or late."""

    when: str
    step: int
    threads: tuple[Thread, ...]


def sample_moments(folder: Path) -> tuple[tuple[Moment, ...], list[str]]:
    """The first, a middle and the last recorded step's first threads, and a sentence per damaged file.

    Threads come in the order of play, never chosen by payoff: a report must not pick its best samples.
    """
    files = sorted(folder.glob("step-*.parquet"))
    notes = [] if files else ["No turns have been recorded (yet)."]
    wanted = [files[i] for i in sorted({0, len(files) // 2, len(files) - 1})] if files else []
    steps: list[tuple[int, list[dict[str, Any]]]] = []
    for file in wanted:
        try:
            steps += _read_steps(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            notes.append(f"turns/{file.name} could not be read: {str(error).splitlines()[0]}")
    if not steps:
        return (), notes
    chosen = dict(zip(sorted({0, len(steps) // 2, len(steps) - 1}), ("early", "middle", "late"), strict=False))
    if len(chosen) == 2:
        chosen[len(steps) - 1] = "late"
    return tuple(Moment(when, steps[i][0], _threads(steps[i][1])) for i, when in chosen.items()), notes


def _read_steps(file: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    schema = pq.read_schema(file)
    missing = {"step", "role", "text"} - set(schema.names)
    if missing:
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    rows = pq.read_table(file, columns=[name for name in _COLUMNS if name in schema.names]).to_pylist()
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        steps.setdefault(row["step"], []).append(row)
    return sorted(steps.items())


def _threads(rows: list[dict[str, Any]]) -> tuple[Thread, ...]:
    replies: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        replies.setdefault(_parent(row), []).append(row)
    roots = replies.pop(-1, [])
    if replies:
        found = [
            Thread(_shown(row.get("prompt")), _view(row), *_answers(replies.get(row.get("index", -1), [])))
            for row in roots
        ]
        answered = [thread for thread in found if thread.answers][:THREADS]
        unanswered = [thread for thread in found if not thread.answers][:1]
        return (*answered, *unanswered)
    by_prompt: dict[Any, list[dict[str, Any]]] = {}
    for row in roots:
        by_prompt.setdefault(row.get("prompt"), []).append(row)
    return tuple(Thread(_shown(prompt), None, *_answers(group)) for prompt, group in by_prompt.items())[:THREADS]


def _parent(row: dict[str, Any]) -> int:
    parent = row.get("parent")
    return -1 if parent is None else parent


def _answers(rows: list[dict[str, Any]]) -> tuple[tuple[TurnView, ...], int]:
    return tuple(_view(row) for row in rows[:ANSWERS]), max(0, len(rows) - ANSWERS)


def _view(row: dict[str, Any]) -> TurnView:
    parts = _object(row.get("parts"))
    facts = dict(_facts(_object(row.get("info"))))
    info = ", ".join(f"{name} {value}" for name, value in facts.items() if value != row["text"])
    return TurnView(
        role=_shown(row["role"]),
        text=_shown(row["text"]),
        finish=_shown(row.get("finish")),
        tokens=row.get("completion_tokens"),
        payoff=row.get("payoff"),
        parts=tuple((_shown(name), value if isinstance(value, int | float) else None) for name, value in parts.items()),
        advantage=row.get("advantage"),
        trained=row.get("trained") is not False,
        info=_shown(info, LONGEST_INFO),
    )


def _facts(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The leaves of what a game noted about a turn, without what is absent, false or empty."""
    for name, value in info.items():
        if isinstance(value, Mapping):
            yield from _facts(value)
        elif value or (value == 0 and value is not False):
            yield name, str(value)


def _object(text: Any) -> Mapping[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, Mapping) else {}


def _shown(value: Any, longest: int = LONGEST_TEXT) -> str:
    """Text for a page: cut, and control and surrogate characters made visible."""
    text = "" if value is None else str(value)
    cut = text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest} more characters)"
    return "".join(
        char
        if char in "\n\t" or ((char.isprintable() or char.isspace()) and ord(char) >= 32)
        else f"\\x{ord(char):02x}"
        for char in cut
    )
