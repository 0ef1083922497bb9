"""The learner: the only owner of parameters.

It sees token ids, advantages and weights, never roles or games. Masters are fp32; passes run in the policy's compute
precision; the loss is Σ_S weight_S · (policy_gradient_S + β · KL_S), one optimiser step a minibatch.

Among several ranks each learns from its share of every minibatch. Weights are of the whole batch already, so losses and
gradients are summed, never averaged, and one rank or many make the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparring.batching import Example, MicroBatch, pack
from sparring.dealing import IDLE, factors, minibatches, shares
from sparring.lm.base import LanguageModel, Scores
from sparring.losses import KLEstimator, policy_gradient, truncated_importance
from sparring.meter import Meter
from sparring.parallel.ranks import ALONE, Ranks
from sparring.parallel.tensors import is_sharded, whole

T = TypeVar("T")


class DivergedError(RuntimeError):
    """Loss or gradient is NaN or infinite. The step was not applied; `examples` is the batch."""

    def __init__(self, message: str, examples: Sequence[Example]) -> None:
        super().__init__(message)
        self.examples = list(examples)

    def __reduce__(self) -> tuple[type[DivergedError], tuple[str, list[Example]]]:
        return type(self), (str(self), self.examples)


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
        importance_cap: most that a token weighs by π / π_sampler, where another engine or older weights drew it; None:
            the sampler is the learner's own policy.
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
    importance_cap: float | None = None

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
        ranks: who shares the work.
        lockstep: the models are sharded over the ranks, so that every pass is a meeting of all.

    `optimizer_steps` counts the optimiser steps begun: while it stands, parameters and moments are as they were.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        policy: LanguageModel,
        reference: LanguageModel | None,
        optimizer: torch.optim.Optimizer,
        settings: Update,
        *,
        ranks: Ranks = ALONE,
        lockstep: bool = False,
    ) -> None:
        if settings.penalised and reference is None:
            raise ValueError("a KL term in the loss (beta > 0) needs the frozen reference")
        self.model, self.policy, self.reference = model, policy, reference
        self.optimizer, self.settings = optimizer, settings
        self.ranks, self._lockstep = ranks, lockstep
        self.optimizer_steps = 0
        self._beta = settings.beta
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def update(
        self, examples: Sequence[Example], learning_rate: float, *, beta_factor: float = 1.0
    ) -> dict[str, float]:
        """Learn from one batch, of which every rank gives all; returns the step's figures.

        beta_factor: what settings.beta is multiplied by in this update.

        Raises:
            DivergedError: NaN or infinite loss or gradient; parameters and optimiser are as before that minibatch.
        """
        if not examples:
            return {"loss": 0.0, "grad_norm": 0.0, "lr": learning_rate, "tokens/trained": 0.0}
        self._beta = self.settings.beta * beta_factor
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        parts = minibatches(examples, self.settings.minibatches)
        mine = [self._share(part) for part in parts]
        weighing = factors(parts)
        old: list[list[Tensor]] = []
        if len(parts) * self.settings.epochs > 1:
            self._meet("scoring before the update", lambda: old.extend([self._logprobs(b) for b in m] for m in mine))
        meter = Meter()
        for _ in range(self.settings.epochs):
            for index, part in enumerate(parts):
                self._step(part, mine[index], old[index] if old else None, weighing[index], meter)
        return {**meter.figures(), "lr": learning_rate}

    def reference_logprobs(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """log π_ref [T] float32 of each example's tokens, for the KL in the reward."""
        place = {example: index for index, example in enumerate(examples)}
        batches = self._share(examples)

        def score() -> dict[int, np.ndarray]:
            found: dict[int, np.ndarray] = {}
            for batch in batches:
                logprobs_S = self._reference_scores(batch).logprobs_S.cpu().numpy()
                ends = np.cumsum([len(example.completion_ids) for example in batch.examples])
                for example, logprobs_T in zip(batch.examples, np.split(logprobs_S, ends[:-1]), strict=True):
                    if example is not IDLE:
                        found[place[example]] = logprobs_T
            return found

        met = self._meet("scoring by the reference", score)
        found = {index: logprobs_T for share in met for index, logprobs_T in share.items()}
        return [found[index] for index in range(len(examples))]

    def pack(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """Micro-batches of at most the budget, as the engine counts its prompts."""
        return pack(examples, self.settings.token_budget, shared_prompts=self.policy.shares_prompts)

    def _share(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """This rank's micro-batches; in lockstep as many as any rank has, by ones that weigh nothing."""
        batches = self.pack(shares(examples, self.ranks.size)[self.ranks.rank])
        if not self._lockstep:
            return batches
        most = max(self.ranks.gather("packing", len(batches)))
        return [*batches, *self.pack([IDLE]) * (most - len(batches))]

    def _meet(self, what: str, work: Callable[[], T]) -> list[T]:
        """All ranks' results of their passes. In lockstep one rank's failure can't wait for the others, which wait."""
        return self.ranks.gather(what, work()) if self._lockstep else self.ranks.together(what, work)

    def _step(
        self,
        part: Sequence[Example],
        share: Sequence[MicroBatch],
        old: Sequence[Tensor] | None,
        weighing: Mapping[str, float],
        meter: Meter,
    ) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        first = not meter.steps
        passed = self._meet("updating", lambda: self._passes(share, old, weighing, first))
        for theirs in passed:
            meter.add(theirs.meter)
        if found := next((theirs.diverged for theirs in passed if theirs.diverged), None):
            self.optimizer.zero_grad(set_to_none=True)
            raise found
        self._sum_gradients([any(flags) for flags in zip(*(theirs.graded for theirs in passed), strict=True)])
        limit = self.settings.max_grad_norm
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)).item()
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergedError(f"the gradient's norm is {norm}", part)
        meter.steps += 1
        meter.grad_norm += norm
        self.optimizer_steps += 1
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.refresh()

    def _passes(
        self, share: Sequence[MicroBatch], old: Sequence[Tensor] | None, weighing: Mapping[str, float], first: bool
    ) -> _Passed:
        """Forward and backward over this rank's share."""
        passed = _Passed()
        for index, batch in enumerate(share):
            loss = self._loss(batch, None if old is None else old[index], weighing, passed.meter, first)
            if not math.isfinite(loss.item()) and passed.diverged is None:
                passed.diverged = DivergedError(f"the loss is {loss.item()}", batch.examples)
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            self.policy.collect_gradients()
        passed.graded = [p.grad is not None for p in self.parameters]
        return passed

    def _sum_gradients(self, graded: Sequence[bool]) -> None:
        """Over the ranks, of whole parameters that any rank has a gradient of; sharded ones' are summed already."""
        held = [p for p, found in zip(self.parameters, graded, strict=True) if found and not is_sharded(p)]
        for parameter in held:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.sum_([parameter.grad for parameter in held])

    def _loss(
        self, batch: MicroBatch, old_S: Tensor | None, weighing: Mapping[str, float], meter: Meter, first: bool
    ) -> Tensor:
        """Σ_S weight_S · (−w ρ A + β KL): L_Sol + α_Ch L_Ch, arXiv 2509.07414, Algorithm 1."""
        policy, reference = self._scores(batch)
        device = policy.logprobs_S.device
        advantage_S = torch.as_tensor(batch.per_token([e.advantage for e in batch.examples])).to(device)
        # A minibatch is a share of the batch that the weights were normalised over.
        weights = [0.0 if e is IDLE else e.token_weight * weighing[e.tag] for e in batch.examples]
        weight_S = torch.as_tensor(batch.per_token(weights)).to(device)
        sampler_S = torch.as_tensor(np.concatenate([e.sampler_logprobs for e in batch.examples])).to(device)
        s = self.settings
        importance_S, cap = None, s.importance_cap
        if cap is not None:
            before_S = policy.logprobs_S if old_S is None else old_S
            importance_S = truncated_importance(before_S, sampler_S, cap)
        loss_S = policy_gradient(
            policy.logprobs_S, advantage_S, old_S, s.clip_low, s.clip_high, importance_S=importance_S
        )
        measured: dict[str, Tensor | None] = {"entropy": policy.entropy_S}
        if s.penalised:
            assert s.kl is not None
            kl_S = measured["kl"] = s.kl(policy, reference)
            loss_S = loss_S + self._beta * kl_S
        loss = (weight_S * loss_S).sum()
        if importance_S is not None and cap is not None:
            measured |= {"importance/mean": importance_S, "importance/clipped": importance_S >= cap}
        if first:  # later sampler and learner differ, as they should
            measured["sampler_gap"] = (policy.logprobs_S - sampler_S).abs()
        if IDLE not in batch.examples:
            meter.measure(batch, loss, measured)
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
        return policy, self._reference_scores(batch) if s.penalised and not exact else None

    def _reference_scores(self, batch: MicroBatch) -> Scores:
        assert self.reference is not None
        with torch.no_grad():
            return self.reference.score(batch.groups, temperature=self.settings.temperature)

    def _logprobs(self, batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            return self.policy.score(batch.groups, temperature=self.settings.temperature).logprobs_S


@dataclass
class _Passed:
    """What came of a rank's passes: its figures, which parameters have a gradient, and what was NaN or infinite."""

    meter: Meter = field(default_factory=Meter)
    graded: list[bool] = field(default_factory=list[bool])
    diverged: DivergedError | None = None
