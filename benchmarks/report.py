"""A run's report with tens of thousands of turns: seconds to write it, to open it in Chromium and to filter it.

    python benchmarks/report.py [--turns 50000] [--characters 1000] [--json row.json]

The turns are LSP's, N = 40 queries a step and G = 8 answers. Their words follow each other at random as they do in
docs/, so that texts compress about as prose does and none repeats another. "open": from the navigation until the first
threads are shown and the filters answer, the file in the disk's cache. "figure", "text", "sort", "reset": until such a
change is shown, with the 150 ms that a field waits for more to be typed; "first text" unpacks all texts. Medians over
--rounds openings.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from sparring.report.page import write_report
from sparring.runfolder import RunFolder

N, G = 40, 8
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ROOT = Path(__file__).parent.parent


def make_run(folder: Path, turns: int, characters: int) -> None:
    """A run's turns, and nothing else of it."""
    rng = random.Random(0)
    words = " ".join(file.read_text(encoding="utf-8") for file in sorted(ROOT.glob("docs/*.md"))).split(" ")
    after: dict[str, list[str]] = {}
    for word, following in pairwise(words):
        after.setdefault(word, []).append(following)

    def text(length: int) -> str:
        """Words that follow each other as in the documents, about so many characters of them."""
        chain = [rng.choice(words)]
        for _ in range(int(rng.expovariate(6 / length)) + 3):
            chain.append(rng.choice(after.get(chain[-1], words)))
        return " ".join(chain)

    run = RunFolder(folder)
    run.turns.mkdir(parents=True)
    for step in range(1, turns // (N * (G + 1)) + 1):
        queries, answers = [], []
        for index in range(N):
            query = text(200)
            about = {"text": query, "problem": None, "reserved": False, "family": None, "level": None, "columns": {}}
            rewards = [rng.random() for _ in range(G)]
            info = {"task": {"name": "own judgement"}, "query": about}
            queries.append(row(index, -1, "challenger", f"<input>{query}</input>", -sum(rewards) / G, info))
            for reward in rewards:
                answer = text(characters)
                answers.append(row(N + len(answers), index, "solver", answer, reward, {"query_text": query}))
        run.write_turns(step, [*queries, *answers])


def row(index: int, parent: int, role: str, text: str, reward: float, info: dict[str, Any]) -> dict[str, Any]:
    """A turn as `records.turn_rows` has it."""
    name = "reward" if role == "solver" else "value"
    return {
        "index": index,
        "parent": parent,
        "role": role,
        "model": "policy",
        "prompt": "Write one input for an assistant that works with text." if role == "challenger" else text,
        "text": text,
        "thought": None,
        "finish": "stop",
        "prompt_tokens": 40,
        "completion_tokens": len(text) // 4,
        "payoff": reward,
        "parts": json.dumps({name: reward}),
        "advantage": reward - 0.5,
        "trained": True,
        "info": json.dumps(info),
    }


def opening(browser: Any, page_file: Path) -> dict[str, float]:
    """Seconds until the page is ready and until each kind of filter has answered."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    seconds: dict[str, float] = {}
    told = "document.querySelector('.browser .told').innerText"

    def clocked(name: str, act: Any, done: str) -> None:
        start = time.perf_counter()
        act()
        page.wait_for_function(f"() => {done}")  # a page that forbids eval takes no bare expression
        seconds[name] = time.perf_counter() - start

    ready = "document.querySelector('#browser')?.dataset.ready"
    clocked("open", lambda: page.goto(page_file.as_uri(), wait_until="commit"), ready)
    idle = "!document.querySelector('.browser [aria-busy]')"
    thread = "document.querySelector('.browser .thread')"
    text = page.locator(".browser [name=text]").first
    for name, act in {
        "figure": lambda: page.locator(".browser [name=least]").fill("0.9"),
        "first text": lambda: text.fill("gradient"),
        "next text": lambda: text.fill("gradients of"),
        "sort": lambda: page.locator(".browser [name=sort]").first.select_option("spread"),
        "reset": page.locator(".browser [type=reset]").first.click,
    }.items():
        page.evaluate(f"() => {{ window.before = {told}; window.first = {thread}; }}")
        news = f"{thread} !== window.first" if name == "sort" else f"{told} !== window.before"
        clocked(name, act, f"{news} && {idle}")
    page.close()
    return seconds


def main() -> None:
    """Write a run, its report, and what opening it takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=50_000)
    parser.add_argument("--characters", type=int, default=1000, help="mean length of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    executable = os.environ.get("SPARRING_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run, args.turns, args.characters)
        start = time.perf_counter()
        page_file = write_report([run])
        written = time.perf_counter() - start
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
            rounds = [opening(browser, page_file) for _ in range(args.rounds)]
            browser.close()
        figures = {
            "turns": args.turns,
            "characters": args.characters,
            "megabytes": page_file.stat().st_size / 1e6,
            "write": written,
            **{name: median(seconds[name] for seconds in rounds) for name in rounds[0]},
        }
    for name, value in figures.items():
        print(f"{name:12} {value:,.2f}" if isinstance(value, float) else f"{name:12} {value:,}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
