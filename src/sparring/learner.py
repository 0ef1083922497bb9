"""The learner: the only owner of parameters.

It sees token ids, advantages and weights, never roles or games. Masters are fp32; passes run in the policy's compute
precision; the loss is Σ_S weight_S · (policy_gradient_S + β · KL_S), one optimiser step a minibatch.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparring.batching import Example, MicroBatch, pack
from sparring.lm.base import LanguageModel, Scores
from sparring.losses import KLEstimator, policy_gradient


class DivergedError(RuntimeError):
    """Loss or gradient is NaN or infinite. The step was not applied; `examples` is the batch."""

    def __init__(self, message: str, examples: Sequence[Example]) -> None:
        super().__init__(message)
        self.examples = list(examples)


class KLPenalty(Protocol):
    """The KL term of the loss, per scored position."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Tensor: ...


@dataclass(frozen=True)
class ExactKL:
    """KL(π ‖ π_ref) summed over the vocabulary at each position: no sampling noise."""

    def __call__(self, policy: Scores, reference: Scores | None) -> Tensor:
        assert policy.kl_S is not None
        return policy.kl_S


@dataclass(frozen=True)
class SampledKL:
    """An estimate from the sampled token's two log-probabilities: losses.k2 or losses.k3."""

    estimator: KLEstimator

    def __call__(self, policy: Scores, reference: Scores | None) -> Tensor:
        assert reference is not None
        return self.estimator(policy.logprobs_S, reference.logprobs_S)


@dataclass(frozen=True)
class Update:
    """How a batch becomes optimiser steps.

    Args:
        beta: weight of the KL in the loss; with 0 the reference is not asked.
        kl: the KL term; None where the KL is in the reward, or nowhere.
        temperature: the sampling temperature: log-probabilities are those of the distribution sampled from.
        minibatches: optimiser steps a pass over the batch; epochs: passes. More than one step in all needs the ratio.
        clip_low, clip_high: bounds of the ratio, 1 − clip_low and 1 + clip_high; None for none.
        max_grad_norm: gradients are scaled down to this norm; None for no clipping.
        token_budget: most padded tokens in one forward pass: lower it where memory runs out.
        entropy: whether the policy's entropy is measured.
    """

    beta: float = 0.0
    kl: KLPenalty | None = None
    temperature: float = 1.0
    minibatches: int = 1
    epochs: int = 1
    clip_low: float | None = None
    clip_high: float | None = None
    max_grad_norm: float | None = 1.0
    token_budget: int = 4_096
    entropy: bool = True

    @property
    def penalised(self) -> bool:
        """Whether the loss has a KL term."""
        return self.kl is not None and self.beta > 0


class Learner:
    """One model's parameters, optimiser and reference.

    Args:
        model: the masters, fp32.
        policy: the compute view of the same parameters.
        reference: the frozen start; None where neither loss nor game needs it.
        optimizer: over the model's trainable parameters.
        settings: see Update.

    `optimizer_steps` counts the optimiser steps begun: while it stands, parameters and moments are as they were.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        policy: LanguageModel,
        reference: LanguageModel | None,
        optimizer: torch.optim.Optimizer,
        settings: Update,
    ) -> None:
        if settings.penalised and reference is None:
            raise ValueError("a KL term in the loss (beta > 0) needs the frozen reference")
        self.model, self.policy, self.reference = model, policy, reference
        self.optimizer, self.settings = optimizer, settings
        self.optimizer_steps = 0
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def update(self, examples: Sequence[Example], learning_rate: float) -> dict[str, float]:
        """Learn from one batch; returns the step's figures.

        Raises:
            DivergedError: NaN or infinite loss or gradient; parameters and optimiser are as before that minibatch.
        """
        if not examples:
            return {"loss": 0.0, "grad_norm": 0.0, "lr": learning_rate, "tokens/trained": 0.0}
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        parts = _minibatches(examples, self.settings.minibatches)
        batches = [self.pack(part) for part in parts]
        factors = _factors(parts)
        one_step = len(parts) * self.settings.epochs == 1
        old = None if one_step else [[self._logprobs(batch) for batch in part] for part in batches]
        meter = _Meter()
        for _ in range(self.settings.epochs):
            for index, part in enumerate(batches):
                self._step(part, None if old is None else old[index], factors[index], meter)
        return {**meter.figures(), "lr": learning_rate}

    def pack(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """Micro-batches of at most the budget, as the engine counts its prompts."""
        return pack(examples, self.settings.token_budget, shared_prompts=self.policy.shares_prompts)

    def reference_logprobs(self, batch: MicroBatch) -> Tensor:
        """log π_ref [S] of a batch's tokens, for the KL in the reward."""
        assert self.reference is not None
        with torch.no_grad():
            return self.reference.score(batch.groups, temperature=self.settings.temperature).logprobs_S

    def _step(
        self, batches: Sequence[MicroBatch], old: Sequence[Tensor] | None, factors: Mapping[str, float], meter: _Meter
    ) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for index, batch in enumerate(batches):
            loss = self._loss(batch, None if old is None else old[index], factors, meter)
            if not math.isfinite(loss.item()):
                raise DivergedError(f"the loss is {loss.item()}", batch.examples)
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            self.policy.collect_gradients()
        limit = self.settings.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
        if not math.isfinite(norm.item()):
            self.optimizer.zero_grad(set_to_none=True)
            examples = [example for batch in batches for example in batch.examples]
            raise DivergedError(f"the gradient's norm is {norm.item()}", examples)
        meter.steps += 1
        meter.grad_norm += norm.item()
        self.optimizer_steps += 1
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.refresh()

    def _loss(self, batch: MicroBatch, old_S: Tensor | None, factors: Mapping[str, float], meter: _Meter) -> Tensor:
        """Σ_S weight_S · (−ρ A + β KL): L_Sol + α_Ch L_Ch, arXiv 2509.07414, Algorithm 1."""
        policy, reference = self._scores(batch)
        device = policy.logprobs_S.device
        advantage_S = torch.as_tensor(batch.per_token([e.advantage for e in batch.examples])).to(device)
        # A minibatch is a share of the batch that the weights were normalised over.
        weights = [e.token_weight * factors[e.tag] for e in batch.examples]
        weight_S = torch.as_tensor(batch.per_token(weights)).to(device)
        s = self.settings
        loss_S = policy_gradient(policy.logprobs_S, advantage_S, old_S, s.clip_low, s.clip_high)
        kl_S = None
        if s.penalised:
            assert s.kl is not None
            kl_S = s.kl(policy, reference)
            loss_S = loss_S + s.beta * kl_S
        loss = (weight_S * loss_S).sum()
        meter.add(batch, loss, policy, kl_S)
        return loss

    def _scores(self, batch: MicroBatch) -> tuple[Scores, Scores | None]:
        s = self.settings
        exact = s.penalised and isinstance(s.kl, ExactKL)
        policy = self.policy.score(
            batch.groups,
            temperature=s.temperature,
            reference=self.reference if exact else None,
            entropy=s.entropy,
        )
        if not s.penalised or exact:
            return policy, None
        assert self.reference is not None
        with torch.no_grad():
            return policy, self.reference.score(batch.groups, temperature=s.temperature)

    def _logprobs(self, batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            return self.policy.score(batch.groups, temperature=self.settings.temperature).logprobs_S


def _minibatches(examples: Sequence[Example], count: int) -> list[list[Example]]:
    """Deal each tag out by itself: whole prompts where there are enough (each prefix is computed once), else examples.

    A tag of fewer examples than minibatches is absent from some; a minibatch without any example is left out.
    """
    if count == 1:
        return [list(examples)]
    tags: dict[str, dict[tuple[int, ...], list[Example]]] = {}
    for example in examples:
        tags.setdefault(example.tag, {}).setdefault(example.prompt_ids, []).append(example)
    parts: list[list[Example]] = [[] for _ in range(count)]
    for groups in tags.values():
        shares = list(groups.values())
        if len(shares) < count:
            shares = [[example] for group in shares for example in group]
        for index, share in enumerate(shares):
            parts[index % count] += share
    return [part for part in parts if part]


def _factors(parts: Sequence[Sequence[Example]]) -> list[dict[str, float]]:
    """What each minibatch multiplies a tag's weights by, as they were normalised over the whole batch.

    Shares are by examples: a tag weighs in a minibatch what it does in the batch, and where it is absent from some
    minibatches the others make up for it.
    """
    counts = [Counter(example.tag for example in part) for part in parts]
    total: Counter[str] = sum(counts, Counter[str]())
    present = Counter(tag for count in counts for tag in count)
    return [{tag: total[tag] / n * (len(parts) / present[tag]) for tag, n in count.items()} for count in counts]


class _Meter:
    """Sums a batch's figures by tag: a micro-batch's values are fetched from the device at once, when it is scored."""

    def __init__(self) -> None:
        self.loss = self.grad_norm = 0.0
        self.steps = self.tokens = 0
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, batch: MicroBatch, loss: Tensor, policy: Scores, kl_S: Tensor | None) -> None:
        self.loss += loss.item()
        self.tokens += batch.scored_tokens
        measured = {"kl": kl_S, "entropy": policy.entropy_S}
        measured["sampler_gap"] = self._gap(batch, policy.logprobs_S)
        tags = sorted({e.tag for e in batch.examples})
        tag_S = batch.per_token([tags.index(e.tag) for e in batch.examples]).astype(np.int64)
        count = np.bincount(tag_S, minlength=len(tags))
        for name, value_S in measured.items():
            if value_S is None:
                continue
            total = np.bincount(tag_S, weights=value_S.detach().cpu().numpy(), minlength=len(tags))
            for index, tag in enumerate(tags):
                self._sums[f"{name}/{tag}"] += float(total[index])
                self._counts[f"{name}/{tag}"] += int(count[index])

    def figures(self) -> dict[str, float]:
        steps = max(1, self.steps)
        means = {name: total / max(1, self._counts[name]) for name, total in sorted(self._sums.items())}
        return {
            "loss": self.loss / steps,
            "grad_norm": self.grad_norm / steps,
            "tokens/trained": float(self.tokens),
            **means,
        }

    def _gap(self, batch: MicroBatch, logprobs_S: Tensor) -> Tensor | None:
        if self.steps:
            return None  # after the first step sampler and learner differ, as they should
        sampled_S = torch.as_tensor(np.concatenate([e.sampler_logprobs for e in batch.examples]))
        return (logprobs_S.detach().cpu() - sampled_S).abs()
