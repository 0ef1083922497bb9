"""The main loop: play, pay, compare, learn, record. It never learns a game's name."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from sparring.batching import Aggregation, Example, is_trained, to_examples
from sparring.checkpoint import Checkpoint, CheckpointError
from sparring.files import write_json_atomic
from sparring.gallery import Gallery, shown_by
from sparring.games.base import Game
from sparring.health.guard import Guard
from sparring.interrupts import Interrupts
from sparring.kl_reward import less_kl
from sparring.learner import DivergedError, Learner
from sparring.lm.weights import Weights
from sparring.memory import SAMPLING, SCORING, UPDATING, budgeted
from sparring.parallel.ranks import ALONE, Ranks
from sparring.parallel.tensors import whole
from sparring.records import Clock, turn_rows
from sparring.runfolder import RunFolder
from sparring.sampling.ahead import Rollouts
from sparring.sampling.turns import TurnSampler
from sparring.saving import Saver
from sparring.tracking import Tracker
from sparring.types import Advantages, Payoffs, Turn
from sparring.watch import Watch

Metrics = dict[str, float]


class InterruptedRun(RuntimeError):  # noqa: N818 - the run was asked to stop: nothing failed
    """A signal asked the run to stop; everything up to `step` is saved."""

    def __init__(self, signal: str, step: int) -> None:
        super().__init__(f"stopped by {signal} after step {step}; everything is saved")
        self.signal, self.step = signal, step

    def __reduce__(self) -> tuple[type[InterruptedRun], tuple[str, int]]:
        return type(self), (self.signal, self.step)


class Observer(Protocol):
    """Someone who watches a run: a progress display, a test."""

    def started(self, step: int, steps: int) -> None: ...

    def stepped(self, step: int, metrics: Mapping[str, float], turns: Sequence[Turn], payoffs: Payoffs) -> None: ...

    def said(self, message: str) -> None: ...


class Silent:
    """Watches nothing."""

    def started(self, step: int, steps: int) -> None:
        """Nothing."""

    def stepped(self, step: int, metrics: Mapping[str, float], turns: Sequence[Turn], payoffs: Payoffs) -> None:
        """Nothing."""

    def said(self, message: str) -> None:
        """Nothing."""


@dataclass
class Schedule:
    """How long a run is and what it leaves behind.

    learning_rate: step (from 1) → rate. evaluate: held-out accuracy by subset, asked every `evaluate_every` steps.
    """

    steps: int
    learning_rate: Callable[[int], float]
    time_limit: float = 0.0
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    turns_every: int = 1
    evaluate_every: int = 0
    evaluate: Callable[[], Metrics] | None = None


@dataclass
class Trainer:
    """One run of one game. Among several ranks each plays it; rank 0 alone writes, and sees what the others see.

    Args:
        weights: what is trained, saved and exported.
        k1_in_reward: β of the KL that is taken off the payoffs (0: the KL, if any, is in the loss).
        skip_dead_groups: see batching.to_examples.
        dtype: compute precision: how far sampler and learner may differ before it is said.
        overlap: write the next step's turns while the update runs.
        ranks: who shares the work.
        health: watches the run, and stops it or sends it back on an alarm.
    """

    game: Game
    sampler: TurnSampler
    learner: Learner
    weights: Weights
    folder: RunFolder
    schedule: Schedule
    aggregation: Aggregation
    health: Guard
    k1_in_reward: float = 0.0
    skip_dead_groups: bool = False
    dtype: torch.dtype = torch.float32
    overlap: bool = False
    trackers: Sequence[Tracker] = ()
    observer: Observer = field(default_factory=Silent)
    ranks: Ranks = ALONE
    _saver: Saver = field(init=False)
    _gallery: Gallery = field(init=False)
    _began: float = field(default=0.0, init=False)
    _watch: Watch = field(init=False)
    _rollouts: Rollouts = field(init=False)

    def __post_init__(self) -> None:
        self._watch = Watch(self.observer.said, self.dtype)
        keep = self.schedule.keep_checkpoints
        say, health = self.observer.said, self.health
        self._saver = Saver(self.learner, self.weights, self.folder, keep, self.ranks, say, health.sound, health.spared)
        self._gallery = Gallery(self.folder.pictures, say)
        self._rollouts = Rollouts(
            lambda step: self.game.play(self.sampler.at(step)), self.sampler, overlap=self.overlap
        )

    def run(self) -> int:
        """Train to the end, from the last good checkpoint where there is one; returns the last step.

        Raises:
            InterruptedRun: SIGINT or SIGTERM; saved and resumable.
            DivergedError, RewardError, CheckpointError, RunFolderError: saved up to the last checkpoint.
        """
        try:
            return self._run()
        finally:
            self._rollouts.close()
            for tracker in self.trackers:
                tracker.finish()

    def _run(self) -> int:
        step, elapsed = self._resume()
        self.observer.started(step, self.schedule.steps)
        self._began = time.monotonic() - elapsed
        with Interrupts(self.observer.said, echo=0.0 if self.ranks.size == 1 else 1.0) as interrupts:
            if step == 0:
                self._record(0, self._held_out(0), [], {})
            signal, late = self._asked_to_stop(interrupts)
            while step < self.schedule.steps and not late:
                step += 1
                self._step(step)
                step = self.health.react(step, self, last=step == self.schedule.steps)
                signal, late = self._asked_to_stop(interrupts)
                if signal:
                    self._save(step, self.game.state())
                    raise InterruptedRun(signal, step)
                due = self.schedule.checkpoint_every and step % self.schedule.checkpoint_every == 0
                if due and self._saver.saved != step:
                    self._save(step, self.game.state())
        self._rollouts.settle()  # time is up: a step that nobody will learn from may still be being played
        if self._saver.saved != step:
            self._save(step, self.game.state())
        self._saver.export()
        return step

    def _asked_to_stop(self, interrupts: Interrupts) -> tuple[str | None, bool]:
        """The signal that any rank got, and whether rank 0's time is up: the same on all."""
        asked = self.ranks.gather("ending a step", (interrupts.requested, self._out_of_time()))
        return next((signal for signal, _ in asked if signal), None), asked[0][1]

    def _step(self, step: int) -> None:
        clock = Clock()
        before = copy.deepcopy(self.game.state())
        try:
            with budgeted("sampling", SAMPLING):
                turns, rollout = self._rollouts.turns(step)
            clock.lap("play")
            with budgeted("scoring the answers", SCORING):
                payoffs = self.game.payoffs(turns)
            with budgeted("scoring by the reference", UPDATING):
                payoffs = less_kl(payoffs, self.learner, self.k1_in_reward * self.health.beta_factor)
            clock.lap("payoffs")
            advantages = self.game.baseline(turns, payoffs)
        except Exception as error:
            if self.ranks.settle(error):
                self._keep(step - 1, before)
            raise
        factors = self.health.role_factors
        examples = to_examples(turns, advantages, self.aggregation, factors, skip_zero=self.skip_dead_groups)
        if step < self.schedule.steps:
            self._rollouts.begin(step + 1)
        self._require_agreement(step, examples)
        learned = self._learn(step, examples, before)
        clock.lap("update")
        sampled = float(sum(len(turn.completion_ids) for turn in turns))
        figures = {**self.game.metrics(turns, payoffs), **rollout, **learned, "tokens/sampled": sampled}
        self._watch.played(step, turns, figures)
        figures["tokens_per_second"] = (sampled + learned["tokens/trained"]) / clock.total
        figures |= self._held_out(step)
        figures |= self.health.step(step, turns, payoffs, figures)
        self.ranks.same("the run's health", int(self.health.status.level))
        clock.lap("evaluate")
        self._record(step, figures | clock.figures(), turns, payoffs, advantages)

    def _learn(self, step: int, examples: Sequence[Example], before: dict[str, Any]) -> Metrics:
        taken = self.learner.optimizer_steps
        try:
            with budgeted("updating", UPDATING):
                rate = self.schedule.learning_rate(step)
                learned = self.learner.update(examples, rate, beta_factor=self.health.beta_factor)
        except Exception as error:
            if self.learner.optimizer_steps == taken and self.ranks.settle(error):
                self._keep(step - 1, before)
            if isinstance(error, DivergedError):
                raise self._diverged(step, str(error), error.examples) from error
            raise
        if not self._finite():
            raise self._diverged(step, "the update made parameters NaN or infinite", examples)
        self._watch.learned(step, sum(abs(example.advantage) > 1e-9 for example in examples), learned)
        return learned

    def keep(self, step: int) -> None:
        """See health.guard.Run."""
        self._save(step, self.game.state())

    def go_back(self) -> int | None:
        """See health.guard.Run."""
        checkpoint = self._saver.gone_back()
        if checkpoint is None:
            return None
        self._rollouts.drop()
        self._take_back(checkpoint)
        return checkpoint.step

    def _held_out(self, step: int) -> Metrics:
        """Accuracy on held-out questions, and the match against the run's start, where they are due."""
        every, evaluate = self.schedule.evaluate_every, self.schedule.evaluate
        ask = evaluate if every and step % every == 0 else None
        plays = self.health.plays(step)
        if ask is None and not plays:
            return {}
        self._rollouts.settle()
        self.sampler.updated(step)
        try:
            figures = {} if ask is None else {f"eval/{name}": value for name, value in ask().items()}
            return figures | (self.health.match(step) if plays else {})
        except FloatingPointError as error:
            raise DivergedError(f"step {step}: {error}; {self._remedy()}", []) from error

    def _record(
        self,
        step: int,
        figures: Metrics,
        turns: Sequence[Turn],
        payoffs: Payoffs,
        advantages: Advantages | None = None,
    ) -> None:
        self.ranks.first("recording a step", lambda: self._write_down(step, figures, turns, payoffs, advantages or {}))
        if turns:
            self.observer.stepped(step, figures, turns, payoffs)

    def _write_down(
        self, step: int, figures: Metrics, turns: Sequence[Turn], payoffs: Payoffs, paid: Advantages
    ) -> None:
        self.folder.append_metrics({"step": step, **figures})
        every = self.schedule.turns_every
        if turns and every and step % every == 0:
            trained = {turn for turn in turns if is_trained(turn, paid, skip_zero=self.skip_dead_groups)}
            self._gallery.keep(shown_by(turns))  # before the turns that name them
            self.folder.write_turns(step, turn_rows(turns, payoffs, paid, trained))
        for tracker in self.trackers:
            tracker.log(step, figures)

    def _out_of_time(self) -> bool:
        limit = self.schedule.time_limit
        return bool(limit) and time.monotonic() - self._began >= limit

    def _finite(self) -> bool:
        parameters = [parameter.detach() for parameter in self.learner.parameters]
        return math.isfinite(whole(torch.nn.utils.get_total_norm(parameters, math.inf)).item())

    def _keep(self, step: int, game: dict[str, Any]) -> None:
        """The next step failed (a reward raised, memory ran out): save first what was learned up to `step`."""
        if not self._finite():
            raise DivergedError(f"after step {step} the model's parameters are NaN or infinite; {self._remedy()}", [])
        if step <= max(0, self._saver.saved):
            return
        try:
            self._save(step, game)
        except CheckpointError as error:
            self.observer.said(str(error))  # the failed step is what the caller must hear of
        else:
            self.observer.said(f"step {step + 1} failed; everything up to step {step} is saved")

    def _save(self, step: int, game: dict[str, Any]) -> None:
        elapsed = time.monotonic() - self._began
        self._saver.save(step, {"elapsed": elapsed, "game": game, "health": self.health.state()})

    def _resume(self) -> tuple[int, float]:
        checkpoint = self._saver.latest()
        if checkpoint is None:
            return 0, 0.0
        self._take_back(checkpoint)
        self.observer.said(f"resuming after step {checkpoint.step}")
        return checkpoint.step, float(checkpoint.state["elapsed"])

    def _take_back(self, checkpoint: Checkpoint) -> None:
        self._saver.restore(checkpoint)
        self.game.restore(checkpoint.state["game"])
        if "health" in checkpoint.state:
            self.health.restore(checkpoint.state["health"])

    def _require_agreement(self, step: int, examples: Sequence[Example]) -> None:
        """See that a game or reward of the user's own gives the same on every rank: else they learn apart."""
        if self.ranks.size == 1:
            return
        digest = hashlib.sha256()
        for e in examples:
            digest.update(repr((e.tag, e.prompt_ids, e.completion_ids, e.advantage, e.token_weight)).encode())
        self.ranks.same(
            f"what step {step} learns: a game or a reward gives something else on each (its draws must come from "
            "sampler.rng; a reward of your own is asked of rank 0 only where it is game.reward.function)",
            digest.hexdigest(),
        )

    def _diverged(self, step: int, cause: str, examples: Sequence[Example]) -> DivergedError:
        path = self.folder.path / f"failed-batch-step-{step:06d}.json"
        rows = [
            {
                "tag": e.tag,
                "advantage": repr(e.advantage),
                "token_weight": repr(e.token_weight),
                "prompt_ids": list(e.prompt_ids),
                "completion_ids": list(e.completion_ids),
            }
            for e in examples
        ]
        self.ranks.first("keeping the failed batch", lambda: write_json_atomic(path, rows))
        largest = max((abs(e.advantage) for e in examples), default=0.0)
        return DivergedError(
            f"step {step}: {cause}; nothing of this step is kept and its batch (largest advantage {largest:g}) "
            f"is in {path}; {self._remedy()}",
            examples,
        )

    def _remedy(self) -> str:
        return (
            f"lower learner.lr or learner.max_grad_norm in {self.folder.config}, or look for extreme "
            "payoffs, and resume: it goes on from the last good checkpoint"
        )
