"""A run from its configuration: train, evaluate, leave a folder that tells the story."""

from __future__ import annotations

import platform
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
    default_token_budget,
    domain_named,
    learning_rate,
    locate,
    require_room,
    resolve_device,
    solver_role,
)
from sparring.checkpoint import latest_good
from sparring.config import ChallengeConfig, RunConfig, read_yaml, validated
from sparring.evaluation.comparison import Evaluation
from sparring.evaluation.heldout import HeldOut
from sparring.games.base import Game
from sparring.lm.load import resolve_dtype
from sparring.paths import anchored
from sparring.rewards.base import Reward
from sparring.runfolder import RunFolder, write_json_atomic
from sparring.sampling.local import LocalSampler
from sparring.tracking import Tracker, open_tracker
from sparring.trainer import Observer, Schedule, Silent, Trainer

DEVELOPMENT_SEED = 1  # of the held-out questions asked while training; evaluation.seed is for the end alone


def train(
    config: RunConfig, out: Path, *, game: Game | None = None, observer: Observer | None = None
) -> Evaluation | None:
    """Run a configuration in a new folder, to the end; returns the final comparison with the base, where there is one.

    game: one of your own in place of the configuration's.
    """
    config = anchored(_resolved(config))
    with RunFolder(out).create(config.to_yaml(), lineage(config, game)) as folder:
        observer = observer or Silent()
        try:
            parts = assemble(config, folder, game=game, observer=observer)
        except BaseException:
            # Nothing was trained: a folder left behind would only refuse the next attempt.
            _withdraw(folder)
            raise
        return _finish(parts, folder, observer)


def resume(out: Path, *, game: Game | None = None, observer: Observer | None = None) -> Evaluation | None:
    """Go on with an interrupted run from its last good checkpoint, as if it had never stopped.

    Raises:
        ValueError: the run was started with a game of the caller's own, and it isn't given again.
    """
    with RunFolder(out).open() as folder:
        observer = observer or Silent()
        _require_same_game(folder, game)
        parts = assemble(read_config(folder), folder, game=game, observer=observer)
        return _finish(parts, folder, observer)


def evaluate(
    config: RunConfig, model: str, base: str, *, n: int | None = None, seed: int | None = None
) -> tuple[Evaluation, dict[str, Any]]:
    """Compare two models on a configuration's held-out test: the comparison, and what goes into evaluation.json.

    model, base: model folders, run folders or hub ids, loaded in turn. n: questions a split.
    seed: of the test set.

    Raises:
        ValueError: the configuration's domain has no held-out test.
    """
    seed = config.evaluation.seed if seed is None else seed
    test = held_out(config, seed, n or config.evaluation.final_n)
    if test is None:
        raise ValueError(f"the {config.game.domain} domain has no held-out test with a verifier: nothing to compare on")
    scores = []
    for path in (base, model):
        models = build_models(_solver_only(config, path), trainable=False)
        scores.append(test.scores(build_sampler(models, config).at(0)))
    evaluation = test.compare(scores[1], scores[0])
    return evaluation, {**_record(evaluation, config, base, seed), "model": model}


def read_config(folder: RunFolder) -> RunConfig:
    """The resolved configuration of a run."""
    return validated(read_yaml(folder.config))


def lineage(config: RunConfig, game: Game | None = None) -> dict[str, Any]:
    """Which model a run starts from, through which stages it came, and with which versions.

    game: the caller's own, where one is played in place of the configuration's.
    """
    start = locate(config.model.path)
    parent = Path(start).parent / "lineage.json"
    earlier: list[Any] = []
    if Path(config.model.path).is_dir() and parent.is_file():
        earlier = yaml.safe_load(parent.read_text(encoding="utf-8"))["stages"]
    stage = {
        "recipe": config.recipe,
        "preset": config.preset,
        "game": config.game.kind if game is None else _name_of(game),
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


def _name_of(game: Game) -> str:
    return type(game).__qualname__


def _require_same_game(folder: RunFolder, game: Game | None) -> None:
    played = folder.read_lineage()["stages"][-1]["game"]
    given = read_config(folder).game.kind if game is None else _name_of(game)
    if played != given:
        raise ValueError(f"{folder.path} was started with the game {played}: resume it with that one, not {given}")


def _resolved(config: RunConfig) -> RunConfig:
    """With what `auto` and 0 stand for here: a resumed run must compute as it began, to the bit."""
    device = resolve_device(config.model.device)
    dtype = resolve_dtype(config.model.dtype, device)
    budget = config.learner.token_budget or default_token_budget(device)
    return config.model_copy(
        update={
            "threads": config.threads or torch.get_num_threads(),
            "learner": config.learner.model_copy(update={"token_budget": budget}),
            "model": config.model.model_copy(update={"dtype": str(dtype).removeprefix("torch.")}),
        }
    )


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
    require_room(game, models)
    sampler = build_sampler(models, config)
    watched = held_out(config, DEVELOPMENT_SEED, config.evaluation.n)
    trainer = Trainer(
        game=game,
        sampler=sampler,
        learner=build_learner(models, config, game),
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
        dtype=resolve_dtype(config.model.dtype, resolve_device(config.model.device)),
        trackers=_trackers(config, folder),
        observer=observer,
    )
    return Assembly(config, models, sampler, trainer)


def _withdraw(folder: RunFolder) -> None:
    """Take a run back that never began; the folder goes too where nothing else lies in it."""
    for path in (folder.config, folder.lineage):
        path.unlink(missing_ok=True)
    folder.close()
    left = {path.name for path in folder.path.iterdir()}
    if left <= {".lock"}:
        (folder.path / ".lock").unlink(missing_ok=True)
        folder.path.rmdir()


def _finish(parts: Assembly, folder: RunFolder, observer: Observer) -> Evaluation | None:
    parts.trainer.run()
    return final_evaluation(parts.config, folder, parts.models, parts.sampler, observer)


def _trackers(config: RunConfig, folder: RunFolder) -> list[Tracker]:
    """The run's trackers, going on where an earlier part of the run stopped."""
    if not config.trackers:
        return []
    last = latest_good(folder.checkpoints, lambda _: None)
    step = 0 if last is None else last.step + 1
    identity = f"{folder.path.name}-{config.seed}-{folder.read_lineage()['stages'][-1]['started']}"
    return [
        open_tracker(name, folder.path.name, folder.path, config.model_dump(), step=step, resume_id=identity)
        for name in config.trackers
    ]


def held_out(config: RunConfig, seed: int, n: int) -> HeldOut | None:
    """The domain's held-out test of n questions a split, scored by its own verifier; None where it has none."""
    domain = domain_named(config.game.domain)
    if domain.tests is None or domain.reward is None:
        return None
    reward = Reward(domain.reward, name=domain.name)
    return HeldOut(solver_role(config.game, domain), domain.tests(seed, n), reward, config.evaluation.temperature)


def final_evaluation(
    config: RunConfig, folder: RunFolder, models: Models, sampler: LocalSampler, observer: Observer
) -> Evaluation | None:
    """The trained policy against the model it started from, on the final test set; written to evaluation.json."""
    test = held_out(config, config.evaluation.seed, config.evaluation.final_n)
    if test is None:
        return None
    observer.said("evaluating base and trained model on the held-out test")
    if models.reference is not None and config.model.reference is None:
        base_scores = test.scores(sampler.at(0), "reference")
    else:
        start = build_models(_solver_only(config, config.model.path), trainable=False)
        base_scores = test.scores(build_sampler(start, config).at(0))
    evaluation = test.compare(test.scores(sampler.at(0)), base_scores)
    record = _record(evaluation, config, config.model.path, config.evaluation.seed)
    write_json_atomic(folder.evaluation, record)
    return evaluation


def _record(evaluation: Evaluation, config: RunConfig, base: str, seed: int) -> dict[str, Any]:
    return {
        **evaluation.to_json(),
        "base": base,
        "seed": seed,
        "temperature": config.evaluation.temperature,
    }


def _solver_only(config: RunConfig, path: str) -> RunConfig:
    """The configuration with another model and nothing that needs a frozen reference."""
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": path, "reference": None}),
            "game": config.game.model_copy(update={"kind": "grpo", "challenge": ChallengeConfig()}),
            "learner": config.learner.model_copy(update={"beta": 0.0}),
        }
    )
