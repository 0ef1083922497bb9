"""The report of one run or of several: one self-contained HTML page, its figures as PNG and SVG files beside it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparring.evaluation.methods import Methods
from sparring.files import write_atomic, write_json_atomic
from sparring.report import overview, results
from sparring.report.bars import INTERVALS, RESULT, method_bars, win_rates
from sparring.report.browser import browser
from sparring.report.drawing import STYLE, VARIABLES, Panel, named_apart
from sparring.report.evaluations import OWN, main_figure, shared
from sparring.report.figures import BY_TASK, charts, time_charts
from sparring.report.health_charts import HEALTH, health_charts, timeline
from sparring.report.methods import Method, methods_of
from sparring.report.numbers import number, percent, signed, span
from sparring.report.run import Run, read_runs
from sparring.report.seen import FIGURES as SEEN
from sparring.report.settings import differences, lines
from sparring.report.shortcuts import SHORTCUTS, Evaluated, drawn, evaluated
from sparring.stages import window

PACKAGES = ("sparring", "torch", "transformers", "tokenizers", "numpy", "matplotlib")
FORMS = ("png", "svg")
MOST_EPISODES = 60
"""Rows of the table of what the health rules found; a run that goes on for long among alarms has many."""


@dataclass(frozen=True)
class Section:
    """A part of the page. folded: figures of one method each, or too many to stand open, behind `fold`."""

    name: str
    panels: list[tuple[Panel, Markup]]
    folded: list[tuple[Panel, Markup]]


@dataclass(frozen=True)
class Report:
    """What a page is made of: the runs, the methods they are of, and every panel in the order of the page."""

    runs: list[Run]
    methods: list[Method]
    shared: list[Methods]
    looked: list[Evaluated]
    panels: list[Panel]
    notes: list[str]

    @property
    def alone(self) -> Run | None:
        """The run that the page is about, where there is one only."""
        return self.runs[0] if len(self.runs) == 1 else None


def write_report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run or several, and its figures into `figures/` beside it.

    What is missing or damaged is said on the page. A page that is open elsewhere is replaced whole.

    Args:
        paths: runs' folders; those that differ only in their seed are drawn as one method.
        out: the page's file, or a folder for report.html; None: the run's folder, or the current one for several runs.

    Returns:
        The page's path.

    Raises:
        ValueError: no path, one that is no run's folder, or nothing can be written there.
    """
    report = _read(paths)
    page = out or (paths[0] if report.alone else Path()) / "report.html"
    if page.is_dir():
        page = page / "report.html"
    figures = page.parent / "figures"
    for panel in report.panels:
        for form, content in panel.files().items():
            write_atomic(figures / f"{panel.name}.{form}", lambda aside, content=content: aside.write_bytes(content))
    _forget_stale(figures, [f"{panel.name}.{form}" for panel in report.panels for form in FORMS])
    content = _html(report).encode("utf-8", errors="replace")
    write_atomic(page, lambda aside: aside.write_bytes(content))
    return page


def _forget_stale(figures: Path, written: Sequence[str]) -> None:
    """Remove the figures that an earlier report wrote and this one did not; no other file."""
    told = figures / ".written.json"
    before = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else []
    for name in set(before) - set(written):
        (figures / Path(name).name).unlink(missing_ok=True)
    if written:
        write_json_atomic(told, list(written))


def page_html(paths: Sequence[Path]) -> str:
    """The page alone, without figures' files.

    Raises:
        ValueError: no path, or one that is no run's folder.
    """
    return _html(_read(paths))


def _read(paths: Sequence[Path]) -> Report:
    runs = read_runs(paths)
    methods, notes = methods_of(runs), []
    common, looked = shared(methods, notes), evaluated(methods)
    return Report(runs, methods, common, looked, panels(methods, common, looked), notes)


def panels(methods: Sequence[Method], common: Sequence[Methods], looked: Sequence[Evaluated]) -> list[Panel]:
    """Every panel that there are numbers for, in the order of the page."""
    runs = [run for method in methods for run in method.runs]
    with mpl.rc_context(STYLE):
        found: list[Panel] = []
        if len(runs) == 1 and runs[0].evaluation and runs[0].evaluation.subsets:
            found.append(win_rates(runs[0].evaluation))
        found += _bars(methods, common)
        found += drawn(looked)
        for chart in charts(methods):
            found += chart.panels(methods)
        told = timeline(methods)
        found += [told] if told else []
        for chart in (*health_charts(methods), *time_charts(methods)):
            found += chart.panels(methods)
    return named_apart(found)


def _bars(methods: Sequence[Method], common: Sequence[Methods]) -> Iterable[Panel]:
    """A panel for each evaluation; one run's held-out test has a panel of its own, with its families."""
    colours = {method.name: method.colour for method in methods}
    runs = [run for method in methods for run in method.runs]
    for one in common:
        if len(runs) == 1 and runs[0].documents[one.name].kind == OWN:
            continue
        seeds = any(len(method.runs) > 1 for method in methods)
        whiskers = f"{INTERVALS}; of several seeds, the lowest and the highest" if seeds else INTERVALS
        yield method_bars(one, [colours[name] for name, _ in one.rows], keyed=len(methods) > 1, whiskers=whiskers)


def _html(report: Report) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=number, signed=signed, variable=VARIABLES.__getitem__)
    environment.globals.update(span=span, lines=lines, zip=zip)
    names = [run.name for run in report.runs]
    return environment.get_template("page.html.j2").render(
        report=report,
        run=report.alone,
        title=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        notes=_notes(report),
        sections=_sections(report),
        result=_inlined(panel for panel in report.panels if panel.section == RESULT),
        health=HEALTH,
        shortcuts=SHORTCUTS,
        looked=report.looked,
        headings=SEEN,
        episodes=[(run, episode) for run in report.runs for episode in run.health.episodes],
        most_episodes=MOST_EPISODES,
        fragment=browser([(run.name, run.path) for run in report.runs]),
        versions=_versions(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        light=VARIABLES,
        **(_of_one(report.alone) if report.alone else _of_several(report)),
    )


def _of_one(run: Run) -> dict[str, Any]:
    return {
        "headline": results.headline(run),
        "tiles": results.tiles(run),
        "window": window(run.rows),
        "rows": list(run.evaluation.rows()) if run.evaluation else [],
    }


def _of_several(report: Report) -> dict[str, Any]:
    rates = main_figure(report.methods, report.shared)
    return {
        "headline": overview.headline(report.methods, rates, report.looked),
        "rates": rates,
        "overview": overview.table(report.methods, rates),
        "columns": [heading for heading, _, _ in overview.columns_of(report.methods)],
        "differences": differences(report.methods),
    }


def _sections(report: Report) -> list[Section]:
    found: dict[str, list[Panel]] = {}
    for panel in report.panels:
        if panel.section != RESULT:
            found.setdefault(panel.section, []).append(panel)
    if any(run.health.levels for run in report.runs):  # that nothing was found is said too
        found.setdefault(HEALTH, [])
    sections: list[Section] = []
    for name, members in found.items():
        folded = [panel for panel in members if len(report.methods) > 1 and _is_folded(panel)]
        sections.append(Section(name, _inlined(p for p in members if p not in folded), _inlined(folded)))
    return sections


def _is_folded(panel: Panel) -> bool:
    """Of several methods: one method's own, or one of many by task."""
    return panel.section == BY_TASK or not (panel.keyed or panel.section == SHORTCUTS)


def _inlined(drawn: Iterable[Panel]) -> list[tuple[Panel, Markup]]:
    # An SVG is Matplotlib's own output, in which every text is escaped already.
    return [(panel, Markup(panel.svg())) for panel in drawn]  # noqa: S704


def _notes(report: Report) -> list[tuple[str, str]]:
    """(run, what of it is missing or damaged); the run is not named where there is one only."""
    found = [("" if report.alone else run.name, note) for run in report.runs for note in run.notes]
    missing = _missing_figures(report.alone, report.panels) if report.alone else []
    told = [("", f"Not measured, so not drawn: {', '.join(missing)}.")] if missing else []
    return [*found, *(("", note) for note in report.notes), *told]


def _missing_figures(run: Run, drawn: Sequence[Panel]) -> list[str]:
    wanted = {
        "value": "mean reward",
        "accuracy": "held-out accuracy",
        "valid": "valid queries",
        "win-rates": "win rates",
        "kl": "KL by role",
        "seconds": "time",
    }
    names = {panel.name for panel in drawn}
    if run.settings.get("recipe") == "sft":  # nothing is played
        names |= {"value", "valid", "kl"}
    if "payoff-perceiver" in names:
        names.add("value")
    if run.untested:
        names |= {"accuracy", "win-rates"}
    if run.rows and not any(key.endswith("/challenger") for key in run.rows[-1]):
        names.add("valid")  # a game on data: its queries are given
    return [title for name, title in wanted.items() if name not in names]


def _versions() -> list[tuple[str, str]]:
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found
