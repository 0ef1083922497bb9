"""The report of a run: one self-contained HTML page, with its figures as PNG files beside it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparring.evaluation.comparison import Comparison
from sparring.report.drawing import VARIABLES, Panel
from sparring.report.figures import panels
from sparring.report.run import Run, read_run
from sparring.runfolder import write_atomic
from sparring.stages import ends, window

REWARDS = ("reward/raw", "game/V", "payoff/solver/reward")  # a score before its scale says more than the scaled one
PACKAGES = ("sparring", "torch", "transformers", "tokenizers", "numpy", "matplotlib")


NBSP = "\N{NO-BREAK SPACE}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}{NBSP}%"


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:z.3g}".replace("-", "−")


def _signed(value: float | None, digits: int = 2) -> str:
    return "—" if value is None else f"{value:+z.{digits}f}".replace("-", "−")


Show = Callable[[float], str]
TILES: tuple[tuple[str, tuple[str, ...], Show], ...] = (
    ("V, mean reward", ("game/V", "payoff/solver/reward"), _number),
    ("Valid queries", ("game/valid_share",), _percent),
    ("Raw reward", ("reward/raw",), _number),
    ("V_Q, mean quality", ("game/V_Q",), _number),
    ("Grades read", ("quality/parse_rate",), _percent),
    ("KL, Solver", ("kl/solver",), _number),
    ("KL, Challenger", ("kl/challenger",), _number),
    ("Answer, tokens", ("length/solver",), _number),
)
"""Label, metrics (the first that was measured) and format; the first two stand beside an evaluation too."""


@dataclass(frozen=True)
class Tile:
    """A number at the head of the page."""

    label: str
    value: str
    detail: str


def write_report(run_path: Path) -> Path:
    """Write `report.html` and `figures/*.png` into a run's folder, from whatever the folder holds.

    The page needs no network and runs no script; model text in it is escaped. What is missing or damaged is
    said on the page. A page that is open elsewhere is replaced whole.

    Returns:
        The page's path.

    Raises:
        ValueError: the folder does not exist, is no run's, or can't be written to.
    """
    run = read_run(run_path)
    drawn = panels(run)
    _write_pngs(drawn, run_path / "figures")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, number=_number, signed=_signed)
    html = environment.get_template("page.html.j2").render(
        run=run,
        name=run_path.resolve().name,
        headline=headline(run),
        tiles=tiles(run),
        window=window(run.rows),
        rows=list(run.evaluation.rows()) if run.evaluation else [],
        result=_inlined([panel for panel in drawn if panel.section == "Result"]),
        sections=_sections([panel for panel in drawn if panel.section != "Result"]),
        missing=_missing_figures(run, drawn),
        stages=run.lineage.stages,
        lineage=_lines(run.lineage.other),
        versions=_versions(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        light=VARIABLES,
    )
    page = run_path / "report.html"
    content = html.encode("utf-8", errors="replace")
    write_atomic(page, lambda aside: aside.write_bytes(content))
    return page


def headline(run: Run) -> str:
    """The result in a sentence: the win rate with its interval, and what the interval allows to say."""
    if run.evaluation is None:
        return _progress(run)
    overall = run.evaluation.overall
    low, high = overall.ci95
    if overall.ties == overall.n:
        return f"No difference seen: all {overall.n} items are ties"
    if low > 0.5:
        verdict = "The trained model beats its base"
    elif high < 0.5:
        verdict = "The trained model loses to its base"
    else:
        verdict = "No clear difference between the trained model and its base"
    interval = f"95{NBSP}% interval {100 * low:.1f}{NBSP}to{NBSP}{100 * high:.1f}"
    return f"{verdict}: win{NBSP}rate {_percent(overall.win_rate)} ({interval})"


def _progress(run: Run) -> str:
    """Without an evaluation, what the run's own figures say; a reward that rises is no proof of a better model."""
    if run.last_step is None:
        return "No step and no evaluation has been recorded yet."
    if not run.untested:
        return f"Recorded up to step {run.last_step}; not evaluated against the base yet."
    reward = next((pair for key in REWARDS if (pair := ends(run.rows, key))), None)
    paid = f": mean reward {_number(reward[0])}{NBSP}→{NBSP}{_number(reward[1])}" if reward else ""
    steps = "step" if run.last_step == 1 else "steps"
    return f"{run.last_step} {steps} of training{paid}; no held-out test in this domain."


def tiles(run: Run) -> list[Tile]:
    """The few numbers to see first."""
    found = []
    if run.evaluation:
        overall = run.evaluation.overall
        counts = f"{overall.wins} wins, {overall.ties} ties, {overall.losses} losses"
        found.append(Tile("Win rate", _percent(overall.win_rate), counts))
        tops = {name: row for name, row in run.evaluation.subsets.items() if "/" not in name}
        found += [_accuracy_tile(name, row) for name, row in (tops or {"overall": overall}).items()][:3]
    shown = TILES[:2] if run.evaluation else TILES
    for name, keys, show in shown:
        pair = next((pair for key in keys if (pair := ends(run.rows, key))), None)
        if pair:
            found.append(Tile(name, show(pair[1]), f"{show(pair[0])} at the start"))
    if run.last_step is not None:
        _, seconds = run.series("seconds/step")
        total = float(seconds.sum())
        spent = f"{total / 60:.1f} minutes" if total >= 60 else f"{total:.1f} seconds"
        detail = f"{spent} of training" if len(seconds) else "recorded so far"
        found.append(Tile("Steps", str(run.last_step), detail))
    return found


def _accuracy_tile(name: str, row: Comparison) -> Tile:
    return Tile(f"Accuracy, {name}", _percent(row.accuracy), f"base {_percent(row.base_accuracy)}, n = {row.n}")


def _sections(drawn: list[Panel]) -> list[tuple[str, list[tuple[Panel, Markup]]]]:
    return [(section, _inlined(group)) for section, group in groupby(drawn, key=lambda panel: panel.section)]


def _inlined(drawn: Iterable[Panel]) -> list[tuple[Panel, Markup]]:
    # An SVG is Matplotlib's own output, in which every text is escaped already.
    return [(panel, Markup(panel.svg())) for panel in drawn]  # noqa: S704


def _missing_figures(run: Run, drawn: list[Panel]) -> list[str]:
    wanted = {
        "value": "mean reward",
        "accuracy": "held-out accuracy",
        "valid": "valid queries",
        "win-rates": "win rates",
        "kl": "KL by role",
        "seconds": "time",
    }
    names = {panel.name for panel in drawn}
    if run.untested:
        names |= {"accuracy", "win-rates"}
    if run.rows and not any(key.endswith("/challenger") for key in run.rows[-1]):
        names.add("valid")  # a game on data: its queries are given
    return [title for name, title in wanted.items() if name not in names]


def _lines(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, value) lines; a list's entries are numbered from 1."""
    if isinstance(value, list):
        value = {str(number): inner for number, inner in enumerate(value, 1)}
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _lines(inner, f"{path}.{key}".lstrip("."))]
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def _versions() -> list[tuple[str, str]]:
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found


def _write_pngs(drawn: list[Panel], folder: Path) -> None:
    for panel in drawn:
        content = panel.png()
        write_atomic(folder / f"{panel.name}.png", lambda aside, content=content: aside.write_bytes(content))
    for stale in {file.stem for file in folder.glob("*.png")} - {panel.name for panel in drawn}:
        (folder / f"{stale}.png").unlink()
