"""Turns of a run found by step, role, payoff or text (`sparring samples`): queries with their G answers.

Only the row groups whose steps are asked for are read, file by file; in the order of play reading stops as soon as
enough is found.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparring.gallery import kept
from sparring.report.packing import number
from sparring.report.turns import Thread, facts_of, noted, object_of, threads_of
from sparring.runfolder import RunFolder

Row = Mapping[str, Any]

_COLUMNS = (
    *("step", "index", "parent", "role", "model", "prompt", "text", "thought", "finish", "completion_tokens"),
    *("payoff", "parts", "advantage", "trained", "info", "images"),
)
_NEEDED = {"step", "role", "text"}


@dataclass(frozen=True)
class Wanted:
    """Which turns are asked for; None: any. One and the same turn must meet all of it.

    steps: first and last; role; low, high: bounds of the payoff; text: in the turn's words or thought, or in the prompt
    that a data set gave, in upper or lower case.
    """

    steps: tuple[int, int] | None = None
    role: str | None = None
    low: float | None = None
    high: float | None = None
    text: str | None = None

    @property
    def picks(self) -> bool:
        """Whether turns are asked for, and not only steps."""
        return self != Wanted(self.steps)

    def includes(self, low: int, high: int) -> bool:
        """Whether some of the steps from low to high are asked for."""
        return self.steps is None or (self.steps[0] <= high and low <= self.steps[1])

    def matches(self, turn: Row, prompt: str) -> bool:
        """Whether a turn is asked for."""
        if self.role is not None and turn["role"] != self.role:
            return False
        said = "\n".join(str(text or "") for text in (turn["text"], turn.get("thought"), prompt))
        if self.text is not None and self.text.casefold() not in said.casefold():
            return False
        payoff = number(turn.get("payoff"))
        if self.low is None and self.high is None:
            return True
        return (
            payoff is not None
            and (self.low is None or self.low <= payoff)
            and (self.high is None or payoff <= self.high)
        )

    def among(self, thread: Thread) -> list[Row]:
        """The turns of a thread that are asked for."""
        prompt = "" if thread.query is not None else thread.prompt
        return [turn for turn, _ in thread.turns if self.matches(turn, prompt)]


@dataclass(frozen=True)
class Sample:
    """One turn; texts are whole and as written.

    Attributes:
        thought: what the model thought before the text.
        asked: the query that was read from the text, where that isn't all of it.
        parts: of its payoff, None where a part could not be scored.
        facts: what the game noted about it and not about the others.
        wanted: it is what was asked for; of none where only steps were.
        replies: the turns that reply to it (a grader's).
    """

    role: str
    model: str
    text: str
    thought: str
    asked: str
    finish: str
    tokens: int | None
    payoff: float | None
    parts: Mapping[str, float | None]
    advantage: float | None
    trained: bool
    facts: Mapping[str, str]
    wanted: bool
    replies: tuple[Sample, ...]


@dataclass(frozen=True)
class Exchange:
    """A query with its G answers; where a data set asks there is no query, only its prompt.

    Attributes:
        problem: why a query was not put to the Solver.
        about: what is known of the query or prompt.
        data: longer texts of the data set's row by column, such as the reference answer, that one first.
        asked: the question of a prompt with pictures, without the instructions around it.
        pictures: those that the prompt shows: the file of each; the name alone of one that the run did not keep.
    """

    step: int
    prompt: str
    problem: str
    about: Mapping[str, str]
    data: Mapping[str, str]
    query: Sample | None
    answers: tuple[Sample, ...]
    asked: str = ""
    pictures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain objects, for a line of JSON."""
        return asdict(self)


@dataclass
class Found:
    """What a search found, and a sentence for each damaged file."""

    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    notes: list[str] = field(default_factory=list[str])


def find(run: Path, wanted: Wanted, n: int, sort: str = "step") -> Found:
    """The first n queries (0: all) that have a turn that is asked for.

    Args:
        sort: step: in the order of play; payoff: by the best paid of the turns asked for; spread: by the difference
            between the best and the worst paid answer. Highest first.

    Raises:
        ValueError: the run has no turns, none of these steps, or no such role.
    """
    search = _Search(run, wanted)
    key = _SORTS[sort]
    if key is None:
        chosen = list(islice(search.threads(), n or None))
    else:
        ranked = ((key(thread, wanted), -number, thread) for number, thread in enumerate(search.threads()))
        chosen = [thread for *_, thread in (heapq.nlargest(n, ranked) if n else sorted(ranked, reverse=True))]
    if not chosen:
        search.explain()
    return Found([_exchange(run, thread, wanted) for thread in chosen], search.notes)


def moments(run: Path, n: int) -> Found:
    """The first n queries (0: all) of an early, a middle and a late step.

    They come in the order of play, those with answers first; none is chosen by its payoff.

    Raises:
        ValueError: the run has no turns that can be read.
    """
    search = _Search(run, Wanted())
    files = {step: file for file in _spread(search.files) for step in search.steps_of(file)}
    if not files:
        search.explain()
    found = Found(notes=search.notes)
    for step in _spread(sorted(files)):
        inner = _Search(run, Wanted(steps=(step, step)), [files[step]])
        threads = sorted(inner.threads(), key=lambda thread: not thread.answers)
        found.exchanges += [_exchange(run, thread, Wanted()) for thread in threads[: n or None]]
    return found


def _spread(items: list[Any]) -> list[Any]:
    """The first, a middle and the last."""
    return [items[at] for at in sorted({0, len(items) // 2, len(items) - 1})] if items else []


def _best(thread: Thread, wanted: Wanted) -> float:
    return max(_payoffs(wanted.among(thread)), default=-inf)


def _difference(thread: Thread, wanted: Wanted) -> float:
    paid = _payoffs(thread.answers)
    return max(paid) - min(paid) if paid else -inf


def _payoffs(turns: Iterable[Row]) -> list[float]:
    return [payoff for turn in turns if (payoff := number(turn.get("payoff"))) is not None]


_SORTS: Mapping[str, Callable[[Thread, Wanted], float] | None] = {
    "step": None,
    "payoff": _best,
    "spread": _difference,
}
SORTS = tuple(_SORTS)


class _Search:
    """Goes through a run's turns and remembers what it saw, to say why nothing was found."""

    def __init__(self, run: Path, wanted: Wanted, files: list[Path] | None = None) -> None:
        self.wanted = wanted
        self.notes: list[str] = []
        # Names have six digits and more.
        every = sorted((run / "turns").glob("step-*.parquet"), key=lambda file: (len(file.name), file.name))
        self.files = every if files is None else files
        self._bounds: list[tuple[int, int]] = []
        self._roles: dict[str, None] = {}
        if not run.is_dir():
            raise ValueError(f"{run} is no run folder: there is no such folder")
        if not self.files:
            raise ValueError(
                f"{run} holds no turns (yet): a run saves them every checkpoint.turns_every steps; 0: never"
            )

    def threads(self) -> Iterator[Thread]:
        """The threads with a turn that is asked for, in the order of play."""
        for file in self.files:
            try:
                steps = [(rows, list(threads_of(rows))) for rows in self._steps(file)]
            except (TypeError, ValueError, LookupError) as error:  # values of the wrong kind
                self._note(file, error)
                continue
            for rows, threads in steps:
                self._roles |= dict.fromkeys(str(row["role"]) for row in rows)
                yield from (thread for thread in threads if self.wanted.among(thread))

    def steps_of(self, file: Path) -> list[int]:
        """The steps that a file holds."""
        table = self._opened(file, lambda parquet: parquet.read(columns=["step"]))
        return [] if table is None else sorted(set(table["step"].to_pylist()))

    def explain(self) -> None:
        """Raise where nothing was found because nothing could be read, or there is no such step or role."""
        if not self._bounds and self.notes:
            raise ValueError(f"no turns could be read: {self.notes[0]}")
        wanted = self.wanted
        if wanted.steps is not None and not self._roles:
            first, last = min(low for low, _ in self._bounds), max(high for _, high in self._bounds)
            asked = "-".join(map(str, dict.fromkeys(wanted.steps)))
            raise ValueError(f"--step {asked}: no turns were saved there; those saved are of steps {first} to {last}")
        if wanted.role is not None and wanted.role not in self._roles:
            raise ValueError(f"--role {wanted.role}: no turn has this role; the roles are {', '.join(self._roles)}")

    def _steps(self, file: Path) -> list[list[Row]]:
        """The rows of the steps that are asked for, step by step."""
        table = self._opened(file, self._wanted_rows)
        steps: dict[int, list[Row]] = {}
        for row in [] if table is None else table.to_pylist():
            if self.wanted.includes(row["step"], row["step"]):
                parsed = {"parts": object_of(row.get("parts")), "info": noted(row)}
                steps.setdefault(row["step"], []).append({**row, **parsed})
        return [rows for _, rows in sorted(steps.items())]

    def _wanted_rows(self, parquet: pq.ParquetFile) -> pa.Table:
        names = parquet.schema_arrow.names
        if missing := _NEEDED - set(names):
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        groups = []
        for group in range(parquet.num_row_groups):
            low, high = _bounds(parquet, group)
            self._bounds.append((low, high))
            if self.wanted.includes(low, high):
                groups.append(group)
        return parquet.read_row_groups(groups, columns=[name for name in _COLUMNS if name in names])

    def _opened(self, file: Path, read: Callable[[pq.ParquetFile], pa.Table]) -> pa.Table | None:
        try:
            # Opened here: pyarrow can't encode every path where the locale is not UTF-8.
            with file.open("rb") as opened, pq.ParquetFile(opened) as parquet:
                return read(parquet)
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            self._note(file, error)
            return None

    def _note(self, file: Path, error: Exception) -> None:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        self.notes.append(f"turns/{file.name} could not be read: {first}")


def _bounds(parquet: pq.ParquetFile, group: int) -> tuple[int, int]:
    """The first and the last step of a row group, from the file's statistics where it has some."""
    column = parquet.schema_arrow.names.index("step")
    statistics = parquet.metadata.row_group(group).column(column).statistics
    if statistics is not None and statistics.has_min_max:
        return statistics.min, statistics.max
    steps = parquet.read_row_group(group, columns=["step"])["step"].to_pylist()
    return min(steps), max(steps)


def _exchange(run: Path, thread: Thread, wanted: Wanted) -> Exchange:
    known = {**thread.about, **thread.more}
    marked = [id(turn) for turn in wanted.among(thread)] if wanted.picks else []

    def sample(place: int) -> Sample:
        turn = thread.turns[place][0]
        replies = (inner for inner, (_, up) in enumerate(thread.turns) if up == place)
        queried = thread.query is not None and place == 0
        facts = {name: text for name, text in facts_of(turn["info"]) if known.get(name) != text}
        return Sample(
            role=str(turn["role"]),
            model=str(turn.get("model") or ""),
            text=str(turn["text"]),
            thought=str(turn.get("thought") or ""),
            asked=_asked(thread) if queried else "",
            finish=str(turn.get("finish") or ""),
            tokens=turn.get("completion_tokens"),
            payoff=number(turn.get("payoff")),
            parts={name: number(value) for name, value in turn["parts"].items()},
            advantage=number(turn.get("advantage")),
            trained=turn.get("trained") is not False,
            facts=facts,
            wanted=id(turn) in marked,
            replies=() if queried else tuple(map(sample, replies)),
        )

    first = -1 if thread.query is None else 0
    return Exchange(
        step=thread.step,
        prompt=thread.prompt,
        problem=thread.problem,
        about=thread.about,
        data=thread.more,
        query=None if thread.query is None else sample(0),
        answers=tuple(sample(place) for place, (_, up) in enumerate(thread.turns) if up == first),
        asked=thread.asked,
        pictures=tuple(str(kept(RunFolder(run).pictures, name) or name) for name in thread.pictures),
    )


def _asked(thread: Thread) -> str:
    asked = str((thread.query or {}).get("text") or "")
    return "" if asked.strip() == str(thread.turns[0][0]["text"]).strip() else asked
