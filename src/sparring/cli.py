"""The command `sparring`.

Nothing heavy is imported at the top: help and usage errors answer at once.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import sparring
from sparring.cli_data import data
from sparring.cli_demo_vision import demo_vision
from sparring.cli_engines import plan, serve_command
from sparring.cli_eval import compare, evaluate, print_comparison
from sparring.cli_report import report, samples
from sparring.cli_settings import OVERRIDES, configuration, described, run_options
from sparring.cli_sft import sft
from sparring.console import (
    Commands,
    command,
    debug_option,
    free_folder,
    plain_streams,
    quiet_libraries,
    resumable,
    shown,
)
from sparring.parallel import speaks

if TYPE_CHECKING:
    from rich.console import Console

    from sparring.display import Display
    from sparring.evaluation.comparison import Evaluation
    from sparring.settings import RunConfig

# Said once, after the demo's table.
ABILITY_NOTE = (
    "Read the gain with care: it is ability brought out, not new skill. Pretraining hid skip, reverse, sort and flip "
    "behind slips; chain, fold, swap and unique, which it seldom showed at high levels, gain nothing "
    "(docs/experiments.md). Quality is scored by the rubric's program, which agrees with the frozen model in 97 % of "
    "exchanges and is cheaper; game.quality.source=reference asks the model, as the paper does."
)

Play = Callable[["Display | None"], "Evaluation | None"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sparring.__version__, prog_name="sparring")
@debug_option
def main() -> None:
    """Language models that improve by playing against themselves."""
    plain_streams()


@main.command(short_help="Train the shipped tiny model against itself.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of self-play.  [default: the recipe's]")
@click.option("--out", type=click.Path(path_type=Path), help="New folder of the run.  [default: runs/demo-<time>]")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Every random draw derives from it."
)
@click.option("--method", type=click.Choice(["lsp", "lsp-zero", "grpo"]), default="lsp", show_default=True)
@OVERRIDES
@debug_option
def demo(steps: int | None, out: Path | None, seed: int, method: str, overrides: tuple[str, ...]) -> None:
    """Train the shipped tiny model against itself, compare it with its start, write the report.

    Needs no data and no accelerator; takes minutes. KEY=VALUE changes any setting
    (`sparring recipes --settings` lists them).
    """
    given = ["trackers=none", f"seed={seed}", *([] if steps is None else [f"steps={steps}"]), *overrides]
    config = configuration(method, None, None, tuple(given))
    if speaks():
        click.echo(f"{method} on the arena, {config.steps} steps: a tiny model plays against itself.")
    _play_new(config, out or _new_folder("demo"), closing=ABILITY_NOTE)


@main.command(short_help="Train by a recipe, or resume a run.")
@run_options
@click.option("--out", type=click.Path(path_type=Path), help="New folder of the run.  [default: runs/<recipe>-<time>]")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
@debug_option
def train(*, out: Path | None, resume: Path | None, dry_run: bool, **options: Any) -> None:
    """Train by a RECIPE (`sparring recipes`); settings from its preset, then --config, then KEY=VALUE.

    \b
    sparring train lsp --preset paper-lora --init Qwen/Qwen3-0.6B --reward Skywork/Skywork-Reward-V2-Qwen3-0.6B
    sparring train grpo --preset paper --reward score.py:reward game.prompts=alpaca.jsonl learner.lr=1e-6
    sparring train --config runs/lsp-1/config.yaml seed=1
    sparring train --resume runs/lsp-1
    """
    if resume is not None:
        if out or any(options.values()):
            raise click.UsageError(
                "--resume goes on with the run's own settings and takes no others; "
                f"for a new run from its model: {command('train', 'RECIPE', '--init', str(resume))}"
            )
        _resume(resume, dry_run)
        return
    config = described(**options)
    if dry_run:
        if speaks():
            click.echo(config.to_yaml(), nl=False)
        return
    _play_new(config, out or _new_folder(config.recipe))


for _command in (demo_vision, sft, evaluate, compare, report, samples, plan, serve_command, data):
    main.add_command(_command)


@main.command(short_help="List recipes and settings.")
@click.argument("name", required=False)
@click.option("--preset", help="Variant of the recipe.  [default: its first]")
@click.option("--settings", is_flag=True, help="Every setting with its value and meaning.")
@debug_option
def recipes(name: str | None, preset: str | None, settings: bool) -> None:
    """List the recipes; with a NAME, what it does and its settings as YAML, ready for --config."""
    from sparring.recipes import RECIPES
    from sparring.recipes import recipe as configuration

    if preset is not None and name is None:
        raise click.UsageError("--preset needs the recipe's NAME")
    if settings:
        _print_settings(None if name is None else configuration(name, preset))
    elif name is None:
        for known, function in RECIPES.items():
            text = inspect.getdoc(function) or ""
            click.echo(f"{known:11} {text.splitlines()[0]}\n{'':11} presets: {', '.join(_presets(text))}")
        click.echo("\nMore: sparring recipes NAME, sparring recipes --settings")
    else:
        config = configuration(name, preset)
        text = inspect.getdoc(RECIPES[name]) or ""
        click.echo("\n".join(f"# {line}".rstrip() for line in text.splitlines()))
        click.echo(config.to_yaml(), nl=False)


def _presets(docstring: str) -> list[str]:
    """The names listed under "Presets:" in a recipe's docstring."""
    return re.findall(r"^ {4}([\w-]+):", docstring.partition("Presets:")[2], re.MULTILINE)


def _print_settings(config: RunConfig | None) -> None:
    from sparring.config import describe

    values = None if config is None else config.model_dump(mode="json")
    for name, default, meaning in describe():
        click.echo(f"{name}={default if values is None else _value(values, name)}\n    {meaning}")


def _value(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values[key]
    return "null" if values is None else values


def _new_folder(name: str) -> Path:
    return free_folder(Path("runs") / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}")


def _display(title: str, folder: Path) -> tuple[Console, Display]:
    from sparring.display import make_console, open_display

    console = make_console()
    return console, open_display(console, title, folder)


def _play_new(config: RunConfig, out: Path, closing: str | None = None) -> None:
    def play(display: Display | None) -> Evaluation | None:
        from sparring.run import train as train_run

        return train_run(config, out, observer=display)

    _play(play, out, f"{config.recipe} {config.preset}", closing)


def _resume(run: Path, dry_run: bool) -> None:
    from sparring.config import read_yaml, validated

    if dry_run:
        if speaks():
            click.echo(validated(read_yaml(run / "config.yaml")).to_yaml(), nl=False)
        return

    def play(display: Display | None) -> Evaluation | None:
        from sparring.run import resume as resume_run

        return resume_run(run, observer=display)

    _play(play, run, run.name, None)


def _play(play: Play, run: Path, title: str, closing: str | None) -> None:
    """Watch a run to its end, then say what came of it and where everything is."""
    if not speaks():  # one of several processes: rank 0 tells, and writes
        play(None)
        return
    began = time.monotonic()
    click.echo(f"Run folder: {shown(run)}")
    console, display = _display(title, run)
    with _told_by_a_page(run), resumable(run, display), display:
        display.said("starting")
        quiet_libraries(display)
        evaluation = play(display)
    if evaluation is not None:
        print_comparison(console, evaluation)
        if closing:
            console.print(closing)
    else:
        click.echo(f"\nThe {_domain(run)} domain has no held-out test, so the model was not compared with its start.")
    from sparring.report.page import write_report

    page = write_report([run])
    name = shown(run)
    click.echo(f"\nDone in {time.monotonic() - began:.0f} seconds.")
    for label, text in (
        ("Report", shown(page)),
        ("Model", shown(run / "model")),
        ("Metrics", shown(run / "metrics.jsonl")),
        *_next_steps(run, name),
    ):
        click.echo(f"{label:8} {text}")


@contextmanager
def _told_by_a_page(run: Path) -> Iterator[None]:
    """What is to be done about an alarm is decided by reading the report."""
    try:
        yield
    except RuntimeError as error:
        from sparring.health.guard import UnhealthyRun

        if isinstance(error, UnhealthyRun):
            error.add_note(f"Look at what happened: {command('report', shown(run))}")
        raise


def _next_steps(run: Path, name: str) -> list[tuple[str, str]]:
    """What the trained model can be taken for next, as lines of a label and a command."""
    from sparring.config import read_yaml, validated

    config = validated(read_yaml(run / "config.yaml"))
    go_on = "   (go on from the trained model)"
    if config.game.domain == "arena":
        again = command("eval", name, "--seed", "3") + "   (the same comparison on other questions)"
        return [("Next", command("train", "lsp", "--init", name) + go_on), ("", again)]
    if config.game.domain == "pictures":
        again = command("train", "vision-sr1", "--init", name) + go_on
        return [("Next", command("eval", "lsr", name) + "   (how often it is right without having seen)"), ("", again)]
    reward = config.game.reward
    target = reward.model or reward.function
    given = ("--reward", shown(Path(target)) if Path(target).exists() else target) if target else ()
    preset = config.preset if config.preset.startswith("paper") else "paper"
    recipe = "vision-sr1" if config.game.kind == "vision" else "lsp"
    return [("Next", command("train", recipe, "--preset", preset, "--init", name, *given) + go_on)]


def _domain(run: Path) -> str:
    from sparring.config import read_yaml, validated

    return validated(read_yaml(run / "config.yaml")).game.domain
