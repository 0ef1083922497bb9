"""A language model loaded here as the judge: by the probabilities of m and M, or by the ranking it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, cast

import torch

from sparring import prompts
from sparring.evaluation.judges.base import Arrived, Cost, JudgeError, Pair, Verdict
from sparring.evaluation.judges.styles import FIRST, SECOND, Ranked, Weighted, ranked_preference, weighted_preference
from sparring.evaluation.judges.templates import Template, open_template
from sparring.lm.base import LanguageModel, PromptGroup, SamplingParams
from sparring.lm.hub import CONFIG_FILES, adapter_base, find_folder, is_adapter
from sparring.lm.load import load_model, load_tokenizer, open_lm, resolve_dtype
from sparring.models import default_token_budget, locate, resolve_device, stop_ids_of
from sparring.rendering import Renderer
from sparring.roles import Role
from sparring.sampling.local import LocalSampler
from sparring.settings import ModelConfig
from sparring.types import Prompt

LINEAGE = "lineage.json"
"""A model's story, which every resume of its run tells anew."""

TOO_LONG = Verdict(None, "not judged: longer than the model's context")


@dataclass(frozen=True)
class LocalModel:
    """A model that can be asked.

    identity names it by its content, None where that isn't known; token_budget is the most tokens scored at once, and
    cache_tokens the most whose key/value cache is held while it writes.
    """

    name: str
    identity: str | None
    policy: LanguageModel
    renderer: Renderer
    stop_ids: tuple[int, ...]
    context: int | None
    token_budget: int = 4_096
    cache_tokens: int = 262_144

    @classmethod
    def load(cls, settings: ModelConfig) -> LocalModel:
        """As a run's settings describe a model: a folder, a run's folder or a hub id."""
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
        path, trusted = locate(settings.path), settings.remote_code is not None
        template = None
        if settings.chat_template is not None:
            template = prompts.from_file(settings.chat_template, "model.chat_template")
        model = load_model(
            path,
            device=device,
            dtype=dtype,
            attention=settings.attention,
            revision=settings.revision,
            remote_code=trusted,
        ).requires_grad_(False)
        tokenizer = load_tokenizer(path, template, revision=settings.revision, remote_code=trusted)
        content = fingerprint(find_folder(path, settings.revision, weights=True, code=trusted))
        return cls(
            name=settings.path,
            identity=json.dumps([content, str(dtype), template, settings.template_kwargs], sort_keys=True),
            policy=open_lm(model, dtype, trainable=False, path=settings.engine),
            renderer=Renderer(tokenizer, settings.template_kwargs),
            stop_ids=stop_ids_of(model, tokenizer),
            context=getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None),
            token_budget=default_token_budget(device),
            cache_tokens=settings.cache_tokens,
        )

    def identity_of(self, style: str, template: Template, asked: Mapping[str, Any]) -> str | None:
        """A judge's, over this model."""
        if self.identity is None:
            return None
        return json.dumps(["local", self.identity, style, template.digest, asked], sort_keys=True)


class TokenJudge:
    """Weighs the probabilities of the one-token answers m and M: p(M) / (p(m) + p(M)). Nothing is sampled.

    Args:
        model: who judges.
        template: what it is shown; None: the one shipped.

    Raises:
        JudgeError: m or M is no single token of this model.
    """

    def __init__(self, model: LocalModel, template: Template | None = None) -> None:
        self._model = model
        self._template = template or open_template(Weighted.name)
        self._names = tuple(_single(model.renderer, name) for name in (FIRST, SECOND))
        self.name = model.name
        self.identity = model.identity_of(Weighted.name, self._template, {})

    def estimate(self, pairs: Sequence[Pair]) -> Cost:
        """The prompts' tokens, exactly."""
        return Cost(len(pairs), sum(len(ids) for ids in self._prompts(pairs)), 0)

    def judge(self, pairs: Sequence[Pair], arrived: Arrived | None = None) -> list[Verdict]:
        """See `Judge.judge`; a pair beyond the model's context has no verdict."""
        prompts = self._prompts(pairs)
        verdicts: dict[int, Verdict] = {}
        for batch in self._batches(prompts):
            for place, verdict in zip(batch, self._weighed([prompts[place] for place in batch]), strict=True):
                verdicts[place] = verdict
                if arrived is not None:
                    arrived(place, verdict)
        return [verdicts[place] for place in range(len(pairs))]

    def close(self) -> None:
        """Nothing is held open."""

    def _prompts(self, pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
        return [self._model.renderer.encode(self._template.fill(pair)) for pair in pairs]

    def _batches(self, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Places of prompts of like length, within the token budget; a longer one goes alone."""
        batch: list[int] = []
        for place in sorted(range(len(prompts)), key=lambda place: len(prompts[place])):
            # A model that can't share a prompt computes it for each of the two answers.
            if batch and 2 * (len(batch) + 1) * len(prompts[place]) > self._model.token_budget:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _weighed(self, prompts: Sequence[tuple[int, ...]]) -> list[Verdict]:
        context = self._model.context
        fitting = [ids for ids in prompts if context is None or len(ids) < context]
        if not fitting:
            return [TOO_LONG] * len(prompts)
        answers = tuple((name,) for name in self._names)
        with torch.no_grad():
            scored = self._model.policy.score([PromptGroup(ids, answers) for ids in fitting]).logprobs_S
        weighed = dict(zip(fitting, scored.float().view(-1, 2).tolist(), strict=True))
        return [_weighed(weighed[ids], len(ids)) if ids in weighed else TOO_LONG for ids in prompts]


class RankingJudge:
    """Writes a ranking, greedily, which is read strictly.

    Args:
        model: who judges.
        template: what it is shown; None: the one shipped.
        max_tokens: most tokens that it may write.
    """

    at_once = 32
    """Pairs written about together; a killed process loses at most their verdicts."""

    def __init__(self, model: LocalModel, template: Template | None = None, max_tokens: int = 100) -> None:
        self._model = model
        self._template = template or open_template(Ranked.name)
        self._role = Role("judge", "", SamplingParams(max_tokens, temperature=0.0), weight=0.0)
        self._sampler = LocalSampler(
            model.policy,
            None,
            model.renderer,
            stop_ids=model.stop_ids,
            context=model.context,
            batch_tokens=model.cache_tokens,
        )
        self.name = model.name
        self.identity = model.identity_of(Ranked.name, self._template, {"max_tokens": max_tokens})

    def estimate(self, pairs: Sequence[Pair]) -> Cost:
        """The prompts' tokens, exactly, and as many of answers as there may be."""
        prompts = [self._model.renderer.encode(self._template.fill(pair)) for pair in pairs]
        return Cost(len(pairs), sum(map(len, prompts)), len(pairs) * self._role.sampling.max_new_tokens)

    def judge(self, pairs: Sequence[Pair], arrived: Arrived | None = None) -> list[Verdict]:
        """See `Judge.judge`; a pair beyond the model's context has no verdict."""
        verdicts: list[Verdict] = []
        for start in range(0, len(pairs), self.at_once):
            prompts = [Prompt(tuple(self._template.fill(pair))) for pair in pairs[start : start + self.at_once]]
            for turn in self._sampler.sample(self._role, prompts):
                tokens = len(turn.prompt_ids), len(turn.completion_ids)
                verdict = Verdict(ranked_preference(turn.text), turn.text, *tokens)
                verdict = TOO_LONG if turn.info.get("too_long") else verdict
                if arrived is not None:
                    arrived(len(verdicts), verdict)
                verdicts.append(verdict)
        return verdicts

    def close(self) -> None:
        """Nothing is held open."""


def fingerprint(folder: Path) -> str:
    """Names a model by the content of its folder but for its story, and of its base's where it is an adapter."""
    patterns = ("*.safetensors", *CONFIG_FILES)
    contents: list[Any] = []
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and path.name != LINEAGE}
    for path in sorted(found):
        with path.open("rb") as file:
            contents.append([path.name, file_digest(file, "sha256").hexdigest()])
    if is_adapter(folder):
        base, revision = adapter_base(folder)
        contents.append(fingerprint(find_folder(base, revision, weights=True)))
    return sha256(json.dumps(contents).encode()).hexdigest()


def _single(renderer: Renderer, name: str) -> int:
    """A name's only token."""
    ids = cast(list[int], renderer.tokenizer.encode(name, add_special_tokens=False))
    if len(ids) != 1:
        raise JudgeError(f"this model writes {name!r} with {len(ids)} tokens: take --judge-style ranked")
    return ids[0]


def _weighed(logprobs: list[float], tokens: int) -> Verdict:
    names: dict[str, float] = dict(zip((FIRST, SECOND), logprobs, strict=True))
    return Verdict(weighted_preference(names), max(names, key=lambda name: names[name]), tokens)
