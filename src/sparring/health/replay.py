"""A finished run's health from its metrics and turns: what would have rung, and under which thresholds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparring.health.figures import Exchange, Said
from sparring.health.monitor import Monitor
from sparring.health.rules import Status
from sparring.runfolder import RunFolder


def replayed(folder: RunFolder, monitor: Monitor) -> Iterator[tuple[int, dict[str, float], Status]]:
    """Each step's number, its figures with health's among them, and its status, as the run itself would have had it.

    Figures of texts are there for the steps whose turns were kept (checkpoint.turns_every).
    """
    kept = set(folder.turn_steps())
    for record in folder.read_metrics():
        step = record["step"]
        if not isinstance(step, int) or step == 0:
            continue
        metrics = {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
        del metrics["step"]
        told = said_in(folder.read_turns([step])) if step in kept else Said()
        figures, status = monitor.judge(told, metrics)
        yield step, {**metrics, **figures}, status


def said_in(rows: Sequence[Mapping[str, Any]]) -> Said:
    """What figures.said finds, from a step's saved turns."""
    queries: list[str] = []
    exchanges: list[Exchange] = []
    for row in rows:
        if row["model"] != "policy":
            continue
        info = json.loads(row["info"])
        query = info.get("query")
        if isinstance(query, dict) and {"text", "problem", "reserved"} <= set(query):
            queries.append(str(query["text"]))
            continue
        parts = json.loads(row["parts"] or "{}")
        asked = str(info.get("query_text", row["prompt"]))
        exchanges.append(Exchange(asked, str(row["text"]), parts.get("reward"), parts.get("quality")))
    return Said(tuple(queries), tuple(exchanges))
