"""The report's sample browser: all turns and judged pairs of some runs, in one fragment of a page.

The fragment needs no network. Its data lie in blocks that no browser executes; its one script is what `script_hash`
names, so that a page may forbid every other; it sets texts as texts, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparring.report.turns import Turns, read_turns
from sparring.report.verdicts import OUTCOMES, Judged, read_judged

_HERE = Path(__file__).parent
SCRIPTS = ("browser.js", "browser_cards.js", "browser_views.js")
WITH_PICTURES = ("browser.js", "browser_cards.js", "browser_pictures.js", "browser_views.js")
_COMMENT = re.compile(r"^ *//.*\n", re.MULTILINE)  # a page is for reading in a browser
MEASURES = ("payoff", "advantage", "tokens")


@dataclass(frozen=True)
class Fragment:
    """A part of a page. script_hash: its script's, for the script-src of a Content-Security-Policy, without quotes."""

    html: Markup
    script_hash: str


def browser(runs: Sequence[tuple[str, Path]]) -> Fragment:
    """The browser of these runs (name, folder): every recorded turn, and every judged pair of their evaluations.

    What is missing or damaged, and what there was no room for, is said in it.
    """
    turns, judged = read_turns(runs), read_judged(runs)
    pictured = len(turns.pictures) > 0
    files = _COMMENT.sub("", _read(*(WITH_PICTURES if pictured else SCRIPTS)))
    script = f'"use strict";\n{{\n{files}}}\n'  # a block: its names are not the page's
    shown = turns.pictures.shown()
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = lambda names: [(name, name, None) for name in names]
    html = environment.get_template("browser.html.j2").render(
        turns=turns,
        judged=judged,
        shown=shown,
        notes=[*turns.notes, *turns.pictures.notes, *judged.notes],
        runs=[name for name, _ in runs],
        measures=[*((name, name) for name in MEASURES), *((f"part:{name}", name) for name in turns.part_names)],
        states=_states(turns),
        outcomes=_outcomes(judged),
        style=Markup(_read("browser.css", *(["browser_pictures.css"] if pictured else []))),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - ours
    )
    digest = hashlib.sha256(script.encode()).digest()
    return Fragment(Markup(html), f"sha256-{base64.b64encode(digest).decode()}")  # noqa: S704 - escaped by the template


def _read(*names: str) -> str:
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)


def _states(turns: Turns) -> list[tuple[str, str, int]]:
    """(value, label, threads) of what a thread may be: answered, dead, invalid for a reason."""
    problems = [list(turns.problems)[place] for place in turns.threads["problem"]]
    invalid = sorted(set(problems) - {"", "reserved"})
    dead = sum(turns.threads["dead"])
    answered = problems.count("")
    found = [
        ("answered", "answered", answered),
        ("alive", "answers paid differently", answered - dead),
        ("dead", "dead groups", dead),
        ("cut", "with a turn cut off", _cut(turns)),
        ("invalid", "invalid queries", sum(problem in invalid for problem in problems)),
        *((f"problem:{problem}", f"invalid: {problem}", problems.count(problem)) for problem in invalid),
        ("problem:reserved", "reserved for the tests", problems.count("reserved")),
    ]
    return [state for state in found if state[2]]


def _cut(turns: Turns) -> int:
    """Threads with a turn that was cut off."""
    length = turns.finishes.get("length")
    firsts = [*turns.threads["first"], len(turns.turns["finish"])]
    finishes = turns.turns["finish"]
    return sum(length in finishes[start:end] for start, end in pairwise(firsts))


def _outcomes(judged: Judged) -> list[tuple[str, str, int]]:
    """(value, label, pairs) of how a pair may have ended."""
    labels = ("the trained model won", "tie", "the base won", "no verdict that can be read")
    counts = [judged.pairs["outcome"].count(place) for place in range(len(OUTCOMES))]
    flipped = sum(judged.pairs["flipped"])
    found = [*zip(OUTCOMES, labels, counts, strict=True), ("flipped", "the winner changes with the order", flipped)]
    return [outcome for outcome in found if outcome[2]]
