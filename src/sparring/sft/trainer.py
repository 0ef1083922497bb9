"""The loop of supervised fine-tuning: a step's lessons, an update, a line of metrics; and what survives."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sparring.checkpoint import CheckpointError
from sparring.files import RunFolderError, write_json_atomic
from sparring.interrupts import Interrupts
from sparring.learner import DivergedError
from sparring.lm.weights import Weights
from sparring.memory import UPDATING, budgeted
from sparring.parallel.ranks import ALONE, Ranks
from sparring.parallel.tensors import whole
from sparring.records import Clock
from sparring.runfolder import RunFolder
from sparring.saving import Saver
from sparring.sft.learner import SupervisedLearner
from sparring.sft.lessons import Curriculum
from sparring.sft.spans import Lesson
from sparring.tracking import Tracker
from sparring.trainer import InterruptedRun, Observer, Schedule, Silent

Metrics = dict[str, float]


@dataclass
class Lectures:
    """One supervised run. Among several ranks each has all lessons and learns from its share; rank 0 alone writes.

    Args:
        batch: lessons an update. total: lessons of all updates together.
        schedule: its `turns_every` and `evaluate` are of no meaning here.
    """

    lessons: Curriculum
    learner: SupervisedLearner
    weights: Weights
    folder: RunFolder
    schedule: Schedule
    batch: int
    total: int
    seed: int
    trackers: Sequence[Tracker] = ()
    observer: Observer = field(default_factory=Silent)
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        keep = self.schedule.keep_checkpoints
        self._saver = Saver(self.learner, self.weights, self.folder, keep, self.ranks, self.observer.said)
        self._digest = self.lessons.digest()
        self._held_out: Metrics = {}
        self._began = 0.0

    def run(self) -> int:
        """Learn to the end, from the last good checkpoint where there is one; returns the last step.

        Raises:
            InterruptedRun: SIGINT or SIGTERM; saved and resumable.
            DivergedError, CheckpointError, RunFolderError: saved up to the last checkpoint.
        """
        try:
            return self._run()
        finally:
            for tracker in self.trackers:
                tracker.finish()

    def _run(self) -> int:
        self.ranks.same("what is learned from", self._digest)
        step, elapsed = self._resume()
        self.observer.started(step, self.schedule.steps)
        self._began = time.monotonic() - elapsed
        with Interrupts(self.observer.said, echo=0.0 if self.ranks.size == 1 else 1.0) as interrupts:
            if step == 0:
                self._record(0, self._measured(0))
            signal = self._signal(interrupts)
            while step < self.schedule.steps and not signal:
                step += 1
                self._step(step)
                signal = self._signal(interrupts)
                if self.schedule.checkpoint_every and step % self.schedule.checkpoint_every == 0:
                    self._save(step)
        if self._saver.saved != step:
            self._save(step)
        if signal:
            raise InterruptedRun(signal, step)
        self._saver.export()
        return step

    def _signal(self, interrupts: Interrupts) -> str | None:
        """The signal that any rank got: the same on all."""
        return next(filter(None, self.ranks.gather("ending a step", interrupts.requested)), None)

    def _step(self, step: int) -> None:
        clock = Clock()
        lessons = self.lessons.at(step, self.batch, self.total, self.seed)
        learned = self._learn(step, lessons)
        clock.lap("update")
        read = sum(lesson.length for lesson in lessons)
        figures = {
            "nll/train": learned["loss"],
            "grad_norm": learned["grad_norm"],
            "lr": learned["lr"],
            "epoch": min(step * self.batch, self.total) / len(self.lessons.taught),
            "tokens/trained": float(sum(int(lesson.trained.sum()) for lesson in lessons)),
            "tokens/read": float(read),
            "tokens_per_second": read / clock.total,
        }
        figures |= self._measured(step)
        clock.lap("evaluate")
        self._record(step, figures | clock.figures())
        # A held-out figure stays on the display until the next one.
        self.observer.stepped(step, self._held_out | figures, [], {})

    def _learn(self, step: int, lessons: Sequence[Lesson]) -> Metrics:
        taken = self.learner.optimizer_steps
        try:
            with budgeted("updating", UPDATING):
                learned = self.learner.teach(lessons, self.schedule.learning_rate(step))
        except Exception as error:
            if self.learner.optimizer_steps == taken and self.ranks.settle(error):
                self._keep(step - 1)
            if isinstance(error, DivergedError):
                raise self._diverged(step, str(error), lessons) from error
            raise
        if not self._finite():
            raise self._diverged(step, "the update made parameters NaN or infinite", lessons)
        return learned

    def _measured(self, step: int) -> Metrics:
        """The held-out rows' likelihood where it is due: at the start, at the end and in between."""
        every, held_out = self.schedule.evaluate_every, self.lessons.held_out
        due = step in {0, self.schedule.steps} or (every and step % every == 0)
        if not due or not held_out:
            return {}
        nll = self.learner.nll(held_out)
        if not math.isfinite(nll):
            raise DivergedError(f"step {step}: the held-out rows' likelihood is {nll}; {self._remedy()}", [])
        self._held_out = {"nll/held_out": nll}
        return self._held_out

    def _record(self, step: int, figures: Metrics) -> None:
        def write() -> None:
            self.folder.append_metrics({"step": step, **figures})
            for tracker in self.trackers:
                tracker.log(step, figures)

        self.ranks.first("recording a step", write)

    def _finite(self) -> bool:
        parameters = [parameter.detach() for parameter in self.learner.parameters]
        return math.isfinite(whole(torch.nn.utils.get_total_norm(parameters, math.inf)).item())

    def _keep(self, step: int) -> None:
        """The next step failed (memory ran out, a loss was NaN): save first what was learned up to `step`."""
        if not self._finite():
            raise DivergedError(f"after step {step} the model's parameters are NaN or infinite; {self._remedy()}", [])
        if step <= max(0, self._saver.saved):
            return
        try:
            self._save(step)
        except CheckpointError as error:
            self.observer.said(str(error))  # the failed step is what the caller must hear of
        else:
            self.observer.said(f"step {step + 1} failed; everything up to step {step} is saved")

    def _save(self, step: int) -> None:
        elapsed = time.monotonic() - self._began
        self._saver.save(step, {"elapsed": elapsed, "data": self._digest, "held_out": self._held_out})

    def _resume(self) -> tuple[int, float]:
        checkpoint = self._saver.latest()
        if checkpoint is None:
            return 0, 0.0
        state: dict[str, Any] = checkpoint.state
        if state["data"] != self._digest:
            raise RunFolderError(
                f"{self.folder.path}: its data (data.path) or how they are rendered have changed since step "
                f"{checkpoint.step}, so it can't go on as it began: put them back, or start a new run from "
                f"{checkpoint.model_path}"
            )
        self._saver.restore(checkpoint)
        self._held_out = dict(state["held_out"])
        self.observer.said(f"resuming after step {checkpoint.step}")
        return checkpoint.step, float(state["elapsed"])

    def _diverged(self, step: int, cause: str, lessons: Sequence[Lesson]) -> DivergedError:
        path = self.folder.path / f"failed-batch-step-{step:06d}.json"
        rows = [{"prompt_ids": lesson.prompt_ids, "completion_ids": lesson.completion_ids} for lesson in lessons]
        self.ranks.first("keeping the failed batch", lambda: write_json_atomic(path, rows))
        return DivergedError(
            f"step {step}: {cause}; nothing of this step is kept and its rows are in {path}; {self._remedy()}", []
        )

    def _remedy(self) -> str:
        return (
            f"lower learner.lr or learner.max_grad_norm in {self.folder.config}, or look at the rows, and resume: it "
            "goes on from the last good checkpoint"
        )
