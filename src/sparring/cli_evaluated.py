"""What the evaluation commands share: the model that is asked, its answers, a quiet screen.

Nothing heavy is imported at the top: `sparring --help` imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparring.console import quiet_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from sparring.evaluation.answers import Question
    from sparring.settings import RunConfig

Said = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """Who is evaluated.

    path: as models are named (a run's own folder for its model); run: its folder, where it is one; base: what the run
    started from; config: how it is loaded and asked.
    """

    path: str
    run: Path | None
    base: str | None
    config: RunConfig

    def folder(self, out: Path | None) -> Path:
        """Where its evaluations go."""
        from sparring.evaluation.document import FOLDER

        return out or (Path(FOLDER) if self.run is None else self.run / FOLDER)


def subject(run_or_model: str, overrides: tuple[str, ...], *, recipe: str = "lsp", preset: str = "paper") -> Subject:
    """A run with its own settings; or a model with a recipe's, for which nothing but how it is asked matters."""
    from sparring.config import read_yaml, resolve, validated
    from sparring.recipes import recipe as settings_of

    path = Path(run_or_model)
    if path.name == "model" and (path.parent / "config.yaml").is_file():
        path = path.parent
    run = path if (path / "config.yaml").is_file() else None
    if run is None and path.suffix == ".json" and not path.is_file():
        raise click.UsageError(f"{run_or_model}: no such file of answers")
    own = validated(read_yaml(path / "config.yaml")) if run else settings_of(recipe, preset)
    return Subject(str(path), run, own.model.path if run else None, resolve(own, None, overrides))


def kept(
    path: str,
    config: RunConfig,
    questions: Sequence[Question],
    folder: Path,
    say: Said,
    *,
    temperature: float | None,
    tokens: int | None,
    seed: int,
) -> list[str]:
    """A model's answers, or those in a file of AlpacaEval's form, one a question."""
    if Path(path).suffix == ".json":
        return _from_file(Path(path), questions)
    from sparring.evaluation.answers import answering, answers

    asked = answering(config, path, temperature=temperature, tokens=tokens).model_copy(update={"seed": seed})
    texts, file = answers(asked, questions, folder, say)
    say(f"{path}: answers in {file}")
    return texts


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
