"""`sparring eval lsr`: how often models are right without having seen; and the vision benchmarks' command.

Nothing heavy is imported at the top: help and usage errors answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparring.cli_evaluated import Subject, going_on, named, quiet_screen, subject
from sparring.cli_judges import require_model
from sparring.cli_writers import Writing, writer_options
from sparring.console import debug_option, shown

if TYPE_CHECKING:
    from sparring.cli_evaluated import Said
    from sparring.domains import Domain, SufficiencyGrader, TestItem
    from sparring.evaluation.lsr import Result
    from sparring.evaluation.perception import Observed
    from sparring.settings import RunConfig

_SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=")
_GRADER = (
    "Who grades descriptions: a model at --judge-url, local:MODEL, or function:FILE.py:NAME.  "
    "[default: the domain's program]"
)


def models_and_settings(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """RUN_OR_MODEL... and KEY=VALUE..., told apart."""
    overrides = tuple(word for word in words if _SETTING.match(word) and not Path(word).exists())
    models = tuple(word for word in words if word not in overrides)
    if not models:
        raise click.UsageError("name at least one RUN_OR_MODEL")
    if len(set(models)) < len(models):
        raise click.UsageError("a RUN_OR_MODEL is named twice")
    return models, overrides


@dataclass(frozen=True)
class Seeing:
    """The models of one call: each as it is loaded and asked. first: the one whose settings stand for those that bring
    none."""

    first: Subject
    models: tuple[Subject, ...]

    @classmethod
    def of(cls, words: Sequence[str], preset: str) -> Seeing:
        """From a command line; preset: vision-sr1's, of models without a run beside them.

        Raises click.UsageError where a run doesn't play Vision-SR1, or their domains differ.
        """
        names, overrides = models_and_settings(words)
        found = tuple(subject(name, overrides, recipe="vision-sr1", preset=preset) for name in names)
        for one in found:
            if one.config.game.kind != "vision":
                raise click.UsageError(f"{one.path} plays {one.config.game.kind}, and this is for game.kind=vision")
        first = next((one for one in found if one.run is not None), found[0])
        for one in found:
            if one.run is not None and one.config.game.domain != first.config.game.domain:
                raise click.UsageError(
                    f"{first.path} is of the {first.config.game.domain} domain and {one.path} of the "
                    f"{one.config.game.domain} domain: evaluate them one by one"
                )
        return cls(first, found)

    def file(self, one: Subject, name: str, out: Path | None) -> Path:
        """Where a result goes; in --out the file has the model's name, as others' may lie there."""
        from sparring.evaluation.document import slug

        shared = "" if out is None else f"-{slug(one.path)}"
        return one.folder(out) / f"{name}{shared}.json"

    def config(self, one: Subject) -> RunConfig:
        """How one is loaded and asked: a run by its own settings, a model by the first one's."""
        return (one if one.run is not None else self.first).loading(one.path)


@click.command("lsr", short_help="How often models are right without having seen: the Language Shortcut Rate.")
@click.argument("words", nargs=-1, required=True, metavar="RUN_OR_MODEL... [KEY=VALUE]...")
@click.option("--prompts", metavar="SOURCE", help="File, folder or hub id.  [default: the domain's held-out test]")
@click.option("--column", help="The prompt's column.  [default: the first of problem, question ...]")
@click.option("--subset", metavar="COLUMN", help="Column that names each row's subset (problem_type, say).")
@click.option("--split", default="train", show_default=True, help="Of a folder or a hub data set.")
@click.option("--hub-subset", metavar="NAME", help="Configuration of a hub data set that has several.")
@click.option("--n", type=click.IntRange(min=1), help="Items.  [default: the run's evaluation.final_n; all of SOURCE]")
@click.option("--seed", type=click.IntRange(min=0), help="Of test set and draws.  [default: the run's evaluation.seed]")
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(min=0),
    multiple=True,
    default=(0.0,),
    show_default=True,
    help="Of the perceiver; several times for several. The reader is greedy.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest response.  [default: the run's]")
@writer_options("--grader", _GRADER)
@click.option(
    "--judge-answers", is_flag=True, help="The grader model also judges its answers that no rule calls right."
)
@click.option("--self-grader", is_flag=True, help="Allow an evaluated model as the grader.")
@click.option("--name", help="What the results are called.  [default: lsr, or lsr-<prompts>; -t<T> above T = 0]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: each RUN/evaluations]")
@debug_option
def lsr(
    *,
    words: tuple[str, ...],
    prompts: str | None,
    column: str | None,
    subset: str | None,
    split: str,
    hub_subset: str | None,
    n: int | None,
    seed: int | None,
    temperatures: tuple[float, ...],
    max_new_tokens: int | None,
    judge_answers: bool,
    self_grader: bool,
    name: str | None,
    out: Path | None,
    **grading: Any,
) -> None:
    """How often models are right without having seen what mattered (the Language Shortcut Rate of Vision-SR1).

    Each model looks at held-out pictures, describes and answers; reads its own descriptions; and a grader says which
    descriptions hold what their question needs. Runs and models may stand side by side: a model is asked as the first
    run is. Texts and verdicts are kept in OUT: after an interruption the same command goes on.

    \b
    sparring eval lsr runs/sr1 runs/answer-only pictures --temperature 0 --temperature 1
    sparring eval lsr runs/sr1 --prompts zli12321/MMMU --split test --grader local:Qwen/Qwen3-8B
    """
    seeing = Seeing.of(words, "pictures" if prompts is None else "paper")
    grader = None if grading["judge"] is None else Writing("--grader", **grading, functions=True)
    given = Given(name, prompts, column, subset, split, hub_subset, n, seed, max_new_tokens, out)
    given.check()
    _require_grader(seeing, grader, given, judge_answers=judge_answers, self_grader=self_grader)
    with quiet_screen("lsr") as (console, say), _graded(grader, seeing, given, judge_answers) as opened:
        results, without = _results(seeing, given, temperatures, opened, say)
    from sparring.evaluation.tables import lsr_table

    if results:
        console.print(lsr_table([(_label(one, t), result.figures) for one, t, result, _ in results]))
    for *_, file in results:
        click.echo(f"Written to {shown(file)}")
    if without:
        raise ValueError(
            f"the grader gave no verdict that can be read for {'; '.join(without)}: check --grader, --judge-tokens"
        )


@dataclass(frozen=True)
class Given:
    """What is asked about, and where results go."""

    name: str | None
    prompts: str | None
    column: str | None
    subset: str | None
    split: str
    hub_subset: str | None
    n: int | None
    seed: int | None
    max_new_tokens: int | None
    out: Path | None

    def check(self) -> None:
        """Options that would do nothing, and names that no file can have, are mistakes."""
        if self.prompts is None and (self.column or self.subset or self.hub_subset or self.split != "train"):
            raise click.UsageError("--column, --subset, --split and --hub-subset are for --prompts")
        named(self.name, "lsr")

    def items(self, config: RunConfig, say: Said) -> list[TestItem]:
        """The items of a data set, or of the configuration's domain."""
        from sparring.evaluation.lsr import Source, domain_items

        if self.prompts is None:
            return domain_items(config, self.seed_of(config), self.n or config.evaluation.final_n)
        return Source(self.prompts, self.column, self.subset, self.split, self.hub_subset).items(self.n, say)

    def seed_of(self, config: RunConfig) -> int:
        """Of test set and draws."""
        return config.evaluation.seed if self.seed is None else self.seed

    def called(self, temperature: float) -> str:
        """The result's name."""
        otherwise = "lsr" if self.prompts is None else f"lsr-{Path(self.prompts).stem}"
        return named(self.name, otherwise) + (f"-t{temperature:g}" if temperature else "")


def _results(
    seeing: Seeing,
    given: Given,
    temperatures: Sequence[float],
    opened: Callable[[], tuple[str, SufficiencyGrader]],
    say: Said,
) -> tuple[list[tuple[Subject, float, Result, Path]], list[str]]:
    """The results, and the labels of models that have none, for want of a verdict. All models look first: a grader's
    model needs no memory while they do."""
    from sparring.evaluation.lsr import observed

    seeing.first.folder(given.out)  # before data are fetched
    seed = given.seed_of(seeing.first.config)
    items = given.items(seeing.config(seeing.first), say)
    looked: list[tuple[Subject, float, list[Observed]]] = []
    for one in seeing.models:
        folder = one.folder(given.out)
        with going_on(folder):
            for temperature in dict.fromkeys(temperatures):
                asked = {"temperature": temperature, "seed": seed, "max_new_tokens": given.max_new_tokens}
                looked.append((one, temperature, observed(seeing.config(one), items, folder, say, **asked)))
    return _graded_results(seeing, given, looked, opened, say)


def _graded_results(
    seeing: Seeing,
    given: Given,
    looked: Sequence[tuple[Subject, float, list[Observed]]],
    opened: Callable[[], tuple[str, SufficiencyGrader]],
    say: Said,
) -> tuple[list[tuple[Subject, float, Result, Path]], list[str]]:
    """See `_results`; each is written as soon as it is graded."""
    from sparring.evaluation.lsr import NoVerdictError, Result

    results: list[tuple[Subject, float, Result, Path]] = []
    without: list[str] = []
    with going_on(seeing.first.folder(given.out)):
        who, grader = opened()
        for one, temperature, found in looked:
            config = seeing.config(one)
            settings = {
                "grader": who,
                "temperature": temperature,
                "seed": given.seed_of(seeing.first.config),
                "n": len(found),
                "prompts": given.prompts,
                "split": given.split,
                "max_new_tokens": given.max_new_tokens or config.game.solver.max_new_tokens,
                "domain": config.game.domain,
            }
            name = given.called(temperature)
            try:
                result = Result.of(found, config, grader, name=name, model=one.path, settings=settings)
            except NoVerdictError:
                without.append(f"{_label(one, temperature)} (of {len(found)})")
                continue
            file = seeing.file(one, name, given.out)
            result.write(file)
            if result.figures.unread:
                say(f"{one.path}: {result.figures.unread} of {len(found)} descriptions have no verdict")
            results.append((one, temperature, result, file))
    return results, without


def _label(one: Subject, temperature: float) -> str:
    return one.path + (f", T = {temperature:g}" if temperature else "")


def _require_grader(
    seeing: Seeing, grader: Writing | None, given: Given, *, judge_answers: bool, self_grader: bool
) -> None:
    """There is one, and it is none of the evaluated models."""
    if grader is None:
        if given.prompts is not None:
            raise click.UsageError("--prompts needs a --grader: a model, or function:FILE.py:NAME")
        if _domain(seeing).sufficient is None:
            raise click.UsageError(f"the {_domain(seeing).name} domain has no grader by program: give --grader")
    if judge_answers and (grader is None or grader.kind == "function"):
        raise click.UsageError("--judge-answers is for a --grader that is a model")
    if grader is None or self_grader or grader.kind == "function":
        return
    for one in seeing.models:
        if _same_model(grader, one.path):
            raise click.UsageError(
                f"--grader {grader.judge} is {one.path} itself, and a model that grades its own perception is no "
                "independent grader: name another, or allow it with --self-grader"
            )


def _same_model(grader: Writing, path: str) -> bool:
    from sparring.lm.hub import find_folder
    from sparring.models import locate

    if grader.kind == "endpoint":
        return grader.target in (path, str(locate(path)))
    require_model(grader.kind, grader.target, grader.option)
    folders = [find_folder(locate(name), None, weights=True).resolve() for name in (grader.target, path)]
    return folders[0] == folders[1]


def _domain(seeing: Seeing) -> Domain:
    from sparring.build import game_domain

    return game_domain(seeing.first.config.game)


@contextmanager
def _graded(
    grader: Writing | None, seeing: Seeing, given: Given, judge_answers: bool
) -> Iterator[Callable[[], tuple[str, SufficiencyGrader]]]:
    """What opens the grader, with its name."""
    from sparring.evaluation.graders import SAME_ANSWER, SUFFICIENT, FunctionGrader, ModelGrader

    if grader is None:
        domain = _domain(seeing)
        program = domain.sufficient
        assert program is not None
        yield lambda: (f"{domain.name} domain's program", program)
    elif grader.kind == "function":
        from sparring.rewards.base import Reward
        from sparring.rewards.imports import load_object

        with closing(Reward(load_object(grader.target, "--grader"), name=grader.target)) as function:
            yield lambda: (grader.judge, FunctionGrader(function))
    else:
        from sparring.rewards.verifiable import by_type

        opening = grader.opening(seeing.first.config, seeing.first.folder(given.out))
        by_type.require()
        with closing(by_type), opening as writer:  # by_type: its processes compare the grader's answers
            yield lambda: (
                grader.judge,
                ModelGrader(writer(SUFFICIENT), writer(SAME_ANSWER) if judge_answers else None),
            )
