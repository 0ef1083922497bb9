"""A run from its configuration: train, evaluate, leave a folder that tells the story."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

import sparring
from sparring.build import (
    AGGREGATIONS,
    Models,
    build_game,
    build_learner,
    build_models,
    build_sampler,
    domain_named,
    learning_rate,
    locate,
    solver_role,
)
from sparring.config import RunConfig, validated
from sparring.evaluation.comparison import Evaluation
from sparring.evaluation.heldout import HeldOut
from sparring.games.base import Game
from sparring.rewards.base import Reward, load_reward
from sparring.runfolder import RunFolder, write_json_atomic
from sparring.sampling.local import LocalSampler
from sparring.tracking import open_tracker
from sparring.trainer import Observer, Schedule, Silent, Trainer

DEVELOPMENT_SEED = 1  # of the held-out questions asked while training; evaluation.seed is for the end alone


def train(
    config: RunConfig, out: Path, *, game: Game | None = None, observer: Observer | None = None
) -> Evaluation | None:
    """Run a configuration in a new folder, to the end; returns the final comparison with the base, where there is one.

    game: one of your own in place of the configuration's.
    """
    with RunFolder(out).create(config.to_yaml(), lineage(config)) as folder:
        return _train(config, folder, game, observer or Silent())


def resume(out: Path, *, game: Game | None = None, observer: Observer | None = None) -> Evaluation | None:
    """Go on with an interrupted run from its last good checkpoint, as if it had never stopped."""
    with RunFolder(out).open() as folder:
        return _train(read_config(folder), folder, game, observer or Silent())


def read_config(folder: RunFolder) -> RunConfig:
    """The resolved configuration of a run."""
    return validated(yaml.safe_load(folder.config.read_text(encoding="utf-8")))


def lineage(config: RunConfig) -> dict[str, Any]:
    """Which model a run starts from, through which stages it came, and with which versions."""
    start = locate(config.model.path)
    parent = Path(start).parent / "lineage.json"
    earlier: list[Any] = []
    if Path(config.model.path).is_dir() and parent.is_file():
        earlier = yaml.safe_load(parent.read_text(encoding="utf-8"))["stages"]
    stage = {
        "recipe": config.recipe,
        "preset": config.preset,
        "game": config.game.kind,
        "start": config.model.path,
        "reference": config.model.reference or config.model.path,
        "steps": config.steps,
        "seed": config.seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    versions = {
        "sparring": sparring.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    return {"stages": [*earlier, stage], "versions": versions}


@dataclass(frozen=True)
class Assembly:
    """A run put together and not yet started."""

    config: RunConfig
    models: Models
    sampler: LocalSampler
    trainer: Trainer


def assemble(
    config: RunConfig, folder: RunFolder, *, game: Game | None = None, observer: Observer | None = None
) -> Assembly:
    """Everything a configuration describes, in an open run folder; `trainer.run()` starts it."""
    observer = observer or Silent()
    observer.said("loading")
    game = game or build_game(config)
    models = build_models(config)
    sampler = build_sampler(models, config.seed)
    watched = held_out(config, DEVELOPMENT_SEED, config.evaluation.n)
    trainer = Trainer(
        game=game,
        sampler=sampler,
        learner=build_learner(models, config),
        tokenizer=models.tokenizer,
        folder=folder,
        schedule=Schedule(
            steps=config.steps,
            learning_rate=learning_rate(config.learner, config.steps),
            time_limit=config.time_limit,
            checkpoint_every=config.checkpoint.every,
            keep_checkpoints=config.checkpoint.keep,
            turns_every=config.checkpoint.turns_every,
            evaluate_every=config.evaluation.every if watched else 0,
            evaluate=None if watched is None else lambda: watched.accuracy(sampler),
        ),
        aggregation=AGGREGATIONS[config.learner.aggregation],
        k1_in_reward=config.learner.beta if config.learner.kl == "k1" else 0.0,
        skip_dead_groups=config.learner.skip_dead_groups,
        trackers=[open_tracker(t, folder.path.name, folder.path, config.model_dump()) for t in config.trackers],
        observer=observer,
    )
    return Assembly(config, models, sampler, trainer)


def _train(config: RunConfig, folder: RunFolder, game: Game | None, observer: Observer) -> Evaluation | None:
    parts = assemble(config, folder, game=game, observer=observer)
    parts.trainer.run()
    return final_evaluation(config, folder, parts.models, parts.sampler, observer)


def held_out(config: RunConfig, seed: int, n: int) -> HeldOut | None:
    """The domain's held-out test of n questions a split; None where the domain has none or its answers no verifier."""
    domain = domain_named(config.game.domain)
    reward = load_reward(config.game.reward) if config.game.reward else None
    if reward is None and domain.reward is not None:
        reward = Reward(domain.reward, name=domain.name)
    if domain.tests is None or reward is None:
        return None
    role = solver_role(config.game, domain)
    return HeldOut(role, domain.tests(seed, n), reward, config.evaluation.temperature)


def final_evaluation(
    config: RunConfig, folder: RunFolder, models: Models, sampler: LocalSampler, observer: Observer
) -> Evaluation | None:
    """The trained policy against the model it started from, on the final test set; written to evaluation.json."""
    test = held_out(config, config.evaluation.seed, config.evaluation.final_n)
    if test is None:
        return None
    observer.said("evaluating base and trained model on the held-out test")
    base = models if models.reference is not None else None
    if base is None:
        start = build_models(config, trainable=False)
        base_scores = test.scores(build_sampler(start, config.seed).at(0))
    else:
        base_scores = test.scores(sampler.at(0), "reference")
    evaluation = test.compare(test.scores(sampler.at(0)), base_scores)
    record: Mapping[str, Any] = {
        **evaluation.to_json(),
        "base": str(config.model.path),
        "seed": config.evaluation.seed,
        "temperature": config.evaluation.temperature,
    }
    write_json_atomic(folder.evaluation, dict(record))
    return evaluation
