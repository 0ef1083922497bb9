"""`sparring eval`: a model against its base, before a judge, on benchmarks; and `sparring compare`.

Nothing heavy is imported at the top: help and usage errors answer at once.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparring.cli_alpaca import alpaca_eval
from sparring.cli_evaluated import answered, going_on, is_answers, named, opponent, quiet_screen, subject
from sparring.cli_judges import Judging, judge_options
from sparring.cli_perception import lsr
from sparring.cli_settings import OVERRIDES
from sparring.cli_vision import lmms_eval, vision
from sparring.console import debug_option, shown

if TYPE_CHECKING:
    from rich.console import Console

    from sparring.cli_evaluated import Said
    from sparring.evaluation.answers import Question
    from sparring.evaluation.comparison import Evaluation

HELD_OUT, ALPACA_EVAL = "held-out", "alpaca-eval"
BENCHMARKS = {
    "gsm8k": "Grade-school mathematics.",
    "math500": "500 problems of MATH.",
    "humaneval": "Python functions, run in a sandbox.",
    "ifeval": "Instructions that a program can check.",
}
_FILE = click.Path(path_type=Path)
_OUT = click.option(
    "--out", type=_FILE, help="Folder for answers and results.  [default: RUN/evaluations, or evaluations/MODEL]"
)
_TOKENS = click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer.  [default: the run's]")


class Kinds(click.Group):
    """A group whose first word may also be a run or a model: `sparring eval RUN` is `sparring eval held-out RUN`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command; for anything that is not nearly one of their names, the held-out comparison."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(args[0], self.commands, n=1)
        if near and not Path(args[0]).exists():
            raise click.UsageError(f"No such command or run {args[0]!r}. Did you mean {near[0]!r}?", ctx)
        return HELD_OUT, self.commands[HELD_OUT], args

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Options in the first place are those of the held-out comparison."""
        own = {"--help", "-h", "--debug"}
        return super().parse_args(ctx, [HELD_OUT, *args] if args and args[0][0] == "-" and args[0] not in own else args)


@click.group("eval", cls=Kinds, short_help="Compare a model with its base, before a judge, on benchmarks.")
@debug_option
def evaluate() -> None:
    """Evaluate a model: `sparring eval RUN` compares a run with its base on the held-out questions of its domain.

    All results have one form (docs/evaluation.md); `sparring compare` puts several into one table.
    """


@evaluate.command(HELD_OUT, short_help="Against the base on the domain's held-out questions (what `eval RUN` does).")
@click.argument("run_or_model", metavar="RUN_OR_MODEL")
@click.option("--base", metavar="MODEL", help="Compare with this model.  [default: what the run started from]")
@click.option("--n", type=click.IntRange(min=1), help="Held-out questions a split.  [default: the run's]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the test set.  [default: the run's]")
@click.option("--json", "file", type=_FILE, help="Write here, not to the run's evaluation.json.")
@debug_option
def held_out(run_or_model: str, base: str | None, n: int | None, seed: int | None, file: Path | None) -> None:
    """Compare a run's model, or any model, with its base on held-out questions.

    A run's evaluation.json is written anew, unless --base, --n or --seed make it another comparison.
    """
    another = base is not None or n is not None or seed is not None
    asked = subject(run_or_model, (), recipe="lsp", preset="arena")
    base = base or asked.base
    if base is None:
        raise click.UsageError(f"{run_or_model} is no run, so its base is not known: give --base MODEL")
    if file is None and asked.run is not None and not another:
        file = asked.run / "evaluation.json"
    with quiet_screen(f"evaluating {run_or_model}") as (console, say):
        say(f"evaluating {run_or_model} and {base}")
        from sparring.files import write_json_atomic
        from sparring.run import evaluate as compare_models

        evaluation, record = compare_models(asked.config, asked.path, base, n=n, seed=seed)
        if file is not None:
            write_json_atomic(file, record)
    print_comparison(console, evaluation)
    if file is not None:
        click.echo(f"Written to {shown(file)}")


@evaluate.command("win-rate", short_help="Against the base before a judge, every pair in both orders.")
@click.argument("model", metavar="RUN_OR_MODEL")
@OVERRIDES
@click.option(
    "--base", metavar="MODEL", help="Against this run, model or outputs file.  [default: what the run started from]"
)
@click.option("--prompts", required=True, metavar="SOURCE", help="File, folder or hub id of prompts; or alpaca-eval.")
@click.option("--column", help="The prompt's column.  [default: the first of messages, prompt, instruction ...]")
@click.option("--subset", metavar="COLUMN", help="Column that names each prompt's subset.")
@click.option("--split", default="train", show_default=True, help="Of a folder or a hub data set.")
@click.option("--hub-subset", metavar="NAME", help="Configuration of a hub data set that has several.")
@click.option("--n", type=click.IntRange(min=1), help="Only the first N prompts.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.01, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the answers' draws.")
@_TOKENS
@click.option("--name", help="What the result is called.  [default: win-rate-<prompts>]")
@_OUT
@judge_options(required=True)
@debug_option
def win_rate(
    *,
    model: str,
    overrides: tuple[str, ...],
    base: str | None,
    prompts: str,
    column: str | None,
    subset: str | None,
    split: str,
    hub_subset: str | None,
    n: int | None,
    temperature: float,
    seed: int,
    max_new_tokens: int | None,
    name: str | None,
    out: Path | None,
    **judging: Any,
) -> None:
    """Which of two models answers better, by a judge that sees every pair in both orders.

    MODEL and --base are runs, models, or files of answers in AlpacaEval's form (model_outputs.json). Answers and
    verdicts are kept in OUT: after an interruption, or with another judge, nothing is answered or asked twice.
    Another judge's result needs a --name of its own, or it takes the place of this one.
    KEY=VALUE changes how both models are loaded and asked (model.dtype=bfloat16, game.solver.system=...).

    \b
    sparring eval win-rate runs/lsp --prompts my_prompts.jsonl --judge gpt-4o --max-calls 2000
    sparring eval win-rate runs/lsp --prompts alpaca-eval --judge reward:Skywork/Skywork-Reward-V2-Llama-3.2-3B
    sparring eval win-rate runs/lsp --prompts p.jsonl --judge MODEL --judge-url http://127.0.0.1:8000/v1
    """
    judging_by = Judging(**judging)
    asked = subject(model, overrides)
    against = opponent(asked, base)
    name = named(name, f"win-rate-{'alpaca_eval' if prompts == ALPACA_EVAL else Path(prompts).stem}")
    folder = asked.folder(out)
    tokens = max_new_tokens or asked.config.game.solver.max_new_tokens
    given = {"temperature": temperature, "seed": seed}
    with quiet_screen(name) as (console, say), going_on(folder):
        from sparring.evaluation.document import document
        from sparring.evaluation.judged import both_orders
        from sparring.files import write_json_atomic

        questions = _questions(prompts, say, column=column, subset=subset, split=split, hub_subset=hub_subset, n=n)
        with judging_by.opening(asked.config, folder) as open_judge:
            mine, other = answered(asked, (model, against), questions, folder, say, tokens=tokens, **given)
            judge = open_judge()
            judged = both_orders(questions, mine, other, judge, say)
        chosen = {"prompts": prompts, "column": column, "subset": subset, "split": split, "hub_subset": hub_subset}
        settings = {**chosen, "n": n, "max_new_tokens": tokens, **given, **judging_by.settings()}
        body = judged.rates.to_json()
        record = document("win-rate", name, "win_rate", model=asked.path, base=against, body=body, settings=settings)
        write_json_atomic(folder / f"{name}.json", record)
        write_json_atomic(folder / f"{name}-verdicts.json", judged.rows)
    from sparring.evaluation.tables import win_rate_table

    console.print(win_rate_table(judged.rates, asked.path, against, judge.name))
    click.echo(f"Written to {shown(folder / f'{name}.json')}; the verdicts are in {name}-verdicts.json beside it")


def _questions(
    prompts: str,
    say: Said,
    *,
    column: str | None,
    subset: str | None,
    split: str,
    hub_subset: str | None,
    n: int | None,
) -> list[Question]:
    from sparring.evaluation.answers import questions_from, questions_of

    if prompts == ALPACA_EVAL:
        from sparring.evaluation.alpaca_eval.data import load_instructions

        if column or subset or hub_subset or split != "train":
            raise click.UsageError(
                "--column, --subset, --split and --hub-subset are for prompts of your own, and --prompts is alpaca-eval"
            )
        return questions_of(load_instructions()[:n])
    from sparring.data import Names, load_prompts

    names = Names("--prompts", "--split", "--hub-subset", "--column")
    found = load_prompts(prompts, column=column, split=split, subset=hub_subset, names=names)
    if found.skipped:
        say(f"{found.name}: {found.skipped} empty prompts skipped, {len(found)} are left")
    return questions_from(found, subset, n)


def _ks(given: str, samples: int) -> tuple[int, ...]:
    """The k of each pass@k."""
    try:
        ks = tuple(int(k) for k in given.split(",") if k.strip())
    except ValueError as error:
        raise click.UsageError(f"--pass-at reads like 1,5,10, not {given!r}") from error
    if wrong := [k for k in ks if not 1 <= k <= samples]:
        raise click.UsageError(f"--pass-at {wrong[0]} needs a k from 1 to --samples, which is {samples}")
    return ks


def _benchmark(name: str, about: str) -> click.Command:
    @click.command(name, short_help=about)
    @click.argument("model", metavar="RUN_OR_MODEL")
    @OVERRIDES
    @click.option("--base", metavar="MODEL", help="This one too, and the two compared item by item.")
    @click.option("--file", help="The set's file.  [default: fetched from the hub]")
    @click.option("--n", type=click.IntRange(min=1), help="Only the first N items.")
    @click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Answers an item.")
    @click.option("--pass-at", default="", metavar="K,...", help="pass@k for these k, at most --samples.")
    @click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
    @click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the answers' draws.")
    @click.option("--max-new-tokens", type=click.IntRange(min=1), default=1024, show_default=True)
    @_OUT
    @debug_option
    def command(*, model: str, overrides: tuple[str, ...], pass_at: str, out: Path | None, **given: Any) -> None:
        ks = _ks(pass_at, given["samples"])
        if given["samples"] > 1 and given["temperature"] == 0:
            raise click.UsageError("several --samples at --temperature 0 are all equal: raise it")
        asked = subject(model, overrides)
        base = None if given["base"] is None else opponent(asked, given["base"])
        for path in (asked.path, base):
            if path is not None and is_answers(path):
                raise click.UsageError(f"{path} is a file of answers, and {name} asks a model")
        folder = asked.folder(out)
        with quiet_screen(name) as (console, say), going_on(folder):
            from sparring.evaluation.accuracy import measure
            from sparring.files import write_json_atomic

            record, tables = measure(name, asked, folder, say, pass_at=ks, **given)
            write_json_atomic(folder / f"{name}.json", record)
        for table in tables:
            console.print(table)
        click.echo(f"Written to {shown(folder / f'{name}.json')}")

    command.help = f"""{about} Answers are greedy, one an item, unless --temperature and --samples say otherwise.

    \b
    sparring eval {name} runs/lsp
    sparring eval {name} MODEL --base OTHER --n 200
    """
    return command


@evaluate.command("lm-eval", short_help="Any benchmark of the lm-evaluation-harness.")
@click.argument("model", metavar="RUN_OR_MODEL")
@click.option("--tasks", required=True, metavar="TASK,...", help="The harness's names.")
@click.option("--shots", type=click.IntRange(min=0), help="Examples in the prompt.  [default: the task's]")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many items a task.")
@click.option("--device", help="cuda, cpu ...  [default: the harness's choice]")
@click.option("--dtype", default="auto", show_default=True)
@_OUT
@debug_option
def lm_eval(*, model: str, tasks: str, out: Path | None, **given: Any) -> None:
    """Run tasks of the lm-evaluation-harness (pip install 'sparring[lm-eval]') on a model's folder.

    \b
    sparring eval lm-eval runs/lsp --tasks mmlu_pro,arc_challenge
    """
    from sparring.evaluation.accuracy import harness_document
    from sparring.evaluation.harness import lm_eval as run_tasks
    from sparring.evaluation.tables import harness_table
    from sparring.files import write_json_atomic
    from sparring.lm.hub import find_folder
    from sparring.models import locate

    asked = subject(model, ())
    folder = asked.folder(out)
    names = [task.strip() for task in tasks.split(",")]
    at = find_folder(locate(asked.path), asked.config.model.revision, weights=True)
    with quiet_screen("lm-eval") as (console, say):
        say(f"the lm-evaluation-harness runs {', '.join(names)}")
        records = run_tasks(at, names, folder / "lm-eval", **given)
        write_json_atomic(folder / "lm-eval.json", harness_document(records, model, {"tasks": names, **given}))
    console.print(harness_table(records))
    click.echo(f"Written to {shown(folder / 'lm-eval.json')}")


@click.command(short_help="One table and figure of several runs' evaluations.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN_OR_FILE...")
@click.option("--name", help="Which evaluation.  [default: the only one that all have]")
@click.option("--plot", type=_FILE, help="Also a figure, .png or .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def compare(*, runs: tuple[str, ...], name: str | None, plot: Path | None, as_json: bool) -> None:
    """Methods by subsets, with 95 % intervals, as in the paper's figures 2 and 3.

    \b
    sparring compare runs/grpo runs/lsp-zero runs/lsp --plot methods.svg
    sparring compare runs/grpo runs/lsp --name win-rate-alpaca_eval
    """
    from sparring.evaluation.methods import Methods, draw, table

    methods = Methods.of([Path(run) for run in runs], name)
    if as_json:
        click.echo(json.dumps(methods.to_json(), indent=2))
    else:
        from sparring.display import make_console

        make_console().print(table(methods))
    if plot is not None:
        draw(methods, plot)
        if not as_json:
            click.echo(f"Figure: {shown(plot)}")


def print_comparison(console: Console, evaluation: Evaluation) -> None:
    """A held-out comparison as a table."""
    from sparring.evaluation.comparison import table

    console.print()
    console.print(table(evaluation))


for _name, _about in BENCHMARKS.items():
    evaluate.add_command(_benchmark(_name, _about))
evaluate.add_command(alpaca_eval)
evaluate.add_command(lsr)
evaluate.add_command(vision)
evaluate.add_command(lmms_eval)
