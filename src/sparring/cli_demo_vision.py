"""`sparring demo-vision`: Vision-SR1 and answers alone, side by side, on the shipped tiny model that sees.

Nothing heavy is imported at the top: help and usage errors answer at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparring.cli_evaluated import quiet_screen
from sparring.cli_settings import OVERRIDES, configuration
from sparring.console import command, debug_option, free_folder, quiet_libraries, shown

if TYPE_CHECKING:
    from rich.table import Table

    from sparring.display import Display
    from sparring.evaluation.lsr import Result
    from sparring.settings import RunConfig

START = "start"
ARMS = {"answer-only": "pictures-answer-only", "vision-sr1": "pictures"}
"""Runs of the demo and their presets: the same but for the second pass."""
WHAT_IT_SHOWS = ("game.kind", "game.domain", "game.perception.visual_weight")
"""Settings that make the two runs what they are."""
TEMPERATURES = (0.0, 1.0)

NOTE = (
    "Read it with care: the start can see nearly everything and says less than it sees, so the gain in accuracy is "
    "ability brought out. A description is sufficient where a program finds the answer in it; whether it is true "
    "beyond the question is what precision and recall of the unasked cells say (docs/vision.md)."
)


@click.command("demo-vision", short_help="Train the shipped model that sees: answers alone, and Vision-SR1.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of each run.  [default: the recipe's]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of both runs.  [default: runs/demo-vision-<time>]")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Every random draw derives from it."
)
@OVERRIDES
@debug_option
def demo_vision(steps: int | None, out: Path | None, seed: int, overrides: tuple[str, ...]) -> None:
    """Train a tiny model that sees twice from the same start: paid for answers alone, and by Vision-SR1; compare both.

    Accuracy, Language Shortcut Rate and how true descriptions are, on held-out pictures, greedy and at temperature 1;
    and one page with pictures, descriptions and both passes. Needs no data and no accelerator; takes minutes. An
    interrupted demo goes on with the same --out.
    """
    for key in (override.partition("=")[0].strip() for override in overrides):
        if key in WHAT_IT_SHOWS:
            raise click.UsageError(f"{key} is what the demo compares: `sparring train vision-sr1` changes it")
    given = ("trackers=none", f"seed={seed}", *(() if steps is None else (f"steps={steps}",)), *overrides)
    configs = {arm: configuration("vision-sr1", preset, None, given) for arm, preset in ARMS.items()}
    out = out or free_folder(Path("runs") / f"demo-vision-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
    for arm, config in configs.items():
        _require_same(config, out / arm)
    click.echo(f"Answers alone and Vision-SR1, {configs['vision-sr1'].steps} steps each. Folder: {shown(out)}")
    try:
        _play(configs, out)
    except BaseException as error:
        if out.is_dir():
            error.add_note(f"Go on with: {command('demo-vision', '--out', shown(out))} and the same options")
        raise


def _play(configs: Mapping[str, RunConfig], out: Path) -> None:
    """Train what is not trained, look at what was not looked at, tell all of it."""
    from sparring.display import make_console
    from sparring.report.page import write_report

    began = time.monotonic()
    for arm, config in configs.items():
        _run(config, out / arm)
    results = _looked(configs["vision-sr1"], out)
    console = make_console()
    console.print(_table(results))
    console.print(NOTE)
    page = write_report([out / arm for arm in ARMS], out)
    other = ("--seed", "3", "--name", "lsr-seed3")
    click.echo(f"\nDone in {time.monotonic() - began:.0f} seconds.")
    for label, text in (
        ("Report", shown(page)),
        ("Models", ", ".join(shown(out / arm / "model") for arm in ARMS)),
        ("Next", command("eval", "lsr", shown(out / "vision-sr1"), *other) + "   (on other pictures)"),
    ):
        click.echo(f"{label:8} {text}")


def _run(config: RunConfig, run: Path) -> None:
    """One of the two, to its end; an interrupted one from where it stopped."""
    from sparring.display import make_console, open_display
    from sparring.run import resume, train

    if (run / "model").is_dir() and (run / "evaluation.json").is_file():
        click.echo(f"{run.name}: trained already")
        return
    display: Display = open_display(make_console(), run.name, run)
    with display:
        quiet_libraries(display)
        begun = (run / "config.yaml").is_file()
        display.said(f"{run.name}: going on" if begun else f"{run.name}: starting")
        resume(run, observer=display) if begun else train(config, run, observer=display)


def _require_same(config: RunConfig, run: Path) -> None:
    """A run that was begun has these settings; what `auto` and 0 stood for when it began is its own affair."""
    if not (run / "config.yaml").is_file():
        return
    from sparring.config import read_yaml, validated
    from sparring.paths import anchored
    from sparring.run import pinned

    given, meant = (_flat(one.model_dump()) for one in (anchored(config), anchored(pinned(config))))
    begun = _flat(validated(read_yaml(run / "config.yaml")).model_dump())
    other = [name for name, value in given.items() if begun[name] != value and meant[name] == value]
    if other:
        raise click.UsageError(
            f"{shown(run)} was begun with {other[0]}={begun[other[0]]}, not {given[other[0]]}: give the same settings, "
            "or another --out"
        )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return found


def _looked(config: RunConfig, out: Path) -> list[tuple[str, float, Result]]:
    """The start and both runs looked at; the start's results lie beside the first run's."""
    from sparring.evaluation.document import FOLDER
    from sparring.evaluation.lsr import Result, domain_items, observed
    from sparring.pictures.domain import PICTURES

    assert PICTURES.sufficient is not None
    seed, n = config.evaluation.seed, config.evaluation.final_n
    items = domain_items(config, seed, n)
    results: list[tuple[str, float, Result]] = []
    with quiet_screen("looking") as (_, say):
        for name in (START, *ARMS):
            folder = out / (next(iter(ARMS)) if name == START else name) / FOLDER
            path = config.model.path if name == START else str(out / name)
            folder.mkdir(parents=True, exist_ok=True)
            model = config.model.model_copy(update={"path": path})
            for temperature in TEMPERATURES:
                asked = config.model_copy(update={"model": model})
                found = observed(asked, items, folder, say, temperature=temperature, seed=seed)
                called = "lsr" + (f"-t{temperature:g}" if temperature else "")
                settings = {
                    "grader": "pictures domain's program",
                    "temperature": temperature,
                    "seed": seed,
                    "n": n,
                    "prompts": None,
                    "split": "train",
                    "max_new_tokens": config.game.solver.max_new_tokens,
                    "domain": config.game.domain,
                }
                result = Result.of(found, asked, PICTURES.sufficient, name=called, model=path, settings=settings)
                result.write(folder / (f"{called}-start.json" if name == START else f"{called}.json"))
                results.append((name, temperature, result))
    return results


def _table(results: list[tuple[str, float, Result]]) -> Table:
    from sparring.evaluation.tables import percent, plain_table

    headings = (
        *("accuracy", "LSR, lower is better\n[95 % interval]", "sees\nenough"),
        *("precision\nasked / not", "recall\nasked / not"),
    )
    table = plain_table("Held-out pictures: the start, answers alone, Vision-SR1", headings)
    for name, temperature, result in results:
        one, true = result.figures, result.record["fidelity"]
        table.add_row(
            f"{name}, {'greedy' if temperature == 0 else f'T = {temperature:g}'}",
            f"{one.accuracy.value:.1%}",
            percent(one.lsr.value, one.lsr.ci95),
            f"{one.sufficient.value:.1%}",
            *(_both(true, figure) for figure in ("precision", "recall")),
            end_section=temperature == TEMPERATURES[-1],
        )
    return table


def _both(true: dict[str, Any], figure: str) -> str:
    said = [true[part][figure] for part in ("asked", "unasked")]
    return " / ".join("–" if value is None else f"{value:.1%}" for value in said)
