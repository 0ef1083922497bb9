"""The commands that make data sets: `sparring data pictures`.

Nothing heavy is imported at the top: help and usage errors answer at once.
"""

from __future__ import annotations

from pathlib import Path

import click

from sparring.console import Commands, command, debug_option, shown

_PATH = click.Path(path_type=Path)


@click.group("data", cls=Commands, short_help="Make a data set of pictures.")
def data() -> None:
    """Make data sets for training."""


@data.command(short_help="A data set out of images and a table of questions.")
@click.argument("table", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--images", type=_PATH, help="Folder that the images lie in.  [default: TABLE's]")
@click.option("--image", default="image", show_default=True, help="Column with the image file's name, or a list.")
@click.option("--question", default="question", show_default=True, help="Column with the question, options included.")
@click.option("--answer", default="answer", show_default=True, help="Column with the right answer.")
@click.option(
    "--problem-type",
    default="problem_type",
    show_default=True,
    help="Column with its kind: multiple choice, numerical, regression.  May be missing.",
)
@click.option("--source", default="source", show_default=True, help="Column with its origin.  May be missing.")
@click.option("--longest-side", type=click.IntRange(min=1), help="Scale larger images down to this many pixels.")
@click.option("--max-pixels", type=click.IntRange(1, 100_000_000), help="Skip larger images.  [default: 100000000]")
@click.option("--overwrite", is_flag=True, help="Put it in place of an earlier data set in OUT.")
@debug_option
def pictures(
    *,
    table: Path,
    out: Path,
    images: Path | None,
    image: str,
    question: str,
    answer: str,
    problem_type: str,
    source: str,
    longest_side: int | None,
    max_pixels: int | None,
    overwrite: bool,
) -> None:
    """Write folder OUT, a data set for `sparring train vision-sr1`, from TABLE (.jsonl or .csv) and its image files.

    OUT holds Parquet files with Vision-SR1-47K's columns and the images inside. Rows with a missing, damaged or huge
    image are left out, counted, and named in OUT-skipped.jsonl.

    \b
    sparring data pictures rows.jsonl mine --images photos --longest-side 1024
    sparring data pictures rows.csv mine --image file_name --question prompt --answer label
    """
    from sparring.data_pictures import TABLES, Columns, convert
    from sparring.images import MAX_PIXELS

    if table.suffix not in TABLES:
        raise click.BadParameter(f"{table} ends in neither {' nor '.join(TABLES)}", param_hint="TABLE")
    made = convert(
        table,
        out,
        images=images,
        columns=Columns(image, question, answer, problem_type, source),
        max_pixels=max_pixels or MAX_PIXELS,
        longest_side=longest_side,
        overwrite=overwrite,
        say=lambda line: click.echo(line, err=True),
    )
    for reason in made.reasons:
        click.echo(f"skipped: {reason}", err=True)
    if made.skipped_file is not None:
        click.echo(f"{made.skipped} rows are skipped, all named in {shown(made.skipped_file)}", err=True)
    click.echo(f"{shown(out)}: {made.rows} rows in {made.files} files, {made.bytes / 1e6:.1f} MB of images")
    following = command("train", "vision-sr1", "--preset", "paper", "--init", "MODEL", f"game.prompts={shown(out)}")
    click.echo(f"{'Next':8} {following}")
