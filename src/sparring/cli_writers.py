"""Options that say which model is asked for words (a grader's answers, a judge's verdicts), and that model.

Nothing heavy is imported at the top: `sparring --help` imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparring.cli_judges import ASKED, LOCAL, SERVED, Command, require_key, require_model, with_options

if TYPE_CHECKING:
    from sparring.evaluation.judges.base import Judge
    from sparring.evaluation.judges.templates import Template
    from sparring.evaluation.matched import Writer
    from sparring.settings import RunConfig

_REPLY = click.option(
    "--judge-tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Longest reply of a model."
)


def writer_options(option: str, about: str) -> Callable[[Command], Command]:
    """An option that names who is asked, and what belongs to it: the fields of `Writing`."""
    target = click.option(option, "judge", metavar="TARGET", help=about)
    return lambda command: with_options(command, (target, *SERVED, _REPLY, *ASKED))


@dataclass(frozen=True)
class Writing:
    """Who is asked for words: a served model, local:MODEL, or (where that is allowed) function:FILE.py:NAME.

    option: what the target was given as. Raises click.UsageError where the options don't go together.
    """

    option: str
    judge: str
    judge_url: str | None
    judge_key: str | None
    judge_tokens: int
    judge_cache: Path | None
    judge_timeout: float
    concurrency: int
    max_calls: int | None
    functions: bool = False

    def __post_init__(self) -> None:
        if self.kind == "reward" or (self.kind == "function" and not self.functions):
            also = ", or function:FILE.py:NAME" if self.functions else ""
            raise click.UsageError(
                f"{self.option} {self.judge}: it must be a model that writes, at --judge-url or local:MODEL{also}"
            )
        if self.kind != "endpoint" and (self.judge_url or self.judge_key):
            raise click.UsageError(
                f"--judge-url and --judge-key are for a served model, and {self.option} is {self.judge}"
            )
        if not self.target:
            raise click.UsageError(f"{self.option} {self.judge} names nothing")

    @property
    def kind(self) -> str:
        """local, reward, function or endpoint."""
        kind, colon, _ = self.judge.partition(":")
        return kind if colon and kind in LOCAL else "endpoint"

    @property
    def target(self) -> str:
        """The model or function without its kind."""
        return self.judge if self.kind == "endpoint" else self.judge.partition(":")[2]

    def settings(self) -> dict[str, Any]:
        """What replies depend on, for the evaluation's record."""
        asked: dict[str, Any] = {self.option.lstrip("-"): self.judge}
        if self.kind != "function":
            asked["judge_tokens"] = self.judge_tokens
        return asked | ({"judge_url": self.judge_url or "OpenAI's"} if self.kind == "endpoint" else {})

    @contextmanager
    def opening(self, config: RunConfig, folder: Path) -> Iterator[Callable[[str], Writer]]:
        """What opens a writer that is asked with a shipped prompt; a model is loaded once, with the first call, and
        replies are kept. What can be checked before is checked on entering; see `Judging.opening`."""
        from sparring.evaluation.graders import Replies, template
        from sparring.evaluation.judges.cache import VerdictCache
        from sparring.evaluation.judges.frugal import FrugalJudge

        assert self.kind in ("local", "endpoint")
        if self.kind == "local":
            _require_text_model(self.target, self.option)
        else:
            require_key(self.judge, self.option, self.judge_url, self.judge_key)
        with ExitStack() as stack:
            cache = stack.enter_context(closing(VerdictCache(self.judge_cache or folder / "verdicts.sqlite")))
            opened = self._local(config) if self.kind == "local" else self._served

            def writer(prompt: str) -> Writer:
                judge = stack.enter_context(closing(opened(template(prompt))))
                return Replies(FrugalJudge(judge, cache, self.max_calls), self.judge_tokens)

            yield writer

    def _served(self, prompt: Template) -> Judge:
        from sparring.evaluation.graders import Written
        from sparring.evaluation.judges.endpoint import OPENAI, EndpointJudge

        return EndpointJudge(
            self.judge,
            Written(self.judge_tokens),
            prompt,
            url=self.judge_url or OPENAI,
            key=self.judge_key,
            timeout=self.judge_timeout,
            concurrency=self.concurrency,
            option=self.option,
        )

    def _local(self, config: RunConfig) -> Callable[[Template], Judge]:
        from sparring.evaluation.judges.local import LocalModel, RankingJudge
        from sparring.settings import ModelConfig

        loaded: list[LocalModel] = []

        def opened(prompt: Template) -> Judge:
            if not loaded:
                settings = ModelConfig(path=self.target, dtype=config.model.dtype, device=config.model.device)
                loaded.append(LocalModel.load(settings))
            return RankingJudge(loaded[0], prompt, self.judge_tokens)

        return opened


def _require_text_model(target: str, option: str) -> None:
    """A model that a local judge can't be is told before anything is answered."""
    from sparring.lm.hub import find_folder, read_config
    from sparring.models import locate

    require_model("local", target, option)
    if "vision_config" in read_config(find_folder(locate(target), None, weights=True)):
        raise click.UsageError(
            f"{option} local:{target} is a vision model, and a local one must be a text model: serve it, and give "
            "--judge-url"
        )
