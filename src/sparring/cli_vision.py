"""`sparring eval vision`: the benchmarks of Vision-SR1, by rule and then by a judge; `sparring eval lmms-eval`.

Nothing heavy is imported at the top: help and usage errors answer at once.
"""

from __future__ import annotations

import json
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparring.cli_evaluated import going_on, named, quiet_screen, subject
from sparring.cli_perception import Seeing
from sparring.cli_writers import Writing, writer_options
from sparring.console import debug_option, shown

if TYPE_CHECKING:
    from sparring.cli_evaluated import Said
    from sparring.domains import TestItem
    from sparring.evaluation.benchmarks.vision import VisionReport
    from sparring.settings import RunConfig
    from sparring.types import Turn

_JUDGE = "Who judges answers that no rule calls right: a model at --judge-url, or local:MODEL.  [default: nobody]"
_OUT = click.option(
    "--out", type=click.Path(path_type=Path), help="Folder.  [default: RUN/evaluations, or evaluations/MODEL]"
)


@click.command("vision", short_help="MMMU, MMMU-Pro, MathVerse ...: the benchmarks of Vision-SR1.")
@click.argument("words", nargs=-1, required=True, metavar="RUN_OR_MODEL... [KEY=VALUE]...")
@click.option("--set", "sets", multiple=True, metavar="NAME[=SOURCE]", help="Which; several times.  [default: all]")
@click.option("--split", default="test", show_default=True, help="Of hub data sets and folders.")
@click.option("--n", type=click.IntRange(min=1), help="Only the first N questions of each.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the answers' draws.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=2048, show_default=True)
@writer_options("--judge", _JUDGE)
@click.option("--name", help="What the result is called.  [default: vision]")
@_OUT
@debug_option
def vision(
    *,
    words: tuple[str, ...],
    sets: tuple[str, ...],
    split: str,
    n: int | None,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    name: str | None,
    out: Path | None,
    **judging: Any,
) -> None:
    """Questions about pictures, as the paper's authors put them on the hub: the model looks, describes and answers.

    An answer is compared by a rule, by its row's problem_type; with --judge a model then judges what no rule calls
    right. A verdict that can't be read never counts as right, and is counted. SOURCE is a hub id, a folder of Parquet
    or JSON lines, or a file, with columns problem, answer, images and problem_type.

    \b
    sparring eval vision runs/sr1 Qwen/Qwen2.5-VL-3B-Instruct --set mmmu --set mmmu-pro --judge local:Qwen/Qwen3-8B
    sparring eval vision runs/sr1 --set mmmu-pro/4-options=data/mmmu_pro_4 --set mmmu-pro
    """
    from sparring.evaluation.benchmarks.vision import VisionReport, outcomes, sets_named
    from sparring.evaluation.graders import SAME_ANSWER
    from sparring.rewards.verifiable import by_type

    chosen = sets_named(sets)
    seeing = Seeing.of(words, "paper")
    judge = None if judging["judge"] is None else Writing("--judge", **judging)
    name = named(name, "vision")
    asked = {"temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens}
    with quiet_screen(name) as (console, say):
        folder = seeing.first.folder(out)
        items = {one.name: one.items(split, say, n) for one in chosen}
        opening = nullcontext(None) if judge is None else judge.opening(seeing.first.config, folder)
        with opening as opened, going_on(folder):
            found = {
                one.path: _answers(seeing.config(one), items, one.folder(out), say, **asked) for one in seeing.models
            }
            writer = None if opened is None else opened(SAME_ANSWER)
            by_type.require()
            with closing(by_type):
                reports = {
                    path: VisionReport({key: outcomes(items[key], turns, writer) for key, turns in by_set.items()})
                    for path, by_set in found.items()
                }
        settings = {"sets": {one.name: one.source for one in chosen}, "split": split, "n": n, **asked}
        settings |= {"judge": None} if judge is None else judge.settings()
        files = [
            _write(seeing.file(one, name, out), name, one.path, reports[one.path], settings) for one in seeing.models
        ]
    from sparring.evaluation.tables import vision_table

    console.print(vision_table(reports))
    for file in files:
        click.echo(f"Written to {shown(file)}")


def _answers(
    config: RunConfig,
    items: dict[str, list[TestItem]],
    folder: Path,
    say: Said,
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int,
) -> dict[str, list[Turn]]:
    """What a model says to every set's questions, as a perceiver."""
    from dataclasses import replace

    from sparring.build import game_domain, solver_role
    from sparring.evaluation.answers import answering
    from sparring.evaluation.benchmarks.vision import answered
    from sparring.evaluation.kept import KeptSampler

    loaded = answering(config, temperature=temperature, tokens=max_new_tokens, seed=seed)
    game = config.game.model_copy(update={"solver": loaded.game.solver})
    perceiver = replace(solver_role(game, game_domain(game)), weight=0.0)
    sampler = KeptSampler(loaded, folder, say)
    found: dict[str, list[Turn]] = {}
    for name, some in items.items():
        say(f"{name}: {len(some)} questions")
        found[name] = answered(sampler, perceiver, some)
    return found


def _write(file: Path, name: str, model: str, report: VisionReport, settings: dict[str, Any]) -> Path:
    """The document, and NAME-answers.jsonl beside it."""
    from sparring.evaluation.document import document
    from sparring.files import write_json_atomic, write_text_atomic

    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in report.rows()]
    write_text_atomic(file.with_name(f"{file.stem}-answers.jsonl"), "".join(lines))
    body = report.to_json()
    write_json_atomic(
        file, document("accuracy", name, "accuracy", model=model, base=None, body=body, settings=settings)
    )
    return file


@click.command("lmms-eval", short_help="Any benchmark of lmms-eval.")
@click.argument("model", metavar="RUN_OR_MODEL")
@click.option("--tasks", required=True, metavar="TASK,...", help="lmms-eval's names.")
@click.option("--shots", type=click.IntRange(min=0), help="Examples in the prompt.  [default: the task's]")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many items a task.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--device", help="cuda, cpu ...  [default: lmms-eval's choice]")
@click.option("--gen-kwargs", metavar="KEY=VALUE,...", help="How answers are drawn.  [default: the task's]")
@_OUT
@debug_option
def lmms_eval(*, model: str, tasks: str, out: Path | None, **given: Any) -> None:
    """Run tasks of lmms-eval on a vision model's folder, with the run's bounds on pixels.

    lmms-eval has prompts of its own and is installed beside Sparring
    (pip install git+https://github.com/EvolvingLMMs-Lab/lmms-eval).

    \b
    sparring eval lmms-eval runs/sr1 --tasks mmmu_val,mmmu_pro,mathvision_testmini
    """
    from sparring.evaluation.accuracy import harness_document
    from sparring.evaluation.lmms import lmms_eval as run_tasks
    from sparring.evaluation.tables import harness_table
    from sparring.files import write_json_atomic
    from sparring.lm.hub import find_folder
    from sparring.models import locate

    asked = subject(model, (), recipe="vision-sr1", preset="paper")
    folder = asked.folder(out)
    names = [task.strip() for task in tasks.split(",")]
    at = find_folder(locate(asked.path), asked.config.model.revision, weights=True)
    bounds = asked.config.model.vision.model_dump(include={"min_pixels", "max_pixels"}, exclude_none=True)
    with quiet_screen("lmms-eval") as (console, say):
        say(f"lmms-eval runs {', '.join(names)}")
        records = run_tasks(at, names, folder / "lmms-eval", model_args=bounds, **given)
        made = harness_document(records, model, {"tasks": names, **bounds, **given})
        write_json_atomic(folder / "lmms-eval.json", {**made, "kind": "lmms-eval", "name": "lmms-eval"})
    console.print(harness_table(records, "lmms-eval"))
    click.echo(f"Written to {shown(folder / 'lmms-eval.json')}")
