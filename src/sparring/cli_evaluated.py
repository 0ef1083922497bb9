"""What the evaluation commands share: the model that is asked, its answers, a quiet screen.

Nothing heavy is imported at the top: `sparring --help` imports this module.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparring.console import Terminated, quiet_libraries, shown

if TYPE_CHECKING:
    from rich.console import Console

    from sparring.evaluation.answers import Question
    from sparring.settings import RunConfig

Said = Callable[[str], None]

FLAGS = {
    "model.path": "RUN_OR_MODEL",
    "game.solver.temperature": "--temperature",
    "game.solver.max_new_tokens": "--max-new-tokens",
    "seed": "--seed",
}
"""Settings that the evaluations' own options set."""


@dataclass(frozen=True)
class Subject:
    """Who is evaluated.

    path: as models are named (a run's own folder for its model); run: its folder, where it is one; base: what the run
    started from; config: how it is loaded and asked, `model.path` being the run's start or the model itself.
    """

    path: str
    run: Path | None
    base: str | None
    config: RunConfig

    def folder(self, out: Path | None) -> Path:
        """Where its evaluations go; made. Raises ValueError where nothing can be written there."""
        from sparring.evaluation.document import FOLDER, slug

        name = slug(Path(self.path).stem if is_answers(self.path) else self.path)
        folder = out or (Path(FOLDER) / name if self.run is None else self.run / FOLDER)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"--out: {folder} is a file or within one, and results need a folder") from error
        except OSError as error:
            raise ValueError(f"--out: can't write in {folder} ({error.strerror})") from error
        return folder

    def loading(self, path: str) -> RunConfig:
        """How a model is loaded beside this one: with its settings, but for those that belong to one model alone."""
        own = {self.path, self.config.model.path}
        names = (path, str(Path(path).absolute()))
        alone = (
            {}
            if own & set(names) or is_answers(self.path)
            else {"revision": None, "chat_template": None, "remote_code": None}
        )
        model = self.config.model.model_copy(update={"path": path, **alone})
        return self.config.model_copy(update={"model": model})


def subject(run_or_model: str, overrides: tuple[str, ...], *, recipe: str = "lsp", preset: str = "paper") -> Subject:
    """A run with its own settings; or a model with a recipe's, for which nothing but how it is asked matters."""
    from sparring.config import read_yaml, resolve, validated
    from sparring.recipes import recipe as settings_of

    for key in (override.partition("=")[0].strip() for override in overrides):
        if key in FLAGS:
            raise click.UsageError(f"{key} is given as {FLAGS[key]} here")
    path = Path(run_or_model)
    if path.name == "model" and (path.parent / "config.yaml").is_file():
        path = path.parent
    settings = read_yaml(path / "config.yaml") if (path / "config.yaml").is_file() else {}
    if settings and settings.get("recipe") != "sft":  # a supervised run is a model: nothing in it says how to ask
        own = validated(settings)
        return Subject(str(path), path, own.model.path, resolve(own, None, overrides))
    if is_answers(run_or_model) and not path.is_file():
        raise click.UsageError(f"{run_or_model}: no such file of answers")
    # remote_code is checked against it. Quoted as YAML, so that a folder called null stays a text.
    name = str(path) if path.is_dir() else run_or_model
    model = f"model.path={json.dumps(name, ensure_ascii=False)}"
    return Subject(name, None, None, resolve(settings_of(recipe, preset), None, (model, *overrides)))


def opponent(asked: Subject, base: str | None, options: str = "--base MODEL") -> str:
    """What a subject is compared with: --base, else what the run started from."""
    against = base or asked.base
    if against is None:
        raise click.UsageError(f"{asked.path} is no run, so its base is not known: give {options}")
    if against == asked.path:
        raise click.UsageError(f"--base: {against} would be compared with itself")
    return against


def named(given: str | None, otherwise: str) -> str:
    """An evaluation's name, which is its file's too."""
    from sparring.evaluation.document import slug

    if given is not None and slug(given) != given:
        raise click.UsageError(f"--name {given!r} can't be a file's name: {slug(given)!r} could")
    return given or slug(otherwise)


def is_answers(path: str) -> bool:
    """Whether this names a file of answers, not a model."""
    return Path(path).suffix in (".json", ".jsonl")


def answered(
    asked: Subject,
    paths: Sequence[str],
    questions: Sequence[Question],
    folder: Path,
    say: Said,
    *,
    temperature: float,
    tokens: int | None,
    seed: int,
) -> list[list[str]]:
    """Each model's answers, or those in a file of AlpacaEval's form, one a question.

    Files are read and models found before any model answers.
    """
    from sparring.evaluation.answers import answerer, answering

    def source(path: str) -> Callable[[], list[str]]:
        if is_answers(path):
            texts = _from_file(Path(path), questions)
            return lambda: texts
        config = answering(asked.loading(path), temperature=temperature, tokens=tokens, seed=seed)
        who = answerer(config, questions, folder, say)

        def texts_of() -> list[str]:
            texts = [text for (text,) in who.all()]
            say(f"{path}: answers in {shown(who.file)}")
            return texts

        return texts_of

    return [texts() for texts in [source(path) for path in paths]]


def _from_file(path: Path, questions: Sequence[Question]) -> list[str]:
    from sparring.evaluation.alpaca_eval.data import read_outputs

    found = {row.instruction: row.output for row in read_outputs(path)}
    missing = [question.text for question in questions if question.text not in found]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(questions)} prompts have no answer there, first {missing[0]!r:.80}"
        )
    return [found[question.text] for question in questions]


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Where answering or judging is broken off, the message says that nothing is lost; settings get their flags."""
    from sparring.evaluation.judges.base import JudgeError

    try:
        yield
    except (KeyboardInterrupt, Terminated, JudgeError) as error:
        error.add_note(f"What was answered and judged is kept in {shown(folder)}: the same command goes on from there.")
        raise
    except ValueError as error:
        for key in [key for key in FLAGS if f"{key} " in str(error)]:
            error.add_note(f"{key} is given as {FLAGS[key]} here.")
        raise


@contextmanager
def quiet_screen(title: str, *, quietly: bool = False) -> Iterator[tuple[Console, Said]]:
    """A console, and a way to say how it goes (on standard error where standard output is for a program); libraries'
    own chatter is off."""
    from sparring.display import make_console, open_display

    console = make_console()
    display = open_display(console, title, Path())
    if quietly:
        quiet_libraries(display)
        yield console, lambda message: click.echo(message, err=True)
        return
    with display:
        quiet_libraries(display)
        yield console, display.said
