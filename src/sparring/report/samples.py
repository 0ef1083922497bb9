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
LONGEST_TEXT, LONGEST_INFO = 4000, 160  # characters
PROSE = 120  # characters from which a text is set as prose, in wide columns
_COLUMNS = (
    *("step", "index", "parent", "role", "prompt", "text", "thought", "finish", "completion_tokens"),
    *("payoff", "parts", "advantage", "trained", "info"),
)
Row = Mapping[str, Any]
_TEXTS = {"text", "query_text", "task", "template"}  # of `info`: shown on their own, or too long beside the rest


@dataclass(frozen=True)
class TurnView:
    """One turn as shown. `parts` are the named parts of its payoff, None where a part could not be scored.

    thought: what the model thought before the text; asked: the query that was read from the text, where that isn't all
    of it; replies: the turns that reply to this one (a grader's).
    """

    role: str
    text: str
    thought: str
    asked: str
    finish: str
    tokens: int | None
    payoff: float | None
    parts: tuple[tuple[str, float | None], ...]
    advantage: float | None
    trained: bool
    info: str
    replies: tuple[TurnView, ...] = ()


@dataclass(frozen=True)
class Thread:
    """A query (None in a game on a data set, which has prompts only) with its first answers.

    info: what is known of the prompt, where there is no query that says it.
    """

    prompt: str
    info: str
    query: TurnView | None
    answers: tuple[TurnView, ...]
    more: int

    @property
    def prose(self) -> bool:
        """Whether its texts are long: set in wide columns."""
        asked = self.prompt if self.query is None else self.query.text
        return any(len(text) > PROSE for text in (asked, *(answer.text for answer in self.answers)))


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
    steps: list[tuple[int, list[Row]]] = []
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


def _read_steps(file: Path) -> list[tuple[int, list[Row]]]:
    schema = pq.read_schema(file)
    missing = {"step", "role", "text"} - set(schema.names)
    if missing:
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    rows = pq.read_table(file, columns=[name for name in _COLUMNS if name in schema.names]).to_pylist()
    steps: dict[int, list[Row]] = {}
    for row in rows:
        steps.setdefault(row["step"], []).append(row)
    return sorted(steps.items())


def _threads(rows: list[Row]) -> tuple[Thread, ...]:
    replies: dict[int, list[Row]] = {}
    for row in rows:
        replies.setdefault(_parent(row), []).append(row)
    roots = replies.pop(-1, [])
    if replies:
        found = [Thread("", "", _view(row), *_answers(replies.get(_index(row), []), replies)) for row in roots]
        answered = [thread for thread in found if thread.answers][:THREADS]
        unanswered = [thread for thread in found if not thread.answers][:1]
        return (*answered, *unanswered)
    by_prompt: dict[Any, list[Row]] = {}
    for row in roots:
        by_prompt.setdefault(row.get("prompt"), []).append(row)
    return tuple(
        Thread(_shown(prompt), _listed(_common(group)), None, *_answers(group, replies))
        for prompt, group in list(by_prompt.items())[:THREADS]
    )


def _parent(row: Row) -> int:
    parent = row.get("parent")
    return -1 if parent is None else parent


def _index(row: Row) -> int:
    # -1 is nobody's parent here: the first turns have been taken out.
    return row.get("index", -1)


def _answers(rows: list[Row], replies: Mapping[int, list[Row]]) -> tuple[tuple[TurnView, ...], int]:
    known = _common(rows)  # of the query or prompt: said there, once
    views = [_view(row, known, tuple(_view(reply) for reply in replies.get(_index(row), []))) for row in rows[:ANSWERS]]
    return tuple(views), max(0, len(rows) - ANSWERS)


def _view(row: Row, known: Mapping[str, str] | None = None, replies: tuple[TurnView, ...] = ()) -> TurnView:
    parts, info = _object(row.get("parts")), _object(row.get("info"))
    asked = _object(info.get("query")).get("text")
    facts = {name: value for name, value in _facts(info) if (known or {}).get(name) != value}
    return TurnView(
        role=_shown(row["role"]),
        text=_shown(row["text"]),
        thought=_shown(row.get("thought")),
        asked="" if asked is None or str(asked).strip() == str(row["text"]).strip() else _shown(asked),
        finish=_shown(row.get("finish")),
        tokens=row.get("completion_tokens"),
        payoff=row.get("payoff"),
        parts=tuple((_shown(name), value if isinstance(value, int | float) else None) for name, value in parts.items()),
        advantage=row.get("advantage"),
        trained=row.get("trained") is not False,
        info=_listed(facts),
        replies=replies,
    )


def _common(rows: list[Row]) -> dict[str, str]:
    """The facts that every row of a group has alike; none of a single row."""
    every = [dict(_facts(_object(row.get("info")))) for row in rows]
    if len(every) < 2:
        return {}
    return {name: value for name, value in every[0].items() if all(facts.get(name) == value for facts in every)}


def _listed(facts: Mapping[str, str]) -> str:
    return _shown(", ".join(f"{name} {value}" for name, value in facts.items()), LONGEST_INFO)


def _facts(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The leaves of what a game noted about a turn, without what is absent, false or empty, and without texts."""
    for name, value in info.items():
        if name == "task" and isinstance(value, Mapping):
            yield "task", str(value.get("name", ""))
        elif isinstance(value, Mapping):
            yield from _facts(value)
        elif name not in _TEXTS and (value or (value == 0 and value is not False)):
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
