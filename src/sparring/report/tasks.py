"""The curriculum task by task, from a run's turns: what each task's queries were worth, and how hard they were."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sparring.report.numbers import is_number

COLUMNS = ("step", "index", "parent", "model", "payoff", "parts", "info")
Row = Mapping[str, Any]


@dataclass
class Tally:
    """One task's queries of one step."""

    queries: int = 0
    valid: int = 0
    levels: list[float] = field(default_factory=list[float])
    rewards: list[float] = field(default_factory=list[float])

    def figures(self, task: str) -> dict[str, float]:
        """valid/<task>, level/<task> and V/<task>; what can't be told is left out."""
        found = {f"valid/{task}": self.valid / self.queries}
        if self.levels:
            found[f"level/{task}"] = sum(self.levels) / len(self.levels)
        if self.rewards:
            found[f"V/{task}"] = sum(self.rewards) / len(self.rewards)
        return {f"tasks/{name}": value for name, value in found.items()}


def by_task(path: Path) -> dict[int, dict[str, float]]:
    """Step → figures, of the steps whose turns were kept; {} where all queries are of one task, or given.

    The policy's own queries count. A file that can't be read counts as not kept: the sample browser says which.
    """
    tallies: dict[int, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    for file in sorted((path / "turns").glob("*.parquet")):
        try:
            table = pq.ParquetFile(file).read(columns=list(COLUMNS))
            _count(table.to_pylist(), tallies)
        except (OSError, pa.ArrowException, LookupError, TypeError, ValueError, RecursionError):
            continue
    if len({task for tasks in tallies.values() for task in tasks}) < 2:
        return {}
    return {
        step: {name: value for task, tally in tasks.items() for name, value in tally.figures(task).items()}
        for step, tasks in tallies.items()
    }


def _count(rows: list[Row], tallies: dict[int, dict[str, Tally]]) -> None:
    asked: dict[tuple[int, int], Tally] = {}
    for row in rows:
        for task, query in _query(row):
            tally = asked[row["step"], row["index"]] = tallies[row["step"]][task]
            tally.queries += 1
            if query.get("problem") is None:
                tally.valid += 1
                tally.levels += [float(query["level"])] if is_number(query.get("level")) else []
    for row in rows:
        tally = asked.get((row["step"], row["parent"]))
        reward = None if tally is None or row["parts"] is None else json.loads(row["parts"]).get("reward")
        if tally is not None and reward is not None and is_number(reward):
            tally.rewards.append(float(reward))


def _query(row: Row) -> Iterator[tuple[str, Row]]:
    """(task, query) of a turn of the policy's Challenger."""
    if row["parent"] >= 0 or row["model"] != "policy" or '"query"' not in row["info"]:
        return
    info = json.loads(row["info"])
    if isinstance(info["query"], dict):
        yield str(info["task"]["name"]), info["query"]
