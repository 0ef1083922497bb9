"""A supervised run from its configuration: the same folder, checkpoints and story as a run of self-play."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from sparring.build import learning_rate
from sparring.config import ConfigError, checked, read_yaml
from sparring.data_records import matching
from sparring.files import write_text_atomic
from sparring.images import Picture
from sparring.learner import Update
from sparring.memory import LOADING, budgeted
from sparring.models import Models, build_models, default_token_budget, resolve_device
from sparring.parallel import ALONE, Ranks, connected
from sparring.paths import anchored
from sparring.run import observer_of, open_trackers, pinned, tell_story, withdraw
from sparring.runfolder import RunFolder
from sparring.settings import GameConfig, LearnerConfig, RoleConfig, RunConfig
from sparring.settings.sft import VISION, SFTConfig
from sparring.sft.learner import SupervisedLearner
from sparring.sft.lessons import Curriculum, curriculum, load_records, skipped_lines, tell
from sparring.sft.spans import Speller
from sparring.sft.trainer import Lectures
from sparring.stages import lineage
from sparring.tracking import Tracker
from sparring.trainer import Observer, Schedule, Silent

IN_PLACE_OF_A_GAME = "supervised fine-tuning"
SKIPPED = "skipped-rows.jsonl"


def train(config: SFTConfig, out: Path, *, observer: Observer | None = None) -> int:
    """Run a configuration in a new folder, to the end; returns the last step.

    Where torchrun started several processes all call this and share one run; rank 0 alone has folder and observer.

    Raises:
        ValueError: the data can't be read or hold nothing to learn from, the model can't be loaded, or the folder
            holds a run.
    """
    folder = RunFolder(out)
    with connected() as ranks, folder:
        observer = observer_of(observer, ranks)
        config = ranks.first("making the run's folder", lambda: _begun(folder, config))
        try:
            lectures, models = assemble(config, folder, observer=observer, ranks=ranks)
        except BaseException:
            # Nothing was trained: a folder left behind would only refuse the next attempt.
            if ranks.leads:
                (folder.path / SKIPPED).unlink(missing_ok=True)
                withdraw(folder)
            raise
        return _finish(lectures, models, folder)


def resume(out: Path, *, observer: Observer | None = None) -> int:
    """Go on with an interrupted run from its last good checkpoint, as if it had never stopped.

    Raises:
        ValueError: the folder holds no supervised run, or its data have changed.
    """
    folder = RunFolder(out)
    with connected() as ranks, folder:
        observer = observer_of(observer, ranks)
        config = ranks.first("opening the run's folder", lambda: _opened(folder))
        lectures, models = assemble(config, folder, observer=observer, ranks=ranks)
        return _finish(lectures, models, folder)


def read_config(folder: RunFolder) -> SFTConfig:
    """The resolved configuration of a run. Raises ConfigError where it is a run of another kind."""
    return checked(read_yaml(folder.config), SFTConfig)


def _begun(folder: RunFolder, config: SFTConfig) -> SFTConfig:
    config = resolved(config)
    *earlier, own = lineage(config, IN_PLACE_OF_A_GAME)["stages"]
    folder.create(config.to_yaml(), {"stages": [*earlier, {**own, "reference": None}]})
    return config


def _opened(folder: RunFolder) -> SFTConfig:
    folder.open()
    return read_config(folder)


def as_run(config: SFTConfig, steps: int = 1) -> RunConfig:
    """What a supervised run shares with one of self-play, as the settings of one: model, optimiser, ranks, export."""
    c = config.learner
    return RunConfig(
        steps=steps,
        seed=config.seed,
        threads=config.threads,
        trackers=config.trackers,
        model=config.model,
        # No game is played: its prompts only stand for the data, as a path, and nothing is sampled.
        game=GameConfig(kind="grpo", domain="text", prompts=config.data.path, solver=RoleConfig(max_new_tokens=1)),
        learner=LearnerConfig(
            lr=c.lr,
            schedule=c.schedule,
            warmup_steps=math.ceil(c.warmup * steps),
            beta=0.0,
            token_budget=c.token_budget,
        ),
        parallel=config.parallel,
        export=config.export,
    )


def resolved(config: SFTConfig) -> SFTConfig:
    """With absolute paths, and with what `auto` and 0 stand for here: a resumed run must compute as it began."""
    if not config.data.path:
        raise ConfigError("data.path is empty: name a file, a folder or a hub id to learn from")
    run = anchored(pinned(as_run(config)))
    path = str(Path(config.data.path).absolute()) if matching(config.data.path) else run.game.prompts
    images = config.data.images and str(Path(config.data.images).absolute())
    return config.model_copy(
        update={
            "threads": run.threads,
            "trackers": run.trackers,
            "model": run.model,
            "data": config.data.model_copy(update={"path": path, "images": images}),
            "learner": config.learner.model_copy(update={"token_budget": run.learner.token_budget}),
        }
    )


def assemble(
    config: SFTConfig, folder: RunFolder, *, observer: Observer | None = None, ranks: Ranks = ALONE
) -> tuple[Lectures, Models]:
    """Everything a configuration describes, in an open run folder; the lectures' `run()` starts it."""
    observer = observer or Silent()
    observer.said("loading")
    ranks.prepare(resolve_device(config.model.device), config.parallel.timeout)
    records: list[object] = []
    ranks.together("reading the data", lambda: records.extend(load_records(config.data)))
    with budgeted("loading the model", LOADING):
        models = build_models(as_run(config), frozen=config.frozen, ranks=ranks)
    _require_something_trained(config, models)
    made = _rendered(config, records, models, folder, observer)
    steps = config.steps or made.steps(config.learner.batch, config.epochs)
    ranks.first("recording the number of steps", lambda: _record_steps(folder, steps))
    trackers: list[Tracker] = []
    ranks.first("opening the trackers", lambda: trackers.extend(open_trackers(config, folder, observer.said)))
    lectures = Lectures(
        lessons=made,
        learner=_learner(config, models),
        weights=models.weights,
        folder=folder,
        schedule=Schedule(
            steps=steps,
            learning_rate=learning_rate(as_run(config, steps).learner, steps),
            checkpoint_every=config.checkpoint.every,
            keep_checkpoints=config.checkpoint.keep,
            evaluate_every=config.evaluation.every,
        ),
        batch=config.learner.batch,
        total=steps * config.learner.batch if config.steps else round(config.epochs * len(made.taught)),
        seed=config.seed,
        trackers=trackers,
        observer=observer,
        ranks=ranks,
    )
    return lectures, models


def _rendered(
    config: SFTConfig, records: list[object], models: Models, folder: RunFolder, observer: Observer
) -> Curriculum:
    ranks = models.ranks
    limit = min(config.data.max_tokens, models.context or config.data.max_tokens)
    speller = Speller(models.renderer, models.stop_ids, last_only=config.data.turns == "last")
    open_image = None if models.renderer.images is None else Picture.open
    found: list[Curriculum] = []

    def render() -> None:
        made = curriculum(records, speller, config.data, limit=limit, seed=config.seed, open_image=open_image)
        found.append(made)

    ranks.together("rendering the data", render)  # each all rows: a batch is dealt out as it comes
    made = found[0]
    tell(made, speller, config.data.path, limit, observer.said)
    if made.skipped:
        ranks.first("keeping the skipped rows", lambda: write_text_atomic(folder.path / SKIPPED, skipped_lines(made)))
    return made


def _record_steps(folder: RunFolder, steps: int) -> None:
    """The epochs decide how many steps there are, and the data, which are read when the folder is there already."""
    *earlier, last = folder.read_lineage()["stages"]
    folder.write_lineage({"stages": [*earlier, {**last, "steps": steps}]})


def _learner(config: SFTConfig, models: Models) -> SupervisedLearner:
    c = config.learner
    optimizer = torch.optim.AdamW(
        list(models.weights.parameters().values()),
        lr=c.lr,
        betas=(c.adam_beta1, c.adam_beta2),
        weight_decay=c.weight_decay,
        fused=True,
    )
    update = Update(
        max_grad_norm=c.max_grad_norm,
        token_budget=c.token_budget or default_token_budget(str(models.model.device)),
        entropy=False,
    )
    return SupervisedLearner(
        models.model, models.policy, None, optimizer, update, ranks=models.ranks, lockstep=models.sharded
    )


def _require_something_trained(config: SFTConfig, models: Models) -> None:
    names = {part for name, _ in models.model.named_parameters() for part in name.split(".")}
    if unknown := [part for part in config.frozen if part not in names and part not in VISION]:
        raise ConfigError(f"frozen: no parameter of the model has {', '.join(unknown)} in its name")
    if not models.weights.parameters():
        raise ConfigError(f"frozen={', '.join(config.frozen)} leaves nothing to train")


def _finish(lectures: Lectures, models: Models, folder: RunFolder) -> int:
    steps_done = lectures.run()
    models.ranks.first("telling the story", lambda: tell_story(folder, steps_done, None))
    return steps_done
