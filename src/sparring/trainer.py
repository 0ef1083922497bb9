"""The main loop: play, pay, compare, learn, record. It never learns a game's name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from sparring.batching import Aggregation, Example, pack, to_examples
from sparring.checkpoint import (
    Checkpoint,
    clear_leftovers,
    flatten_optimizer,
    latest_good,
    restore_optimizer,
    save_checkpoint,
)
from sparring.games.base import Game
from sparring.interrupts import Interrupts
from sparring.learner import DivergedError, Learner
from sparring.lm.load import load_model, save_model
from sparring.losses import k1
from sparring.runfolder import RunFolder, write_json_atomic
from sparring.sampling.local import LocalSampler
from sparring.tracking import Tracker
from sparring.types import Advantages, Payoff, Payoffs, Turn

Metrics = dict[str, float]


class InterruptedRun(RuntimeError):  # noqa: N818 - the run was asked to stop: nothing failed
    """A signal asked the run to stop; everything up to `step` is saved."""

    def __init__(self, signal: str, step: int) -> None:
        super().__init__(f"stopped by {signal} after step {step}; everything is saved")
        self.signal, self.step = signal, step


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
    """One run of one game.

    Args:
        k1_in_reward: β of the KL that is taken off the payoffs (0: the KL, if any, is in the loss).
        skip_dead_groups: see batching.to_examples.
    """

    game: Game
    sampler: LocalSampler
    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    folder: RunFolder
    schedule: Schedule
    aggregation: Aggregation
    k1_in_reward: float = 0.0
    skip_dead_groups: bool = False
    trackers: Sequence[Tracker] = ()
    observer: Observer = field(default_factory=Silent)

    def run(self) -> int:
        """Train to the end, from the last good checkpoint where there is one; returns the last step.

        Raises:
            InterruptedRun: SIGINT or SIGTERM; saved and resumable.
            DivergedError, RewardError, CheckpointError, RunFolderError: saved up to the last checkpoint.
        """
        step, elapsed = self._resume()
        self.observer.started(step, self.schedule.steps)
        began = time.monotonic() - elapsed
        with Interrupts() as interrupts:
            if step == 0:
                self._record(0, self._evaluation(0), [], {})
            while step < self.schedule.steps and not self._out_of_time(began):
                step += 1
                self._step(step)
                if interrupts.requested:
                    self._save(step, time.monotonic() - began)
                    raise InterruptedRun(interrupts.requested, step)
                if self.schedule.checkpoint_every and step % self.schedule.checkpoint_every == 0:
                    self._save(step, time.monotonic() - began)
        self._save(step, time.monotonic() - began)
        save_model(self.learner.model, self.tokenizer, self.folder.model)
        for tracker in self.trackers:
            tracker.finish()
        return step

    def _step(self, step: int) -> None:
        clock = _Clock()
        turns = self.game.play(self.sampler.at(step))
        clock.lap("play")
        payoffs = self._with_kl(turns, self.game.payoffs(turns))
        clock.lap("payoffs")
        advantages = self.game.baseline(turns, payoffs)
        examples = to_examples(turns, advantages, self.aggregation, skip_zero=self.skip_dead_groups)
        try:
            learned = self.learner.update(examples, self.schedule.learning_rate(step))
        except DivergedError as error:
            raise self._diverged(step, error) from error
        clock.lap("update")
        sampled = float(sum(len(turn.completion_ids) for turn in turns))
        figures = {**self.game.metrics(turns, payoffs), **learned, "tokens/sampled": sampled}
        figures |= self._evaluation(step)
        clock.lap("evaluate")
        figures |= clock.figures()
        figures["tokens_per_second"] = (sampled + learned["tokens/trained"]) / clock.total
        self._record(step, figures, turns, payoffs, advantages)

    def _with_kl(self, turns: Sequence[Turn], payoffs: Payoffs) -> Payoffs:
        """k1 in the reward: r − β Σ_t (log π − log π_ref), before centring."""
        if not self.k1_in_reward:
            return payoffs
        examples = {
            turn: Example(turn.prompt_ids, turn.completion_ids, 0.0, 0.0, turn.logprobs, turn.role.name)
            for turn in payoffs
            if turn.model == "policy" and turn.role.weight > 0 and turn.completion_ids
        }
        penalty: dict[Example, float] = {}
        for batch in pack(list(examples.values()), self.learner.settings.token_budget):
            lengths = [len(example.completion_ids) for example in batch.examples]
            for example, reference_T in zip(
                batch.examples, self.learner.reference_logprobs(batch).split(lengths), strict=True
            ):
                logprob_T = torch.from_numpy(example.sampler_logprobs)
                penalty[example] = float(k1(logprob_T, reference_T.cpu()).sum()) * self.k1_in_reward
        return {
            turn: payoff.plus("kl", -penalty[examples[turn]]) if turn in examples else payoff
            for turn, payoff in payoffs.items()
        }

    def _evaluation(self, step: int) -> Metrics:
        every, evaluate = self.schedule.evaluate_every, self.schedule.evaluate
        if evaluate is None or not every or step % every:
            return {}
        return {f"eval/{name}": value for name, value in evaluate().items()}

    def _record(
        self, step: int, figures: Metrics, turns: Sequence[Turn], payoffs: Payoffs, advantages: Advantages | None = None
    ) -> None:
        self.folder.append_metrics({"step": step, **figures})
        every = self.schedule.turns_every
        if turns and every and step % every == 0:
            self.folder.write_turns(step, turn_rows(turns, payoffs, advantages or {}))
        for tracker in self.trackers:
            tracker.log(step, figures)
        if turns:
            self.observer.stepped(step, figures, turns, payoffs)

    def _out_of_time(self, began: float) -> bool:
        limit = self.schedule.time_limit
        return bool(limit) and time.monotonic() - began >= limit

    def _save(self, step: int, elapsed: float) -> None:
        names = {parameter: name for name, parameter in self.learner.model.named_parameters()}
        tensors, optimizer = flatten_optimizer(self.learner.optimizer, names)
        save_checkpoint(
            self.folder.checkpoints,
            step,
            write_model=lambda path: save_model(self.learner.model, self.tokenizer, path),
            tensors=tensors,
            state={"step": step, "elapsed": elapsed, "optimizer": optimizer, "game": self.game.state()},
            keep=self.schedule.keep_checkpoints,
        )

    def _resume(self) -> tuple[int, float]:
        clear_leftovers(self.folder.checkpoints, self.observer.said)
        checkpoint = latest_good(self.folder.checkpoints, self.observer.said)
        if checkpoint is None:
            self.folder.truncate_metrics(-1, self.observer.said)
            self.folder.drop_turns(-1)
            return 0, 0.0
        self._restore(checkpoint)
        self.folder.truncate_metrics(checkpoint.step, self.observer.said)
        self.folder.drop_turns(checkpoint.step)
        self.observer.said(f"resuming after step {checkpoint.step}")
        return checkpoint.step, float(checkpoint.state["elapsed"])

    def _restore(self, checkpoint: Checkpoint) -> None:
        saved = load_model(checkpoint.model_path)
        with torch.no_grad():
            for (name, mine), (_, theirs) in zip(
                self.learner.model.named_parameters(), saved.named_parameters(), strict=True
            ):
                assert mine.shape == theirs.shape, name
                mine.copy_(theirs)
        self.learner.policy.refresh()
        names = {parameter: name for name, parameter in self.learner.model.named_parameters()}
        restore_optimizer(self.learner.optimizer, names, checkpoint.tensors(), checkpoint.state["optimizer"])
        self.game.restore(checkpoint.state["game"])

    def _diverged(self, step: int, error: DivergedError) -> DivergedError:
        path = self.folder.path / f"failed-batch-step-{step:06d}.json"
        rows = [
            {
                "tag": e.tag,
                "advantage": repr(e.advantage),
                "token_weight": e.token_weight,
                "prompt_ids": list(e.prompt_ids),
                "completion_ids": list(e.completion_ids),
            }
            for e in error.examples
        ]
        write_json_atomic(path, rows)
        return DivergedError(
            f"step {step}: {error}; the step was not applied and its batch is in {path}. Lower learner.lr or "
            "learner.max_grad_norm, or look for extreme payoffs, and resume",
            error.examples,
        )


class _Clock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[f"seconds/{name}"] = now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return self._last - self._start

    def figures(self) -> Metrics:
        return {**self._laps, "seconds/step": self.total}


def turn_rows(turns: Sequence[Turn], payoffs: Payoffs, advantages: Advantages) -> list[dict[str, Any]]:
    """Turns as rows of a table: one a turn, parents by index."""
    index = {turn: number for number, turn in enumerate(turns)}
    return [
        {
            "index": index[turn],
            "parent": -1 if turn.parent is None else index[turn.parent],
            "role": turn.role.name,
            "model": turn.model,
            "prompt": str(turn.prompt.messages[-1]["content"]),
            "text": turn.text,
            "finish": turn.finish,
            "prompt_tokens": len(turn.prompt_ids),
            "completion_tokens": len(turn.completion_ids),
            "payoff": payoffs[turn].total if turn in payoffs else None,
            "parts": json.dumps(payoffs[turn].parts) if turn in payoffs else None,
            "advantage": advantages.get(turn),
            "trained": turn in advantages,
            "info": json.dumps(dict(turn.info), default=_plain),
        }
        for turn in turns
    ]


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
