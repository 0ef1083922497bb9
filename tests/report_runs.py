"""Run folders as a report may find them, and a page taken apart."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparring.evaluation.comparison import Outcome, compare
from sparring.report.methods import methods_of
from sparring.report.page import panels
from sparring.report.run import read_run
from sparring.report.shortcuts import evaluated

FAMILIES = ("skip", "reverse", "sort", "flip", "unique", "trail", "sum", "chain")
VOID = {"meta", "br", "use", "path", "link", "img", "input"}


class Page(HTMLParser):
    """Collects a page and checks that its tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def metrics_row(step: int, steps: int, rng: np.random.Generator) -> dict[str, Any]:
    progress = step / steps
    shares = rng.dirichlet(8 * np.roll(np.linspace(0.3, 1.7, len(FAMILIES)), int(6 * progress)))
    noise = rng.normal(size=8)
    play, payoffs, update = 0.35 + 0.1 * progress, 0.06, 0.4 + 0.02 * abs(noise[0])
    return {
        "step": step,
        "game/V": float(np.clip(0.35 + 0.2 * progress + 0.07 * noise[0], 0, 1)),
        "game/V_Q": 4.8 + 0.9 * progress + 0.2 * noise[1],
        "game/valid_share": float(np.clip(0.86 + 0.1 * progress + 0.05 * noise[2], 0, 1)),
        "game/dead_groups": float(np.clip(0.4 - 0.2 * progress + 0.1 * noise[3], 0, 1)),
        "game/distinct_queries": float(np.clip(0.98 - 0.1 * progress, 0, 1)),
        "game/query_length": 9 + 3 * progress + 0.4 * noise[4],
        "length/solver": 7 + 2 * progress + 0.3 * noise[5],
        "game/level": 4 + 3 * progress + 0.4 * noise[6],
        **{f"game/share/{family}": float(share) for family, share in zip(FAMILIES, shares, strict=True)},
        "reward/solver": 0.4,
        "kl/challenger": 0.3 * progress + 0.02 * abs(noise[7]),
        "kl/solver": 0.15 * progress,
        "entropy/challenger": 1.9 - 0.5 * progress,
        "entropy/solver": 0.6 - 0.3 * progress,
        "loss": float("nan") if step == 3 else 0.1,
        "seconds/play": play,
        "seconds/payoffs": payoffs,
        "seconds/update": update,
        "seconds/step": play + payoffs + update,
        "tokens_per_second": 5400.0,
    }


def info(text: str, parent: int) -> dict[str, Any]:
    """What a game notes: of a query its task and what was read, of an answer what it answers."""
    if parent >= 0:
        return {"query_text": "reverse:bead"}
    problem = "malformed" if text.startswith("nonsense") else None
    query = {"text": text, "problem": problem, "reserved": False, "family": "reverse", "level": 4.0}
    return {"task": {"name": text.partition(":")[0]}, "query": query}


def turn_rows(step: int, text: str | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def add(role: str, content: str, parent: int, payoff: float | None, parts: dict[str, float | None]) -> int:
        rows.append(
            {
                "step": step,
                "index": len(rows),
                "parent": parent,
                "role": role,
                "model": "policy",
                "prompt": "Write one query." if parent < 0 else "Answer: " + rows[parent]["text"],
                "text": content,
                "finish": "stop",
                "prompt_tokens": 11,
                "completion_tokens": len(content),
                "payoff": payoff,
                "parts": json.dumps(parts),
                "advantage": None if payoff is None else payoff - 0.5,
                "trained": parent < 0 or payoff is not None,
                "info": json.dumps(info(content, parent)),
            }
        )
        return len(rows) - 1

    for query in (text or "reverse:bead", "sort:tkcab", "nonsense: abc"):
        at = add("challenger", query, -1, -0.4, {"reward": -0.75, "quality": 0.35})
        if not query.startswith("nonsense"):
            for answer, reward in (("daeb", 1.0), ("dabe", 0.0), ("daeb", 1.0), ("daeb", None), ("da", 0.0)):
                add("solver", answer, at, reward, {"reward": reward, "quality": 5.0})
    return rows


def write_turns(folder: Path, step: int, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"step-{step:06d}.parquet")


def make_run(folder: Path, steps: int = 60, attack: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = [json.dumps({"step": 0, "eval/easy": 0.62, "eval/hard": 0.21})]
    for step in range(1, steps + 1):
        row = metrics_row(step, steps, rng)
        if step % (steps // 6) == 0:
            row |= {"eval/easy": 0.62 + 0.2 * step / steps, "eval/hard": 0.21 + 0.4 * step / steps}
        lines.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    outcomes = [
        Outcome(
            f"{split}/{family}/{item}",
            (split, family),
            float(rng.random() < base),
            float(rng.random() < base + up),
        )
        for split, base, up in (("easy", 0.6, 0.15), ("hard", 0.2, 0.4))
        for family in FAMILIES
        for item in range(40)
    ]
    (folder / "evaluation.json").write_text(json.dumps(compare(outcomes).to_json()))
    (folder / "config.yaml").write_text(f"recipe: lsp\nn_queries: 8\nseed: 3\ntask: {json.dumps(attack or 'words')}\n")
    (folder / "lineage.json").write_text(json.dumps({"base": {"sha256": "ab12"}, "stages": [{"recipe": "lsp"}]}))
    for step in (1, steps // 2, steps):
        write_turns(folder / "turns", step, turn_rows(step, attack))
    return folder


def panels_of(*folders: Path) -> list[Any]:
    """The panels of some runs."""
    methods = methods_of([read_run(folder) for folder in folders])
    return panels(methods, [], evaluated(methods))


def words(html: str) -> str:
    """A page's text with single blanks."""
    return " ".join(Page(html).text.split())


def told(fragment: str) -> str:
    """The text of a part of a page whose tags need not close."""
    return " ".join(unescape(re.sub("<[^>]+>", " ", fragment)).split())


def write_metrics(folder: Path, rows: list[dict[str, Any]], config: str = "game:\n  domain: text\n") -> Path:
    """A run of metrics and settings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "config.yaml").write_text(config)
    return folder
