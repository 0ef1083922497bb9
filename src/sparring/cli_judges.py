"""Options that say who judges, and the judge that they describe.

Nothing heavy is imported at the top: `sparring --help` imports this module.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sparring.evaluation.judges.base import Judge
    from sparring.settings import RunConfig

LOCAL = ("local", "reward", "function")
_OPTIONS = (
    click.option("--judge-url", help="OpenAI-compatible endpoint.  [default: OpenAI's]"),
    click.option("--judge-key", metavar="VARIABLE", help="Environment variable with its key."),
    click.option(
        "--judge-style",
        type=click.Choice(["weighted", "ranked"]),
        default="weighted",
        show_default=True,
        help="weighted: by the probabilities of two one-word verdicts; ranked: a written ranking.",
    ),
    click.option(
        "--judge-prompt",
        metavar="FILE",
        help="What a judge model is shown: a file, or alpaca_eval_clf, alpaca_eval.  [default: ours, by style]",
    ),
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


def judge_options(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--judge and what belongs to it: what `open_judge` takes."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(_OPTIONS):
            command = option(command)
        about = "Who judges: a model at --judge-url (gpt-4o), local:MODEL, reward:MODEL, or function:FILE.py:NAME."
        return click.option("--judge", metavar="TARGET", required=required, help=about)(command)

    return add


def open_judge(
    config: RunConfig,
    folder: Path,
    *,
    judge: str,
    judge_url: str | None,
    judge_key: str | None,
    judge_style: str,
    judge_prompt: str | None,
    judge_cache: Path | None,
    judge_timeout: float,
    concurrency: int,
    max_calls: int | None,
) -> Judge:
    """The judge; its verdicts are kept. config: how local models and reward models are loaded; folder: where verdicts
    are kept where nothing else is said."""
    from sparring.evaluation.judges.cache import VerdictCache
    from sparring.evaluation.judges.frugal import FrugalJudge
    from sparring.evaluation.judges.templates import open_template

    kind, colon, target = judge.partition(":")
    local = bool(colon) and kind in LOCAL
    if local and not target:
        raise click.UsageError(f"--judge {kind}: names no {'function' if kind == 'function' else 'model'}")
    if local and (judge_url or judge_key):
        raise click.UsageError(f"--judge-url and --judge-key are for a served model, and --judge is {judge}")
    if local and judge_prompt and kind != "local":
        raise click.UsageError(f"--judge-prompt is for a judge that reads one, and --judge is {judge}")
    template = None if judge_prompt is None else open_template(judge_prompt)
    if local:
        asked = _local(config, kind, target, judge_style, template)
    else:
        from sparring.evaluation.judges.endpoint import OPENAI, EndpointJudge
        from sparring.evaluation.judges.styles import STYLES

        asked = EndpointJudge(
            judge,
            STYLES[judge_style](),
            template,
            url=judge_url or OPENAI,
            key=judge_key,
            timeout=judge_timeout,
            concurrency=concurrency,
        )
    return FrugalJudge(asked, VerdictCache(judge_cache or folder / "verdicts.sqlite"), max_calls)


def _local(config: RunConfig, kind: str, target: str, style: str, template: Any) -> Judge:
    from sparring.evaluation.judges.reward import RewardJudge

    if kind == "local":
        from sparring.evaluation.judges.local import LocalModel, RankingJudge, TokenJudge
        from sparring.settings import ModelConfig

        # The judged model's revision and chat template are not another model's.
        model = LocalModel.load(ModelConfig(path=target, dtype=config.model.dtype, device=config.model.device))
        return TokenJudge(model, template) if style == "weighted" else RankingJudge(model, template)
    from sparring.build import build_reward, game_domain

    fields = {"function": target, "model": None} if kind == "function" else {"model": target, "function": None}
    reward = config.game.reward.model_copy(update={**fields, "url": None, "scale": "raw"})
    judged = config.model_copy(update={"game": config.game.model_copy(update={"reward": reward})})
    built = build_reward(judged, game_domain(config.game))
    assert built is not None
    return RewardJudge(built)
