"""What a run keeps of itself: checkpoints of weights and optimiser, and the model at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparring.checkpoint import (
    Checkpoint,
    Spared,
    Wanted,
    clear_leftovers,
    drop_later,
    latest_good,
    save_checkpoint,
)
from sparring.files import RunFolderError, fsync_path
from sparring.learner import Learner
from sparring.lm.weights import Weights
from sparring.optimizer_state import flatten_optimizer, restore_optimizer
from sparring.parallel.parts import FromFirst
from sparring.parallel.ranks import Ranks
from sparring.parallel.tensors import fingerprint
from sparring.runfolder import RunFolder


@dataclass
class Saver:
    """Saves, finds and restores a run's checkpoints. Among several ranks all call each of these.

    Args:
        keep: checkpoints kept; 0: all.
        sound: whether a run may go back to a checkpoint of this state.
        spared: see `checkpoint.Spared`.
        say: told what was found in the folder.

    `saved` is the step of the newest good checkpoint, -1 where there is none.
    """

    learner: Learner
    weights: Weights
    folder: RunFolder
    keep: int
    ranks: Ranks
    say: Callable[[str], None]
    sound: Wanted = lambda state: True
    spared: Spared = lambda states: ()
    saved: int = -1

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Weights, optimiser and the rest of a run's state after a step.

        Raises:
            CheckpointError: it could not be written; older ones stay.
        """
        parameters = self.weights.parameters()
        if self.ranks.size > 1:
            self.ranks.same("the trained parameters", fingerprint(parameters.values()))
        names = {parameter: name for name, parameter in parameters.items()}
        tensors, optimizer = flatten_optimizer(self.learner.optimizer, names)
        save_checkpoint(
            self.folder.checkpoints,
            step,
            write_model=self.weights.save,
            tensors=tensors,
            state={"step": step, "optimizer": optimizer, **state},
            keep=self.keep,
            spared=self.spared,
            ranks=self.ranks,
        )
        self.saved = step

    def latest(self) -> Checkpoint | None:
        """The newest good checkpoint, with the folder tidied and all that is younger dropped."""
        checkpoint = self.ranks.first("looking for a checkpoint", self._tidied)
        self.saved = -1 if checkpoint is None else checkpoint.step
        return checkpoint

    def gone_back(self) -> Checkpoint | None:
        """The newest good and sound checkpoint, with all that is younger dropped."""
        checkpoint = self.ranks.first("looking for a sound checkpoint", self._gone_back)
        if checkpoint is not None:
            self.saved = checkpoint.step
        return checkpoint

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take weights and optimiser back, bit for bit."""
        self.weights.restore(checkpoint.model_path)
        self.learner.policy.refresh()
        names = {parameter: name for name, parameter in self.weights.parameters().items()}
        saved = checkpoint.tensors() if self.ranks.leads else None
        tensors = FromFirst(saved, self.ranks, self.weights.model.device)
        restore_optimizer(self.learner.optimizer, names, tensors, checkpoint.state["optimizer"])

    def export(self) -> None:
        """The trained model for `from_pretrained`, whole or not at all, from the newest checkpoint."""
        final = self.folder.model
        aside = final.with_name(f".{final.name}.partial")
        self.ranks.first("clearing the model's folder", lambda: shutil.rmtree(aside, ignore_errors=True))
        try:
            self.weights.export(self.folder.checkpoints / f"step-{self.saved:06d}" / "model", aside)
            self.ranks.first("publishing the model", self._publish)
        except ConnectionError:
            raise
        except OSError as error:
            if self.ranks.leads:
                shutil.rmtree(aside, ignore_errors=True)
            raise RunFolderError(
                f"the trained model could not be copied to {final} ({error}); its last checkpoint holds it: "
                "free some space or make the folder writable, and resume"
            ) from error

    def _publish(self) -> None:
        final = self.folder.model
        aside = final.with_name(f".{final.name}.partial")
        for path in (*aside.iterdir(), aside):
            fsync_path(path)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        fsync_path(final.parent)

    def _tidied(self) -> Checkpoint | None:
        clear_leftovers(self.folder.checkpoints, self.say)
        self.folder.clear_leftovers()
        checkpoint = latest_good(self.folder.checkpoints, self.say)
        self._cut(-1 if checkpoint is None else checkpoint.step)
        return checkpoint

    def _gone_back(self) -> Checkpoint | None:
        checkpoint = latest_good(self.folder.checkpoints, self.say, self.sound)
        if checkpoint is not None:
            self.folder.set_aside_metrics(checkpoint.step)
            drop_later(self.folder.checkpoints, checkpoint.step)
            self._cut(checkpoint.step)
        return checkpoint

    def _cut(self, step: int) -> None:
        self.folder.truncate_metrics(step, self.say)
        self.folder.drop_turns(step)
