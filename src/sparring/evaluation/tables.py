"""Evaluations as tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from sparring.evaluation.benchmarks import BenchmarkReport
from sparring.evaluation.harness import HarnessRecord
from sparring.evaluation.winrate import WinRates


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


def harness_table(records: Sequence[HarnessRecord]) -> Table:
    """The harness's figures, as it gives them."""
    result = plain_table("lm-evaluation-harness", ("metric", "filter", "n", "value", "± standard error"))
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
