"""The command `sparring sft`.

Nothing heavy is imported at the top: help and usage errors answer at once.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparring.cli_settings import OVERRIDES
from sparring.console import command, debug_option, free_folder, quiet_libraries, resumable, shown
from sparring.parallel import speaks

if TYPE_CHECKING:
    from sparring.display import Display
    from sparring.settings.sft import SFTConfig

_SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=")


@click.command(short_help="Train on given answers (supervised fine-tuning).")
@click.argument("model", required=False)
@click.argument("data", required=False)
@OVERRIDES
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file of settings.")
@click.option("--out", type=click.Path(path_type=Path), help="New folder of the run.  [default: runs/sft-<time>]")
@click.option("--resume", "run", type=click.Path(path_type=Path), metavar="RUN", help="Go on with an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
@click.option("--settings", is_flag=True, help="Every setting with its default and meaning.")
@debug_option
def sft(
    *,
    model: str | None,
    data: str | None,
    overrides: tuple[str, ...],
    file: Path | None,
    out: Path | None,
    run: Path | None,
    dry_run: bool,
    settings: bool,
) -> None:
    """Train MODEL (folder, run or hub id) on the answers in DATA (file, pattern of files, folder or hub id).

    DATA has messages, ShareGPT conversations, Alpaca's instructions, or prompts and completions; the assistant's turns
    are learned. What it leaves is a run like any other: `sparring train lsp --init RUN` goes on from it.

    \b
    sparring sft Qwen/Qwen3-0.6B conversations.jsonl learner.lr=1e-5 epochs=3
    sparring sft Qwen/Qwen3-0.6B HuggingFaceH4/ultrachat_200k data.split=train_sft model.tuning=lora
    sparring sft Qwen/Qwen2.5-VL-3B-Instruct 'cold9k/A-*.json'
    sparring sft --resume runs/sft-1
    """
    if settings:
        _print_settings()
        return
    if run is not None:
        if any((model, data, overrides, file, out)):
            raise click.UsageError("--resume goes on with the run's own settings and takes no others")
        _resume(run, dry_run)
        return
    config = _described(model, data, file, overrides)
    if dry_run:
        if speaks():
            click.echo(config.to_yaml(), nl=False)
        return

    def learn(display: Display | None) -> int:
        from sparring.sft.run import train

        return train(config, folder, observer=display)

    folder = out or free_folder(Path("runs") / f"sft-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
    _watch(learn, folder)


def _described(model: str | None, data: str | None, file: Path | None, overrides: tuple[str, ...]) -> SFTConfig:
    """Defaults, then the file's settings, then what was given."""
    from sparring.config import resolve
    from sparring.settings.sft import SFTConfig

    words = [word for word in (model, data) if word is not None]
    names = [word for word in words if not _SETTING.match(word)]
    if file is None and len(names) < 2:
        raise click.UsageError("name a MODEL and the DATA that it is to learn from, or give a --config that does")
    given = zip(("model.path", "data.path"), names, strict=False)
    # Quoted as YAML, so that a folder called null or 1e5 stays a text.
    named = [f"{key}={json.dumps(name, ensure_ascii=False)}" for key, name in given]
    return resolve(SFTConfig(), file, (*named, *(word for word in words if word not in names), *overrides))


def _resume(run: Path, dry_run: bool) -> None:
    if dry_run:
        from sparring.runfolder import RunFolder
        from sparring.sft.run import read_config

        if speaks():
            click.echo(read_config(RunFolder(run)).to_yaml(), nl=False)
        return

    def learn(display: Display | None) -> int:
        from sparring.sft.run import resume

        return resume(run, observer=display)

    _watch(learn, run)


def _watch(learn: Callable[[Display | None], int], run: Path) -> None:
    """Watch a run to its end, then say where everything is."""
    if not speaks():  # one of several processes: rank 0 tells, and writes
        learn(None)
        return
    from sparring.display import make_console, open_display

    began = time.monotonic()
    click.echo(f"Run folder: {shown(run)}")
    display = open_display(make_console(), "supervised fine-tuning", run)
    with resumable(run, display, "sft"), display:
        quiet_libraries(display)
        learn(display)
    click.echo(f"\nDone in {time.monotonic() - began:.0f} seconds.")
    name = shown(run)
    for label, text in (
        ("Model", shown(run / "model")),
        ("Metrics", shown(run / "metrics.jsonl")),
        ("Next", command("train", "lsp", "--preset", "paper", "--init", name) + "   (go on from the trained model)"),
        ("", command("report", name)),
    ):
        click.echo(f"{label:8} {text}")


def _print_settings() -> None:
    from sparring.config import describe
    from sparring.settings.sft import SFTConfig

    for name, default, meaning in describe(SFTConfig):
        click.echo(f"{name}={default}\n    {meaning}")
