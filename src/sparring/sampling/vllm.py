"""Sampling by vLLM: completions from an engine, the trainer's weights into it, and the proof that they arrived."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from sparring.lm.base import Completion, LanguageModel, PromptGroup, SamplingParams
from sparring.lm.weights import LoraWeights, Weights
from sparring.rollout.base import RolloutEngine
from sparring.rollout.folders import prepare_folder
from sparring.sampling.seeds import Draws
from sparring.sampling.turns import Ids
from sparring.types import ModelName

PROBED, PROBE_TOKENS = 4, 24  # prompts asked and tokens read back after every update


class PartedError(RuntimeError):
    """Sampler and trainer compute different log-probabilities: an update did not land, or they hold two models."""


class Answerer(Protocol):
    """Whoever writes for the reference: another engine, or a frozen copy in this process."""

    def complete(
        self, model: ModelName, prompts: Sequence[Ids], n: int, params: SamplingParams, draws: Draws
    ) -> list[list[Completion]]: ...

    def close(self) -> None: ...


class EngineWriter:
    """One engine as a writer.

    Args:
        engine: vLLM, in process or a server.
        adapter: whether the policy is the engine's base with the trained adapter; the reference is then the base.
    """

    def __init__(self, engine: RolloutEngine, *, adapter: bool) -> None:
        self._engine, self._adapter = engine, adapter

    def complete(
        self, model: ModelName, prompts: Sequence[Ids], n: int, params: SamplingParams, draws: Draws
    ) -> list[list[Completion]]:
        """See `sampling.turns.Writer.complete`."""
        adapter = self._adapter and model == "policy"
        return self._engine.generate(prompts, n, params, draws.seeds(), adapter=adapter)

    def close(self) -> None:
        """Let go of the engine."""
        self._engine.close()


@dataclass
class Feed:
    """Writes the trainer's weights where an engine reads them. Among several ranks all call each of these.

    Args:
        weights: what the run trains.
        folder: seen by this process and the engine under one path; only the newest version stays in it.
        dtype: of full weights on their way (an adapter stays float32).
        untie: give a model with tied embeddings an output layer of its own, as vLLM on a CPU needs it.
    """

    weights: Weights
    folder: Path
    dtype: torch.dtype
    untie: bool

    def write(self, version: int) -> Path:
        """A folder with the weights as they are now."""
        target, ranks = self.folder / f"version-{version:06d}", self.weights.ranks
        untie = self.untie and not isinstance(self.weights, LoraWeights)
        saved = target.with_name(f"{target.name}-tied") if untie else target
        ranks.first("clearing the engine's folder", lambda: _emptied(target, saved))
        self.weights.publish(saved, self.dtype)
        if untie:
            ranks.first("untying the embeddings", lambda: _untied(saved, target))
        return target

    def keep_only(self, version: int) -> None:
        """Remove older versions: a restarted server asks for the newest again, and for no other."""
        self.weights.ranks.first("tidying the engine's folder", lambda: self._keep_only(version))

    def _keep_only(self, version: int) -> None:
        for path in self.folder.glob("version-*"):
            if path.name != f"version-{version:06d}":
                shutil.rmtree(path, ignore_errors=True)


def _emptied(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)


def _untied(saved: Path, target: Path) -> None:
    shutil.rmtree(target)
    if prepare_folder(saved, target) == saved:
        saved.rename(target)
    else:
        shutil.rmtree(saved)


class VLLMWriter:
    """The policy by vLLM, kept at the trainer's weights; the reference by whoever holds it.

    Args:
        engine: writes for the policy.
        reference: who writes for the frozen start; None: the same engine without the adapter.
        feed: the trainer's weights on their way.
        policy: the trainer's own view of the policy, which a probe is compared with.
        gap_limit: nats a token by which the two may differ in the mean.
        probe: a prompt for the comparison before anything was sampled.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        reference: Answerer | None,
        feed: Feed,
        policy: LanguageModel,
        *,
        gap_limit: float,
        probe: Ids,
    ) -> None:
        self._engine, self._feed, self._policy = engine, feed, policy
        adapted = isinstance(feed.weights, LoraWeights)
        own = EngineWriter(engine, adapter=adapted)
        self._writers: dict[ModelName, Answerer | None] = {"policy": own, "reference": own if adapted else reference}
        self._gap_limit = gap_limit
        self._probes: list[Ids] = [probe]
        self._version: int | None = None  # of the weights in the engine, as far as this process knows

    def complete(
        self, model: ModelName, prompts: Sequence[Ids], n: int, params: SamplingParams, draws: Draws
    ) -> list[list[Completion]]:
        """See `sampling.turns.Writer.complete`."""
        writer = self._writers[model]
        if writer is None:
            raise ValueError(f"a role asks for the {model} model, and this run holds none")
        if model == "policy" and prompts:
            # Spread over the step's prompts: the Challenger's and the Solver's both.
            self._probes = [*self._probes[-PROBED:], prompts[0], prompts[-1]]
        return writer.complete(model, prompts, n, params, draws)

    def updated(self, version: int) -> dict[str, float]:
        """Put the trainer's weights into the engine and compare the two on a few sampled tokens.

        Returns seconds/weights, and sampler_gap/probe in nats a token; nothing where the engine has this version
        already. Version 0 is the start, which it was started with.

        Raises:
            PartedError: they differ by more than the limit.
            EngineError: the engine is gone or refused the weights.
        """
        if version == self._version:
            return {}
        start = time.perf_counter()
        if version:
            self._engine.update(self._feed.write(version), version)
            self._feed.keep_only(version)
        seconds = time.perf_counter() - start
        gap = self._probe(version)
        self._version = version
        return {"seconds/weights": seconds, "sampler_gap/probe": gap}

    def close(self) -> None:
        """Let go of the engines."""
        for writer in self._writers.values():
            if writer is not None:
                writer.close()

    def _probe(self, version: int) -> float:
        """Mean |log π_sampler − log π_trainer| of a few tokens that the engine draws now."""
        prompts = list(dict.fromkeys(self._probes))[-PROBED:]
        params = SamplingParams(PROBE_TOKENS)
        draws = Draws(version, 0, "probe", 0, len(prompts), tuple(range(len(prompts))))
        policy = self._writers["policy"]
        assert policy is not None
        rows = [row[0] for row in policy.complete("policy", prompts, 1, params, draws)]
        groups = [PromptGroup(ids, (row.ids,)) for ids, row in zip(prompts, rows, strict=True)]
        with torch.no_grad():
            mine_S = self._policy.score(groups).logprobs_S.cpu()
        theirs_S = np.concatenate([row.logprobs for row in rows])
        # The ranks go on together or not at all, also where rounding differs between them.
        gap = max(self._feed.weights.ranks.gather("probing", float(np.abs(mine_S.numpy() - theirs_S).mean())))
        if not gap <= self._gap_limit:
            raise PartedError(
                f"after update {version} sampler and trainer differ by {gap:.3g} nats a token in the mean (limit "
                f"rollout.gap_limit={self._gap_limit:g}): the weights did not land in vLLM, or it serves another "
                "model; start the server as `sparring serve-command` says, and resume"
            )
        return gap
