"""Evaluations as tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from sparring.evaluation.benchmarks import BenchmarkReport
from sparring.evaluation.harness import HarnessRecord
from sparring.evaluation.winrate import WinRates

if TYPE_CHECKING:
    from sparring.evaluation.benchmarks.vision import VisionReport
    from sparring.evaluation.perception import Perception


def plain_table(title: str, headings: Iterable[str]) -> Table:
    """An empty table as all of ours look; the first column is for names."""
    result = Table(
        title=escape(title), title_justify="left", header_style="bold", box=box.HORIZONTALS, padding=(0, 1, 0, 0)
    )
    result.add_column("", overflow="fold", max_width=28)
    for heading in headings:
        result.add_column(heading, justify="right", no_wrap=True)
    return result


def percent(value: float, ci95: tuple[float, float] | None) -> str:
    """A fraction with its interval, in percent.

    >>> percent(0.5, (0.25, 0.75))
    '50.0% [25.0, 75.0]'
    """
    return f"{value:.1%}" + ("" if ci95 is None else f" [{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]")


def win_rate_table(rates: WinRates, model: str, base: str, judge: str) -> Table:
    """A judged comparison: overall, then by subset; and what to know of the judge."""
    result = plain_table(
        f"{model} against {base}, judged by {judge}",
        ("n", "wins/ties/\nlosses", "win rate\n[95 % interval]", "sign test\np"),
    )
    for path, row in rates.rows():
        result.add_row(
            "  " * (len(path) - 1) + escape(path[-1]) if path else "overall",
            str(row.n),
            f"{row.wins}/{row.ties}/{row.losses}",
            percent(row.win_rate, row.ci95),
            f"{row.sign_test_p:.2g}",
            style=None if path else "bold",
        )
    one = rates.overall
    low, high = one.position_bias_ci95
    result.caption = (
        f"position bias {100 * one.position_bias:+z.1f} points [{100 * low:+z.1f}, {100 * high:+z.1f}] for what is "
        f"shown first; {one.flip_rate:.0%} of verdicts turn with the order; {one.excluded} items left out, unparsed "
        f"{one.unparsed_first} (model first) and {one.unparsed_second} (model second)"
    )
    result.caption_justify = "left"
    return result


def accuracy_table(report: BenchmarkReport, model: str) -> Table:
    """A benchmark: overall, then by subset, then its other figures."""
    result = plain_table(f"{report.benchmark}: {model}", ("n", "accuracy\n[95 % interval]"))
    result.add_row(
        "overall", str(report.overall.n), percent(report.overall.accuracy, report.overall.ci95), style="bold"
    )
    for name, row in report.subsets.items():
        depth = name.count("/")
        label = "  " * depth + escape(name.rsplit("/", 1)[-1])
        result.add_row(label, str(row.n), percent(row.accuracy, row.ci95))
    if report.pass_at or report.figures:
        result.add_section()
    for k, value in report.pass_at.items():
        result.add_row(f"pass@{k}", "", f"{value:.1%}")
    for name, value in report.figures.items():
        result.add_row(escape(name), "", f"{value:.1%}")
    return result


def lsr_table(rows: Sequence[tuple[str, Perception]]) -> Table:
    """Models by what they see: a row each."""
    headings = ("n", "LSR, lower is better\n[95 % interval]", "accuracy\n[95 % interval]", "sees\nenough", "reader")
    result = plain_table("Language Shortcut Rate", headings)
    for label, one in rows:
        reader = one.reader["all"]
        result.add_row(
            escape(label),
            str(one.n),
            percent(one.lsr.value, one.lsr.ci95),
            percent(one.accuracy.value, one.accuracy.ci95),
            f"{one.sufficient.value:.1%}",
            "" if reader is None else f"{reader.value:.1%}",
        )
    unread = [f"{label}: {_unread(one)}" for label, one in rows if one.unread]
    if unread:
        result.caption, result.caption_justify = escape("; ".join(unread)), "left"
    return result


def vision_table(reports: Mapping[str, VisionReport]) -> Table:
    """Benchmarks by models; parts under their benchmark."""
    result = plain_table("accuracy [95 % interval]", ("n", *map(escape, reports)))
    first = next(iter(reports.values()))
    for name in first.benchmarks:
        whole, _, part = name.partition("/")
        shares = [report.accuracy(name) for report in reports.values()]
        cells = [percent(share.value, share.ci95) for share in shares]
        result.add_row(f"  {escape(part)}" if part else escape(whole), str(shares[0].n), *cells)
    result.add_section()
    overall = [report.to_json()["overall"] for report in reports.values()]
    cells = [percent(one["accuracy"], None) for one in overall]
    result.add_row("mean of benchmarks", str(overall[0]["n"]), *cells, style="bold")
    unread = {path: sum(o.unread for found in report.sets.values() for o in found) for path, report in reports.items()}
    told = [
        f"{path}: {number} answers without a verdict, counted as wrong" for path, number in unread.items() if number
    ]
    if told:
        result.caption, result.caption_justify = escape("; ".join(told)), "left"
    return result


def _unread(one: Perception) -> str:
    low, high = one.bounds
    return f"{one.unread} descriptions without a verdict; whatever it were, LSR is in {low:.1%} to {high:.1%}"


def harness_table(records: Sequence[HarnessRecord], title: str = "lm-evaluation-harness") -> Table:
    """A harness's figures, as it gives them."""
    result = plain_table(title, ("metric", "filter", "n", "value", "± standard error"))
    for row in records:
        result.add_row(
            escape(row.task),
            escape(row.metric),
            escape(row.filter),
            "" if row.items is None else str(row.items),
            f"{row.value:.4f}",
            "" if row.stderr is None else f"{row.stderr:.4f}",
        )
    return result
