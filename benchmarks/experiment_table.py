"""The experiment's results as tables: mean ± sd over runs, and paired differences with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
Result = dict[str, Any]


def read_results(out: Path) -> list[Result]:
    """Every finished run, in a fixed order."""
    return [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]


def write_table(out: Path) -> str:
    """Write table.md beside the results; returns its text."""
    results = read_results(out)
    parts = []
    for long in (False, True):
        mine = [result for result in results if result["long"] is long]
        if mine:
            parts.append(_section("Long runs" if long else "Short runs", mine))
    text = "\n\n".join(parts) + "\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    return text


def _section(title: str, results: Sequence[Result]) -> str:
    arms = list(dict.fromkeys(result["arm"] for result in results))
    lines = [f"### {title}", ""]
    for match in ("by_steps", "by_seconds"):
        lines += [f"Matched {match.replace('_', ' ')}:", "", *_means(arms, results, match), ""]
        lines += [f"Paired differences, matched {match.replace('_', ' ')} (95 % interval over runs):", ""]
        lines += [*_differences(arms, results, match), ""]
    lines += ["The Challenger at the end of each run:", "", *_health(arms, results)]
    return "\n".join(lines)


def _means(arms: Sequence[str], results: Sequence[Result], match: str) -> list[str]:
    rows = ["| arm | runs | steps | CPU-s | easy | hard |", "|---|---|---|---|---|---|"]
    starts = {(r["base"]): r["start"] for r in results if "then" not in r["arm"]}
    easy, hard = ([start[split] for start in starts.values()] for split in ("easy", "hard"))
    rows.append(f"| base | {len(starts)} | - | - | {_pm(easy)} | {_pm(hard)} |")
    for arm in arms:
        mine = [result[match] for result in results if result["arm"] == arm]
        steps = sum(m["step"] for m in mine) / len(mine)
        cpu = sum(m["cpu"] for m in mine) / len(mine)
        easy, hard = ([m[split] for m in mine] for split in ("easy", "hard"))
        rows.append(f"| {arm} | {len(mine)} | {steps:.0f} | {cpu:.0f} | {_pm(easy)} | {_pm(hard)} |")
    return rows


def _differences(arms: Sequence[str], results: Sequence[Result], match: str) -> list[str]:
    rows = ["| difference | runs | easy | hard |", "|---|---|---|---|"]
    by_run = {(r["arm"], r["base"], r["seed"]): r[match] for r in results}
    for arm, control in PAIRS:
        if arm not in arms or control not in arms:
            continue
        runs = [(b, s) for (a, b, s) in by_run if a == arm and (control, b, s) in by_run]
        if len(runs) < 2:
            continue
        cells = []
        for split in ("easy", "hard"):
            gaps = [by_run[arm, b, s][split] - by_run[control, b, s][split] for b, s in runs]
            low, high = paired_interval(gaps)[-2:]
            cells.append(f"{sum(gaps) / len(gaps):+.3f} [{low:+.3f}, {high:+.3f}]")
        rows.append(f"| {arm} − {control} | {len(runs)} | {cells[0]} | {cells[1]} |")
    return rows


def _health(arms: Sequence[str], results: Sequence[Result]) -> list[str]:
    rows = ["| arm | valid | distinct | level | V | dead groups |", "|---|---|---|---|---|---|"]
    names = ("game/valid_share", "game/distinct_queries", "game/level", "game/V", "game/dead_groups")
    for arm in arms:
        ends = [result["curve"][-10:] for result in results if result["arm"] == arm]
        cells = []
        for name in names:
            values = [sum(p[name] for p in end) / len(end) for end in ends if all(name in p for p in end)]
            cells.append(_pm(values, 2) if values else "-")
        rows.append(f"| {arm} | " + " | ".join(cells) + " |")
    return rows


def _pm(values: Sequence[float], digits: int = 3) -> str:
    mean, sd = mean_sd(values) if len(values) > 1 else (values[0], 0.0)
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"
