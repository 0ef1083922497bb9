"""All turns of several runs as columns for a page: the numbers to filter by at once, the texts in blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparring.advantages import is_dead
from sparring.report.packing import Blocks, number, packed
from sparring.report.pictures import Pictures

LARGEST = 64_000_000
"""Bytes of texts in a page, compressed and in base64; beyond it threads are left out."""

LONGEST_FACT = 160
REFERENCES = ("answer", "reference", "reference_answer", "target", "label", "solution", "output", "tests")
"""Columns of a data set that hold what an answer is compared with, in the order shown."""

_COLUMNS = (
    *("step", "index", "parent", "role", "model", "prompt", "text", "thought", "finish", "completion_tokens"),
    *("payoff", "parts", "advantage", "trained", "info", "images"),
)
_SAID_ELSEWHERE = {"query", "query_text", "conversational", "task"}
_OF_A_QUERY = {"text", "problem", "reserved", "columns"}
Row = Mapping[str, Any]


@dataclass
class Thread:
    """A query with all that replies to it, or (without a query) the answers to one prompt of a data set.

    turns: (turn, the place of the one it replies to among them or −1), a query first; about: what is known of the
    query or prompt; more: longer texts of its data set by column, such as the reference answer. pictures: the names of
    those that its prompts show; with them, asked: the question without the instructions around it.
    """

    step: int
    prompt: str
    turns: list[tuple[Row, int]]
    query: Mapping[str, Any] | None
    about: dict[str, str]
    more: dict[str, str]
    pictures: list[str] = field(default_factory=list[str])
    asked: str = ""

    @property
    def answers(self) -> list[Row]:
        """The G answers."""
        above = -1 if self.query is None else 0
        return [row for row, up in self.turns if up == above]

    @property
    def problem(self) -> str:
        """Why a query was not put to the Solver; empty where it was."""
        query = self.query or {}
        return str(query["problem"]) if query.get("problem") else "reserved" if query.get("reserved") else ""

    @property
    def dead(self) -> bool:
        """Whether all answers were paid the same, so that nothing is learned from them."""
        paid = [row["payoff"] for row in self.answers if number(row.get("payoff")) is not None]
        return bool(paid) and is_dead(paid)


@dataclass
class Turns:
    """All threads of several runs, as the page takes them.

    head: what `browser.js` filters and sorts by; blocks: texts; shown: each thread's pictures, by their places in
    `pictures`; left_out: threads that there was no room for.
    """

    names: Sequence[str]
    blocks: Blocks = field(
        default_factory=lambda: Blocks("prompt", "asked", "about", "more", "named", "text", "thought", "facts")
    )
    threads: dict[str, list[Any]] = field(
        default_factory=lambda: {k: [] for k in ("run", "step", "first", "query", "problem", "dead", "more")}
    )
    turns: dict[str, list[Any]] = field(
        default_factory=lambda: {
            k: [] for k in ("role", "up", "finish", "tokens", "payoff", "advantage", "trained", "frozen")
        }
    )
    parts: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    roles: dict[str, int] = field(default_factory=dict[str, int])
    finishes: dict[str, int] = field(default_factory=dict[str, int])
    problems: dict[str, int] = field(default_factory=lambda: {"": 0})
    pictures: Pictures = field(default_factory=lambda: Pictures(several=False))
    shown: list[list[int]] = field(default_factory=list[list[int]])
    left_out: int = 0
    notes: list[str] = field(default_factory=list[str])

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last step."""
        return min(self.threads["step"]), max(self.threads["step"])

    @property
    def part_names(self) -> list[str]:
        """The named parts of payoffs, the game's own first."""
        return sorted(self.parts, key=lambda name: name not in ("value", "reward"))

    def __len__(self) -> int:
        return len(self.threads["step"])

    def head(self) -> str:
        """Everything but the texts, packed."""
        return packed(
            {
                "runs": list(self.names),
                "roles": list(self.roles),
                "finishes": list(self.finishes),
                "problems": list(self.problems),
                "references": REFERENCES,
                "starts": self.blocks.starts,
                "threads": self.threads,
                "turns": self.turns,
                "parts": {name: self.parts[name] for name in self.part_names},
                **({"shown": self.shown, "pictures": self.pictures.columns()} if self.pictures else {}),
            }
        )

    def add(self, run: int, folder: Path, thread: Thread) -> None:
        """One more thread, of a run that lies in a folder."""
        self.blocks.begin()
        self.shown.append(self.pictures.add(self.names[run], folder, thread.pictures))
        row = {
            "run": run,
            "step": thread.step,
            "first": len(self.turns["role"]),
            "query": int(thread.query is not None),
            "problem": self.problems.setdefault(thread.problem, len(self.problems)),
            "dead": int(thread.dead),
            "more": len(thread.more),
        }
        for name, value in row.items():
            self.threads[name].append(value)
        asked = thread.asked if thread.query is None else str(thread.query.get("text") or "")
        said = str(thread.turns[0][0]["text"])
        self.blocks.add("prompt", thread.prompt)
        self.blocks.add("asked", "" if asked.strip() == said.strip() else asked)
        self.blocks.add("about", listed(thread.about))
        self.blocks.add("named", *thread.more)
        self.blocks.add("more", *thread.more.values())
        for turn, up in thread.turns:
            self._add_turn(turn, up, thread)

    def _add_turn(self, turn: Row, up: int, thread: Thread) -> None:
        row = {
            "role": self.roles.setdefault(str(turn["role"]), len(self.roles)),
            "up": up,
            "finish": self.finishes.setdefault(str(turn.get("finish") or ""), len(self.finishes)),
            "tokens": number(turn.get("completion_tokens")),
            "payoff": number(turn.get("payoff")),
            "advantage": number(turn.get("advantage")),
            "trained": int(turn.get("trained") is not False),
            "frozen": int(turn.get("model") == "reference"),
        }
        place = len(self.turns["role"])
        for name, value in row.items():
            self.turns[name].append(value)
        parts = turn["parts"]
        for name in [*self.parts, *(name for name in parts if name not in self.parts)]:
            # false: there is no such part; null: it isn't known.
            if name not in self.parts:
                self.parts[name] = [False] * place
            self.parts[name].append(number(parts[name]) if name in parts else False)
        known = {**thread.about, **thread.more}
        facts = {name: text for name, text in facts_of(turn["info"]) if known.get(name) != text}
        self.blocks.add("text", str(turn["text"]))
        self.blocks.add("thought", str(turn.get("thought") or ""))
        self.blocks.add("facts", listed(facts))


def read_turns(runs: Sequence[tuple[str, Path]], largest: int = LARGEST) -> Turns:
    """Every turn of these runs (name, folder), in the order of play.

    Where the texts would be larger than `largest`, whole threads are left out, evenly over all steps. A file that can't
    be read is one of the notes.
    """
    whole = _collected(runs, 1.0, largest)
    if whole.blocks.size <= largest:
        return whole
    return _collected(runs, 0.97 * largest / whole.blocks.size, largest)


def _collected(runs: Sequence[tuple[str, Path]], share: float, largest: int) -> Turns:
    found = Turns([name for name, _ in runs], pictures=Pictures(several=len(runs) > 1))
    met = 0
    for run, (name, folder) in enumerate(runs):
        for file in sorted((folder / "turns").glob("step-*.parquet")):
            try:
                threads = list(_threads_of(file))
            except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                found.notes.append(f"{name}: turns/{file.name} could not be read: {first}")
                continue
            for thread in threads:
                met += 1
                if int(met * share) > int((met - 1) * share):
                    found.add(run, folder, thread)
            if found.blocks.size > largest:
                found.blocks.packed.clear()  # too many: only their size is asked for
    found.blocks.close()
    found.left_out = met - len(found)
    return found


def _threads_of(file: Path) -> Iterator[Thread]:
    # Opened here: pyarrow can't encode every path where the locale is not UTF-8.
    with file.open("rb") as opened, pq.ParquetFile(opened) as parquet:
        names = parquet.schema_arrow.names
        missing = {"step", "role", "text"} - set(names)
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        table = parquet.read(columns=[name for name in _COLUMNS if name in names])
    prompts = table.column("prompt") if "prompt" in names else None
    rows = table.select([name for name in table.column_names if name != "prompt"]).to_pylist()
    for place, row in enumerate(rows):
        if prompts is not None and _is_first(row):  # a reply's prompt repeats, at length, what it replies to
            row["prompt"] = prompts[place].as_py()
        row["parts"], row["info"] = object_of(row.get("parts")), noted(row)
    for _, group in groupby(sorted(rows, key=lambda row: row["step"]), key=lambda row: row["step"]):
        yield from threads_of(list(group))


def threads_of(rows: list[Row]) -> Iterator[Thread]:
    replies: dict[int, list[Row]] = {}
    roots: list[Row] = []
    for row in rows:
        if _is_first(row):
            roots.append(row)
        else:
            replies.setdefault(row["parent"], []).append(row)

    queries = {place for place, row in enumerate(roots) if _is_query(row, replies)}
    # Answers to one prompt of a data set were taken one after the other; a query stands alone.
    kinds = [place if place in queries else (row.get("prompt"), images_of(row)) for place, row in enumerate(roots)]
    for _, places in groupby(range(len(roots)), key=kinds.__getitem__):
        at = list(places)
        yield _thread([roots[place] for place in at], replies, queried=at[0] in queries)
    for orphans in list(replies.values()):  # of turns that are not there
        yield _thread(orphans, {}, queried=False)


def _thread(roots: list[Row], replies: dict[int, list[Row]], queried: bool) -> Thread:
    """A thread with what replies to these; it is taken out of `replies`, so that nothing is there twice."""
    turns: list[tuple[Row, int]] = [(row, -1) for row in roots]
    for place, (row, _) in enumerate(turns):  # grows: replies, and replies to these
        turns += [(reply, place) for reply in replies.pop(row.get("index", -1), [])]
    asked = roots[0]["info"] if queried else {}
    answers = [row for row, up in turns if up == (0 if queried else -1)]
    about, more = _known(asked, [row["info"] for row in answers])
    query = object_of(asked.get("query")) if queried else None
    pictures = list(dict.fromkeys(name for row, _ in turns for name in images_of(row)))
    question = "" if queried or not pictures else str(roots[0]["info"].get("query_text") or "")
    return Thread(roots[0]["step"], str(roots[0].get("prompt") or ""), turns, query, about, more, pictures, question)


def images_of(row: Row) -> tuple[str, ...]:
    """The names of the pictures that a turn's prompt shows."""
    return tuple(map(str, row.get("images") or ()))


def noted(row: Row) -> Mapping[str, Any]:
    """What a game noted about a turn, but for what stands in a perceiver's words and prompt already."""
    info = object_of(row.get("info"))
    if "images" not in row:
        return info
    told = {"pictures", "well_formed", *(["description"] if str(info.get("description")) in str(row["text"]) else [])}
    return {name: value for name, value in info.items() if name not in told}


def _is_first(row: Row) -> bool:
    return row.get("parent") in (None, -1)


def _is_query(row: Row, replies: Mapping[int, list[Row]]) -> bool:
    return "query" in row["info"] or ("query_text" not in row["info"] and row.get("index") in replies)


def _known(asked: Row, answers: Sequence[Row]) -> tuple[dict[str, str], dict[str, str]]:
    """What is known of a query or prompt: short facts, and longer texts of its data set, the reference first."""
    query = object_of(asked.get("query"))
    shared = answers[0] if answers else object_of(query.get("columns"))
    columns = {name: value for name, value in shared.items() if all(row.get(name) == value for row in answers)}
    facts = dict(facts_of(asked)) | dict(facts_of({k: v for k, v in query.items() if k not in _OF_A_QUERY}))
    facts |= dict(facts_of(columns))
    task = object_of(asked.get("task")).get("name")
    if task and task != facts.get("family"):
        facts = {"task": str(task), **facts}
    long = {name for name, text in facts.items() if len(text) > LONGEST_FACT or "\n" in text}
    references = [name for name in REFERENCES if name in facts]
    more = {name: facts[name] for name in [*references, *(name for name in facts if name in long - {*references})]}
    return {name: text for name, text in facts.items() if name not in more}, more


def facts_of(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a game noted about a turn, as text, without what is absent, false or empty."""
    for name, value in info.items():
        if name not in _SAID_ELSEWHERE and (value or (value == 0 and value is not False)):
            yield str(name), f"{value:g}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def listed(facts: Mapping[str, str]) -> str:
    """Facts in a line."""
    texts = (
        f"{name} {text if len(text) <= LONGEST_FACT else text[:LONGEST_FACT] + ' …'}" for name, text in facts.items()
    )
    return ", ".join(texts)


def object_of(text: Any) -> Mapping[str, Any]:
    """A JSON object; an empty one for anything else."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, Mapping) else {}
