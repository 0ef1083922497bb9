"""The commands that show a run: `sparring report` and `sparring samples`.

Nothing heavy is imported at the top: help and usage errors answer at once.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import click

from sparring.console import debug_option, shown

LOOPBACK, PORT, EVERY = "127.0.0.1", 8642, 3.0
MOMENT, SOME = 2, 5  # queries shown: of each of three steps; of what was asked for
_PATH = click.Path(path_type=Path)


@click.command(short_help="Write a run's report, or serve it while it trains.")
@click.argument("runs", nargs=-1, required=True, type=_PATH, metavar="RUN...")
@click.option(
    "--out", type=_PATH, help="The page's file or folder.  [default: RUN/report.html; of several: ./report.html]"
)
@click.option("--live", is_flag=True, help="Serve the page; an open one follows the run while it trains.")
@click.option("--port", type=click.IntRange(0, 65535), help=f"With --live.  [default: {PORT}; 0: any that is free]")
@click.option("--host", help=f"With --live: another address than {LOOPBACK}, where others can read the run.")
@click.option(
    "--every", type=click.FloatRange(0.2, 86_400), help=f"With --live: seconds between looks.  [default: {EVERY}]"
)
@debug_option
def report(
    *, runs: tuple[Path, ...], out: Path | None, live: bool, port: int | None, host: str | None, every: float | None
) -> None:
    """Write a run's report.html and figures, of several runs one page that compares them; print the page's path.

    \b
    sparring report runs/lsp
    sparring report runs/grpo runs/lsp --out both.html
    sparring report runs/lsp --live
    """
    if not live:
        given = [name for name, value in (("--port", port), ("--host", host), ("--every", every)) if value is not None]
        if given:
            raise click.UsageError(f"{given[0]} is for a page that is served: add --live")
        from sparring.report.page import write_report

        click.echo(shown(write_report(runs, out)))
        return
    if every is not None and math.isnan(every):  # click takes NaN for a number within any bounds
        raise click.BadParameter("nan is no number of seconds", param_hint="--every")
    if out is not None:
        raise click.UsageError("--out names a file, and --live serves the page without one")
    from sparring.report.live import serve

    serve(
        runs,
        host=LOOPBACK if host is None else host,
        port=PORT if port is None else port,
        every=EVERY if every is None else every,
        say=lambda line: click.echo(line, err=True),
    )


class Steps(click.ParamType):
    """A step, or the first and the last of several."""

    name = "A or A-B"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(first, last)."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", value)
        if found is None:
            self.fail(f"{value!r} is no step: give one (12) or a range (10-20)", param, ctx)
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            self.fail(f"{value!r} ends before it begins", param, ctx)
        return first, last


@click.command(short_help="A run's queries and answers, in the terminal.")
@click.argument("run", type=_PATH)
@click.option("--step", "steps", type=Steps(), metavar="A|A-B", help="Of this step, or of steps A to B.")
@click.option("--role", help="With a turn of this role (challenger, solver, ...).")
@click.option("--min-payoff", "low", type=float, help="With a turn paid at least this.")
@click.option("--max-payoff", "high", type=float, help="With a turn paid at most this.")
@click.option("--text", help="With these words in a turn, in upper or lower case.")
@click.option("--n", type=click.IntRange(min=0), help=f"How many queries; 0: all.  [default: {SOME}]")
@click.option(
    "--sort",
    type=click.Choice(["step", "payoff", "spread"]),
    help="payoff: best paid first; spread: answers that were paid most unlike first.  [default: step]",
)
@click.option("--full", is_flag=True, help="Texts uncut, thoughts unfolded.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each query, whole.")
@debug_option
def samples(
    *,
    run: Path,
    steps: tuple[int, int] | None,
    role: str | None,
    low: float | None,
    high: float | None,
    text: str | None,
    n: int | None,
    sort: str | None,
    full: bool,
    as_json: bool,
) -> None:
    """Show queries with their answers, what each was paid, and what the graders said.

    Without a filter: of an early, a middle and a late step. Filters are of one and the same turn, which is marked;
    its whole exchange is shown. Exit code 1 where nothing matches.

    \b
    sparring samples runs/lsp --step 100-200 --role solver --min-payoff 1
    sparring samples runs/lsp --sort spread --n 10
    sparring samples runs/lsp --text planet --n 0 --json | jq .query.text
    """
    if low is not None and high is not None and low > high:
        raise click.UsageError(f"--min-payoff {low:g} is more than --max-payoff {high:g}")
    from sparring.report.samples import Wanted, find, moments

    wanted = Wanted(steps, role, low, high, text)
    if wanted == Wanted() and sort is None:
        found = moments(run, MOMENT if n is None else n)
    else:
        found = find(run, wanted, SOME if n is None else n, sort or "step")
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        for exchange in found.exchanges:
            click.echo(json.dumps(exchange.to_json()))
    else:
        from sparring.display import make_console
        from sparring.report.terminal import draw

        draw(found, make_console(), full=full)
    if not found.exchanges:
        click.echo("Nothing matches.", err=True)
        raise click.exceptions.Exit(1)
