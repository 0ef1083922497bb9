"""Options that say who judges, and the judge that they describe.

Nothing heavy is imported at the top: `sparring --help` imports this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sparring.evaluation.judges.base import Judge
    from sparring.evaluation.judges.templates import Template
    from sparring.settings import RunConfig

LOCAL = ("local", "reward", "function")
STYLE = "weighted"
SERVED = (
    click.option("--judge-url", help="OpenAI-compatible endpoint.  [default: OpenAI's]"),
    click.option("--judge-key", metavar="VARIABLE", help="Environment variable with its key."),
)
_SHOWN = (
    click.option(
        "--judge-style",
        type=click.Choice(["weighted", "ranked"]),
        help="weighted: by the probabilities of two one-word verdicts; ranked: a written ranking.  [default: weighted]",
    ),
    click.option(
        "--judge-prompt",
        metavar="FILE",
        help="What a judge model is shown: a file, or alpaca_eval_clf, alpaca_eval.  [default: ours, by style]",
    ),
)
ASKED = (
    click.option(
        "--judge-cache", type=click.Path(path_type=Path), help="Kept verdicts.  [default: OUT/verdicts.sqlite]"
    ),
    click.option(
        "--judge-timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=120.0,
        show_default=True,
        help="Seconds an attempt of a call may take.",
    ),
    click.option(
        "--concurrency", type=click.IntRange(min=1), default=16, show_default=True, help="Calls under way at once."
    ),
    click.option("--max-calls", type=click.IntRange(min=0), help="Refuse to make more calls than this."),
)
Command = Callable[..., Any]


def judge_options(*, required: bool) -> Callable[[Command], Command]:
    """--judge and what belongs to it: the fields of `Judging`."""
    about = "Who judges: a model at --judge-url (gpt-4o), local:MODEL, reward:MODEL, or function:FILE.py:NAME."
    judge = click.option("--judge", metavar="TARGET", required=required, help=about)
    return lambda command: with_options(command, (judge, *SERVED, *_SHOWN, *ASKED))


def with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """A command with these options, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class Judging:
    """Who judges, as the options say. Raises click.UsageError where they don't go together."""

    judge: str
    judge_url: str | None
    judge_key: str | None
    judge_style: str | None
    judge_prompt: str | None
    judge_cache: Path | None
    judge_timeout: float
    concurrency: int
    max_calls: int | None

    def __post_init__(self) -> None:
        if self.kind == "endpoint":
            return
        if not self.target:
            raise click.UsageError(
                f"--judge {self.judge} names no {'function' if self.kind == 'function' else 'model'}"
            )
        if self.judge_url or self.judge_key:
            raise click.UsageError(f"--judge-url and --judge-key are for a served model, and --judge is {self.judge}")
        if self.kind != "local" and (self.judge_prompt or self.judge_style):
            raise click.UsageError(
                f"--judge-prompt and --judge-style are for a judge that reads a prompt, and --judge is {self.judge}"
            )

    @property
    def kind(self) -> str:
        """One of LOCAL, or endpoint."""
        kind, colon, _ = self.judge.partition(":")
        return kind if colon and kind in LOCAL else "endpoint"

    @property
    def target(self) -> str:
        """The model or function without its kind."""
        return self.judge if self.kind == "endpoint" else self.judge.partition(":")[2]

    def settings(self) -> dict[str, Any]:
        """What verdicts depend on, for the evaluation's record."""
        asked = {"judge": self.judge}
        if self.kind in ("endpoint", "local"):
            asked |= {"judge_style": self.judge_style or STYLE, "judge_prompt": self.judge_prompt or "ours"}
        return asked | ({"judge_url": self.judge_url or "OpenAI's"} if self.kind == "endpoint" else {})

    @contextmanager
    def opening(self, config: RunConfig, folder: Path) -> Iterator[Callable[[], Judge]]:
        """What opens the judge; its verdicts are kept. All that can be checked before is checked on entering: a model
        is loaded only with the call, so that it needs no memory while others answer.

        config: how local models and reward models are loaded; folder: where verdicts are kept where --judge-cache
        doesn't say.
        """
        from sparring.evaluation.judges.cache import VerdictCache
        from sparring.evaluation.judges.frugal import FrugalJudge
        from sparring.evaluation.judges.templates import open_template

        template = None if self.judge_prompt is None else open_template(self.judge_prompt)
        with ExitStack() as stack:
            cache = stack.enter_context(closing(VerdictCache(self.judge_cache or folder / "verdicts.sqlite")))
            if self.kind in ("local", "reward"):
                require_model(self.kind, self.target, "--judge")
                yield lambda: FrugalJudge(
                    stack.enter_context(closing(self._loaded(config, template))), cache, self.max_calls
                )
                return
            light = self._endpoint(template) if self.kind == "endpoint" else self._function()
            stack.enter_context(closing(light))
            yield lambda: FrugalJudge(light, cache, self.max_calls)

    def _endpoint(self, template: Template | None) -> Judge:
        from sparring.evaluation.judges.endpoint import OPENAI, EndpointJudge
        from sparring.evaluation.judges.styles import STYLES

        require_key(self.judge, "--judge", self.judge_url, self.judge_key)
        return EndpointJudge(
            self.judge,
            STYLES[self.judge_style or STYLE](),
            template,
            url=self.judge_url or OPENAI,
            key=self.judge_key,
            timeout=self.judge_timeout,
            concurrency=self.concurrency,
        )

    def _function(self) -> Judge:
        from sparring.evaluation.judges.reward import RewardJudge
        from sparring.rewards.base import Reward
        from sparring.rewards.imports import load_object

        return RewardJudge(Reward(load_object(self.target, "--judge"), name=self.target))

    def _loaded(self, config: RunConfig, template: Template | None) -> Judge:
        if self.kind == "local":
            from sparring.evaluation.judges.local import LocalModel, RankingJudge, TokenJudge
            from sparring.settings import ModelConfig

            # The judged model's revision and chat template are not another model's.
            settings = ModelConfig(path=self.target, dtype=config.model.dtype, device=config.model.device)
            kind = TokenJudge if (self.judge_style or STYLE) == STYLE else RankingJudge
            return kind(LocalModel.load(settings), template)
        from sparring.build import build_reward, game_domain
        from sparring.evaluation.judges.reward import RewardJudge

        reward = config.game.reward
        another = {} if reward.model in (None, self.target) else {"revision": None}
        given = {"model": self.target, "function": None, "url": None, "scale": "raw", **another}
        reward = reward.model_copy(update=given)
        judged = config.model_copy(update={"game": config.game.model_copy(update={"reward": reward})})
        built = build_reward(judged, game_domain(config.game))
        assert built is not None
        return RewardJudge(built)


def require_key(target: str, option: str, url: str | None, key: str | None) -> None:
    """A missing key is told before anything is answered."""
    from sparring.evaluation.judges.endpoint import OPENAI_KEY

    variable = key or (OPENAI_KEY if url is None else None)
    if variable is not None and not os.environ.get(variable, "").strip():
        hint = "; or is it served elsewhere (--judge-url)?" if url is None else ""
        raise click.UsageError(
            f"{option} {target} needs a key, and the environment variable {variable} is empty: set it, or name "
            f"another with --judge-key{hint}"
        )


def require_model(kind: str, target: str, option: str) -> None:
    """A mistyped model, or one of another kind, is told before anything is answered."""
    from sparring.lm.hub import (
        LoadError,
        check_language_model,
        check_reward_model,
        find_folder,
        is_adapter,
        read_config,
    )
    from sparring.models import locate

    try:
        folder = find_folder(locate(target), None, weights=True)
        if is_adapter(folder):
            return
        if kind == "reward":
            check_reward_model(target, read_config(folder))
        else:
            check_language_model(target, read_config(folder), remote_code=False, four_bit=False)
    except LoadError as error:
        raise LoadError(f"{option}: {error}") from error
