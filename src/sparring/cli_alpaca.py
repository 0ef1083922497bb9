"""`sparring eval alpaca-eval`: AlpacaEval's figures from stored verdicts.

Nothing heavy is imported at the top: `sparring --help` imports this module.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparring.console import debug_option

if TYPE_CHECKING:
    from rich.table import Table

    from sparring.evaluation.alpaca_eval.figures import Figures
    from sparring.evaluation.alpaca_eval.length import LengthControlled
    from sparring.evaluation.alpaca_eval.verdicts import Verdicts

_FILE = click.Path(path_type=Path)


@click.command("alpaca-eval", short_help="AlpacaEval's figures of stored verdicts.")
@click.option("--annotations", type=_FILE, required=True, help="Verdicts: annotations.json, or a compact .jsonl file.")
@click.option("--instructions", type=_FILE, help="The instructions, for figures by subset.")
@click.option("--difficulty", type=_FILE, help="CSV of the instructions' difficulties.")
@click.option("--weights", type=_FILE, help="CSV of published length-control weights; needs --difficulty.")
@click.option("--model", help="Row of --weights.  [default: the verdicts' generator_2, else their file's name]")
@click.option("--refit-length", is_flag=True, help="Fit the length control to these verdicts (with any --difficulty).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def alpaca_eval(
    *,
    annotations: Path,
    instructions: Path | None,
    difficulty: Path | None,
    weights: Path | None,
    model: str | None,
    refit_length: bool,
    as_json: bool,
) -> None:
    """AlpacaEval's figures of stored verdicts, in percent, as its leaderboard has them.

    The length-controlled win rate comes from published weights (--difficulty and --weights: verdicts against GPT-4's
    baseline), or is fitted to the verdicts at hand (--refit-length); a refitted one is not comparable with published
    ones.
    """
    if weights is not None and (difficulty is None or refit_length):
        raise click.UsageError("--weights needs --difficulty, and --refit-length does without --weights")
    if difficulty is not None and weights is None and not refit_length:
        raise click.UsageError("--difficulty needs --weights (published) or --refit-length")
    if model is not None and weights is None:
        raise click.UsageError("--model names a row of --weights, which is not given")
    from sparring.evaluation.alpaca_eval.data import load_instructions
    from sparring.evaluation.alpaca_eval.figures import figures, figures_by_subset
    from sparring.evaluation.alpaca_eval.verdicts import read_verdicts

    verdicts = read_verdicts(annotations, None if instructions is None else load_instructions(instructions))
    overall, subsets = figures(verdicts.preferences), figures_by_subset(verdicts)
    length = _length(verdicts, difficulty, weights, model) if weights or refit_length else None
    if as_json:
        click.echo(json.dumps(_record(verdicts, overall, subsets, length), indent=2, ensure_ascii=False))
        return
    from sparring.display import make_console

    screen = make_console()
    screen.print(figures_table(verdicts.model, overall, subsets))
    if length is not None:
        kind = "refitted to these verdicts" if length.refitted else "published weights"
        screen.print(f"Length-controlled win rate: {length.win_rate:.2f} % ({kind})")
    if overall.unparsed:
        screen.print(f"{overall.unparsed} unparsed verdicts are left out.")


def figures_table(name: str, overall: Figures, subsets: dict[str, Figures]) -> Table:
    """The figures for a terminal: overall, then each subset."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    result = Table(
        title=f"AlpacaEval: {escape(name)}",
        title_justify="left",
        header_style="bold",
        box=box.HORIZONTALS,
        padding=(0, 1, 0, 0),
    )
    result.add_column("", overflow="fold", max_width=24)
    for heading in ("n", "win rate\n%", "standard\nerror", "discrete\nwin rate %", "wins/draws/\nlosses"):
        result.add_column(heading, justify="right", no_wrap=True)
    for label, row in (("overall", overall), *subsets.items()):
        result.add_row(
            escape(label),
            str(row.n_total),
            f"{row.win_rate:.2f}",
            f"{row.standard_error:.2f}" if isfinite(row.standard_error) else "–",
            f"{row.discrete_win_rate:.2f}",
            f"{row.n_wins}/{row.n_draws}/{row.n_wins_base}",
            style="bold" if row is overall else None,
        )
    return result


def _length(verdicts: Verdicts, difficulty: Path | None, weights: Path | None, model: str | None) -> LengthControlled:
    from sparring.evaluation.alpaca_eval.length import published, read_difficulty, read_weights, refit

    difficulties = None if difficulty is None else read_difficulty(difficulty)
    if weights is None:
        return refit(verdicts, difficulties)
    assert difficulties is not None
    table, name = read_weights(weights), model or verdicts.model
    if name not in table:
        raise ValueError(f"{weights} has no row {name!r}: name one of its rows with --model, or use --refit-length")
    return published(verdicts, difficulties, table[name])


def _record(
    verdicts: Verdicts, overall: Figures, subsets: dict[str, Figures], length: LengthControlled | None
) -> dict[str, Any]:
    return {
        "model": verdicts.model,
        "baseline": verdicts.baseline,
        **overall.to_json(),
        **(length.to_json() if length else {}),
        "subsets": {name: row.to_json() for name, row in subsets.items()},
    }
