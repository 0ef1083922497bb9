"""The experiment's results as tables: mean ± sd over runs, and paired differences with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparring.arena.language import FAMILIES, KIND
from sparring.evaluation.statistics import mean_sd, paired_interval

# (arm, control): does the first beat the second, run by run with the same base and seed?
PAIRS = (
    ("LSP (default)", "GRPO on data"),
    ("LSP (paper)", "GRPO on data"),
    ("LSP (default)", "LSP (paper)"),
    ("LSP (default)", "frozen Challenger"),
    ("LSP (default)", "alpha = 0, same mix"),
    ("LSP (paper)", "frozen Challenger"),
    ("GRPO, then LSP", "GRPO, then GRPO"),
)
MATCHES = {"by_steps": "the same number of steps", "by_seconds": "the same CPU-seconds of training"}
# What is measured: accuracy on the splits, and on the hard split by kind of family.
MEASURES = {
    "easy": ["easy"],
    "hard": ["hard"],
    "hard, latent": [f"hard/{family}" for family in FAMILIES if KIND[family] == "latent"],
    "hard, skill": [f"hard/{family}" for family in FAMILIES if KIND[family] == "skill"],
}
HEALTH = {
    "valid": "game/valid_share",
    "distinct": "game/distinct_queries",
    "level": "game/level",
    "V": "game/V",
    "dead groups": "game/dead_groups",
}
Result = dict[str, Any]


def read_results(out: Path) -> list[Result]:
    """Every finished run, in a fixed order."""
    return [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]


def write_table(out: Path) -> str:
    """Write table.md beside the results; returns its text."""
    results = read_results(out)
    parts = []
    for long, title in ((False, "Short runs"), (True, "Long runs")):
        mine = [result for result in results if result["long"] is long]
        if mine:
            parts += [f"### {title}", "", *_section(mine)]
    text = "\n".join(parts) + "\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    return text


def json_rows(out: Path) -> list[Result]:
    """One row an arm, length and match: case, seconds of training, and mean and sd of each measure."""
    rows: list[Result] = []
    results = read_results(out)
    for long in (False, True):
        mine = [result for result in results if result["long"] is long]
        for arm in _arms(mine):
            for match in MATCHES:
                points = [result[match] for result in mine if result["arm"] == arm]
                measures = {
                    name: mean_sd([_measure(point, names) for point in points]) for name, names in MEASURES.items()
                }
                rows.append(
                    {
                        "case": f"{arm}, {'long' if long else 'short'}, matched {match.replace('_', ' ')}",
                        "runs": len(points),
                        "steps": float(np.mean([point["step"] for point in points])),
                        "seconds": {"training": float(np.mean([point["cpu"] for point in points]))},
                        "accuracy": {name: {"mean": m, "sd": sd} for name, (m, sd) in measures.items()},
                    }
                )
    return rows


def _section(results: Sequence[Result]) -> list[str]:
    lines: list[str] = []
    for match, meaning in MATCHES.items():
        lines += [f"After {meaning}, mean ± sd over runs:", "", *_means(results, match), ""]
        differences = _differences(results, match)
        if len(differences) > 2:
            lines += ["Paired differences, with 95 % intervals over runs:", "", *differences, ""]
    return [*lines, "The game at the end of a run (its last ten steps):", "", *_health(results), ""]


def _measure(point: dict[str, float], names: Sequence[str]) -> float:
    return float(np.mean([point[name] for name in names]))


def _means(results: Sequence[Result], match: str) -> list[str]:
    rows = [f"| arm | runs | steps | CPU-s | {' | '.join(MEASURES)} |", "|---" * (4 + len(MEASURES)) + "|"]
    starts = list({r["base"]: r["start"] for r in results if "then" not in r["arm"]}.values())
    rows.append(
        _row(
            "base",
            [len(starts), "-", "-", *(_pm([_measure(s, m) for s in starts]) for m in MEASURES.values())],
        )
    )
    for arm in _arms(results):
        mine = [result[match] for result in results if result["arm"] == arm]
        steps, cpu = (np.mean([point[name] for point in mine]) for name in ("step", "cpu"))
        cells = [_pm([_measure(point, names) for point in mine]) for names in MEASURES.values()]
        rows.append(_row(arm, [len(mine), f"{steps:.0f}", f"{cpu:.0f}", *cells]))
    return rows


def _differences(results: Sequence[Result], match: str) -> list[str]:
    rows = [f"| difference | runs | {' | '.join(MEASURES)} |", "|---" * (2 + len(MEASURES)) + "|"]
    by_run = {(r["arm"], r["base"], r["seed"]): r[match] for r in results}
    for arm, control in PAIRS:
        pairs = [
            (by_run[arm, b, s], by_run[control, b, s]) for a, b, s in by_run if a == arm and (control, b, s) in by_run
        ]
        if len(pairs) < 2:
            continue
        cells = []
        for names in MEASURES.values():
            gaps = [_measure(mine, names) - _measure(theirs, names) for mine, theirs in pairs]
            low, high = paired_interval(gaps)
            cells.append(f"{np.mean(gaps):+.3f} [{low:+.3f}, {high:+.3f}]")
        rows.append(_row(f"{arm} − {control}", [len(pairs), *cells]))
    return rows


def _health(results: Sequence[Result]) -> list[str]:
    rows = [f"| arm | {' | '.join(HEALTH)} |", "|---" * (1 + len(HEALTH)) + "|"]
    for arm in _arms(results):
        ends = [result["curve"][-10:] for result in results if result["arm"] == arm]
        cells = []
        for name in HEALTH.values():
            means = [np.mean([p[name] for p in end if name in p]) for end in ends if any(name in p for p in end)]
            cells.append(_pm(means, 2) if means else "-")
        rows.append(_row(arm, cells))
    return rows


def _arms(results: Sequence[Result]) -> list[str]:
    order = [arm for pair in PAIRS for arm in reversed(pair)]
    arms = dict.fromkeys(result["arm"] for result in results)
    return sorted(arms, key=lambda arm: order.index(arm) if arm in order else -1)


def _row(name: str, cells: Sequence[Any]) -> str:
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


def _pm(values: Sequence[Any], digits: int = 3) -> str:
    mean, spread = mean_sd([float(value) for value in values])
    return f"{mean:.{digits}f}" if len(values) < 2 else f"{mean:.{digits}f} ± {spread:.{digits}f}"
