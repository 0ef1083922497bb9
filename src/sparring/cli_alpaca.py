"""`sparring eval alpaca-eval`: AlpacaEval's figures, of a model before a judge or of stored verdicts.

Nothing heavy is imported at the top: `sparring --help` imports this module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparring.cli_evaluated import answered, going_on, opponent, quiet_screen, subject
from sparring.cli_judges import Judging, judge_options
from sparring.cli_settings import OVERRIDES
from sparring.console import debug_option, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sparring.evaluation.alpaca_eval.data import Instruction
    from sparring.evaluation.alpaca_eval.figures import Figures
    from sparring.evaluation.alpaca_eval.length import LengthControlled
    from sparring.evaluation.alpaca_eval.verdicts import Verdicts

_FILE = click.Path(path_type=Path)


@click.command("alpaca-eval", short_help="AlpacaEval, by a judge or from stored verdicts.")
@click.argument("model", required=False, metavar="[RUN_OR_MODEL]")
@OVERRIDES
@click.option("--annotations", type=_FILE, help="Stored verdicts instead: annotations.json, or a compact .jsonl file.")
@click.option("--instructions", type=_FILE, help="A file of the instructions.  [default: the 805 from the hub]")
@click.option(
    "--base", metavar="MODEL", help="Against this run's, model's or file's answers.  [default: the run's start]"
)
@click.option("--baseline", metavar="GENERATOR", help="Against these published answers (gpt4_1106_preview) instead.")
@click.option("--n", type=click.IntRange(min=1), help="Only the first N instructions.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.01, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the answers' draws.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option(
    "--out", type=_FILE, help="Folder for answers and results.  [default: RUN/evaluations, or evaluations/MODEL]"
)
@judge_options(required=False)
@click.option("--difficulty", type=_FILE, help="CSV of the instructions' difficulties.")
@click.option("--weights", type=_FILE, help="CSV of published length-control weights; needs --difficulty.")
@click.option("--row", help="Row of --weights.  [default: the verdicts' generator_2, else their file's name]")
@click.option("--refit-length", is_flag=True, help="Fit the length control to these verdicts (with any --difficulty).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def alpaca_eval(
    *,
    model: str | None,
    annotations: Path | None,
    difficulty: Path | None,
    weights: Path | None,
    row: str | None,
    refit_length: bool,
    as_json: bool,
    **running: Any,
) -> None:
    """AlpacaEval's figures, in percent, as its leaderboard has them.

    Of a MODEL (a run, a model, or its answers in a model_outputs.json) before a judge, each pair shown once, in the
    order that AlpacaEval draws; answers, verdicts and the result are kept in OUT. Or of stored verdicts.

    \b
    sparring eval alpaca-eval runs/lsp --judge gpt-4o                              # against the run's own start
    sparring eval alpaca-eval runs/lsp --judge gpt-4o --baseline gpt4_1106_preview
    sparring eval alpaca-eval --annotations annotations.json --json

    The length-controlled win rate comes from published weights (--difficulty and --weights: verdicts against GPT-4's
    baseline), or is fitted to the verdicts at hand (--refit-length); a refitted one is not comparable with published
    ones.
    """
    if weights is not None and (difficulty is None or refit_length):
        raise click.UsageError("--weights needs --difficulty, and --refit-length does without --weights")
    if difficulty is not None and weights is None and not refit_length:
        raise click.UsageError("--difficulty needs --weights (published) or --refit-length")
    if row is not None and weights is None:
        raise click.UsageError("--row names a row of --weights, which is not given")
    if (model is None) == (annotations is None):
        raise click.UsageError("give either a RUN_OR_MODEL to judge, or --annotations with stored verdicts")
    from sparring.evaluation.alpaca_eval.figures import figures, figures_by_subset

    if annotations is not None:
        verdicts, judged = _stored(annotations, running["instructions"]), None
    else:
        assert model is not None
        judged = _judged(model, as_json=as_json, **running)
        verdicts = judged.verdicts
    overall, subsets = figures(verdicts.preferences), figures_by_subset(verdicts)
    if judged is not None:  # before the length control, which may fail on verdicts that all go one way
        judged.write(_record(verdicts, overall, subsets, None))
    length = _length(verdicts, difficulty, weights, row) if weights or refit_length else None
    record = _record(verdicts, overall, subsets, length)
    if judged is not None and length is not None:
        judged.write(record)
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    from sparring.display import make_console

    screen = make_console()
    screen.print(figures_table(verdicts.model, overall, subsets))
    if length is not None:
        kind = "refitted to these verdicts" if length.refitted else "published weights"
        screen.print(f"Length-controlled win rate: {length.win_rate:.2f} % ({kind})")
    if overall.unparsed:
        screen.print(f"{overall.unparsed} unparsed verdicts are left out.")
    if judged is not None:
        click.echo(
            f"Written to {shown(judged.file('.json'))}; the verdicts are in {judged.name}-annotations.json beside it"
        )


def _stored(annotations: Path, instructions: Path | None) -> Verdicts:
    from sparring.evaluation.alpaca_eval.data import load_instructions
    from sparring.evaluation.alpaca_eval.verdicts import read_verdicts

    return read_verdicts(annotations, None if instructions is None else load_instructions(instructions))


@dataclass(frozen=True)
class _Judged:
    """A model's verdicts, what the evaluation is called, where it is kept, and how it was made."""

    verdicts: Verdicts
    name: str
    folder: Path
    settings: dict[str, Any]

    def file(self, ending: str) -> Path:
        return self.folder / f"{self.name}{ending}"

    def write(self, record: dict[str, Any]) -> None:
        """The evaluation in the one form that all have; AlpacaEval's own figures are in it as they are."""
        from sparring.evaluation.alpaca_eval.figures import intervals
        from sparring.evaluation.document import document
        from sparring.files import write_json_atomic

        overall, subsets = intervals(self.verdicts)
        who = {"model": self.verdicts.model, "base": self.verdicts.baseline}
        body = {"overall": overall, "subsets": subsets, "alpaca_eval": record}
        made = document("alpaca-eval", self.name, "win_rate", **who, body=body, settings=self.settings)
        write_json_atomic(self.file(".json"), made)


def _judged(
    model: str,
    *,
    overrides: tuple[str, ...],
    instructions: Path | None,
    base: str | None,
    baseline: str | None,
    n: int | None,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    out: Path | None,
    as_json: bool,
    **judging: Any,
) -> _Judged:
    if judging["judge"] is None:
        raise click.UsageError("--judge TARGET says who judges (gpt-4o, local:MODEL, reward:MODEL ...)")
    if base is not None and baseline is not None:
        raise click.UsageError("--base and --baseline are two answers to one question: give one of them")
    judging_by = Judging(**judging)
    asked = subject(model, overrides)
    against = baseline or opponent(asked, base, "--base or --baseline")
    folder = asked.folder(out)
    with quiet_screen("alpaca-eval", quietly=as_json) as (_, say), going_on(folder):
        from sparring.evaluation.alpaca_eval.data import HUB_ID, load_instructions, write_annotations
        from sparring.evaluation.answers import questions_of
        from sparring.evaluation.document import slug
        from sparring.evaluation.judged import one_order

        name = "alpaca_eval" if baseline is None else f"alpaca_eval-{slug(baseline)}"
        items = load_instructions(instructions or HUB_ID)[:n]
        questions = questions_of(items)
        published = None if baseline is None else _published(items, baseline)
        given = {"temperature": temperature, "seed": seed}
        with judging_by.opening(asked.config, folder) as open_judge:
            paths = (asked.path,) if published is not None else (asked.path, against)
            texts = answered(asked, paths, questions, folder, say, tokens=max_new_tokens, **given)
            mine, other = texts[0], published or texts[1]
            verdicts, rows = one_order(items, mine, other, open_judge(), say, model=asked.path, baseline=against)
        write_annotations(folder / f"{name}-annotations.json", rows)
    settings = {
        "instructions": None if instructions is None else str(instructions),
        "n": n,
        "max_new_tokens": max_new_tokens,
        **given,
        **judging_by.settings(),
    }
    return _Judged(verdicts, name, folder, settings)


def _published(instructions: Sequence[Instruction], baseline: str) -> list[str]:
    """A baseline's own answers, which come with the instructions."""
    missing = [item for item in instructions if baseline not in item.references]
    if missing:
        known = ", ".join(sorted({name for item in instructions for name in item.references})) or "none"
        raise ValueError(f"--baseline: {len(missing)} instructions have no answer of {baseline!r}; they have: {known}")
    return [item.references[baseline] for item in instructions]


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


def _length(verdicts: Verdicts, difficulty: Path | None, weights: Path | None, row: str | None) -> LengthControlled:
    from sparring.evaluation.alpaca_eval.length import published, read_difficulty, read_weights, refit

    difficulties = None if difficulty is None else read_difficulty(difficulty)
    if weights is None:
        return refit(verdicts, difficulties)
    assert difficulties is not None
    table, name = read_weights(weights), row or verdicts.model
    if name not in table:
        raise ValueError(f"{weights} has no row {name!r}: name one of its rows with --row, or use --refit-length")
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
