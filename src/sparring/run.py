"""A run from its configuration: train, evaluate, leave a folder that tells the story."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparring.build import (
    AGGREGATIONS,
    build_game,
    build_learner,
    game_domain,
    learning_rate,
    require_room,
    resolved_reward,
    solver_role,
)
from sparring.card import write_model_card
from sparring.checkpoint import latest_good
from sparring.config import read_yaml, validated
from sparring.evaluation.comparison import Evaluation
from sparring.evaluation.document import document
from sparring.evaluation.heldout import HeldOut
from sparring.files import write_json_atomic
from sparring.games.base import Game
from sparring.games.dataset import Dataset
from sparring.health.guard import Guard
from sparring.lm.load import resolve_dtype
from sparring.memory import LOADING, budgeted
from sparring.models import Models, build_models, default_token_budget, resolve_device
from sparring.parallel import ALONE, Ranks, connected
from sparring.paths import anchored
from sparring.rewards.base import Reward
from sparring.runfolder import RunFolder
from sparring.sampling.turns import TurnSampler
from sparring.settings import ChallengeConfig, RunConfig
from sparring.settings.sft import SFTConfig
from sparring.stages import finish_stage, lineage
from sparring.tracking import AUTO, Tracker, chosen, open_tracker
from sparring.trainer import Observer, Schedule, Silent, Trainer
from sparring.writers import build_sampler

# Of the held-out questions asked while training, and of the matches against the start; evaluation.seed is for the end.
DEVELOPMENT_SEED, MATCH_SEED = 1, 3


def train(
    config: RunConfig, out: Path, *, game: Game | None = None, observer: Observer | None = None
) -> Evaluation | None:
    """Run a configuration in a new folder, to the end; returns the final comparison with the base, where there is one.

    Where torchrun started several processes all call this and share one run; rank 0 alone has folder and observer.

    game: one of your own in place of the configuration's.
    """
    folder = RunFolder(out)
    with connected() as ranks, folder:
        observer = observer_of(observer, ranks)
        config = ranks.first("making the run's folder", lambda: _begun(folder, config, game))
        try:
            parts = assemble(config, folder, game=game, observer=observer, ranks=ranks)
        except BaseException:
            # Nothing was trained: a folder left behind would only refuse the next attempt.
            if ranks.leads:
                withdraw(folder)
            raise
        return _finish(parts, folder, observer)


def resume(out: Path, *, game: Game | None = None, observer: Observer | None = None) -> Evaluation | None:
    """Go on with an interrupted run from its last good checkpoint, as if it had never stopped.

    Raises:
        ValueError: the run was started with a game of the caller's own, and it isn't given again.
    """
    folder = RunFolder(out)
    with connected() as ranks, folder:
        observer = observer_of(observer, ranks)
        config = ranks.first("opening the run's folder", lambda: _opened(folder, game))
        parts = assemble(config, folder, game=game, observer=observer, ranks=ranks)
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
        models = build_models(_solver_only(config, path, own=path in (model, config.model.path)), trainable=False)
        scores.append(test.scores(build_sampler(models, config).at(0)))
    evaluation = test.compare(scores[1], scores[0])
    return evaluation, _record(evaluation, config, model, base, seed)


def read_config(folder: RunFolder) -> RunConfig:
    """The resolved configuration of a run."""
    return validated(read_yaml(folder.config))


def _begun(folder: RunFolder, config: RunConfig, game: Game | None) -> RunConfig:
    config = anchored(pinned(config))
    folder.create(config.to_yaml(), lineage(config, _game_name(config, game)))
    return config


def _opened(folder: RunFolder, game: Game | None) -> RunConfig:
    folder.open()
    _require_same_game(folder, game)
    return read_config(folder)


def observer_of(observer: Observer | None, ranks: Ranks) -> Observer:
    """The observer on the rank that tells; silence on the others, and where there is none."""
    return observer if observer is not None and ranks.leads else Silent()


def _game_name(config: RunConfig, game: Game | None) -> str:
    return config.game.kind if game is None else type(game).__qualname__


def _require_same_game(folder: RunFolder, game: Game | None) -> None:
    played = folder.read_lineage()["stages"][-1]["game"]
    given = _game_name(read_config(folder), game)
    if played != given:
        raise ValueError(f"{folder.path} was started with the game {played}: resume it with that one, not {given}")


def pinned(config: RunConfig) -> RunConfig:
    """With what `auto` and 0 stand for here: a resumed run must compute as it began, to the bit."""
    device = resolve_device(config.model.device)
    dtype = resolve_dtype(config.model.dtype, device)
    budget = config.learner.token_budget or default_token_budget(device)
    game, reward = config.game, config.game.reward
    if reward.model is not None and reward.url is None:
        reward = resolved_reward(reward, config.model.device)
    return config.model_copy(
        update={
            "threads": config.threads or torch.get_num_threads(),
            "trackers": chosen(config.trackers),
            "learner": config.learner.model_copy(update={"token_budget": budget}),
            "game": game.model_copy(update={"reward": reward}),
            "model": config.model.model_copy(update={"dtype": str(dtype).removeprefix("torch.")}),
        }
    )


@dataclass(frozen=True)
class Assembly:
    """A run put together and not yet started."""

    config: RunConfig
    models: Models
    sampler: TurnSampler
    trainer: Trainer


def assemble(
    config: RunConfig,
    folder: RunFolder,
    *,
    game: Game | None = None,
    observer: Observer | None = None,
    ranks: Ranks = ALONE,
) -> Assembly:
    """Everything a configuration describes, in an open run folder; `trainer.run()` starts it."""
    observer = observer or Silent()
    observer.said("loading")
    ranks.prepare(resolve_device(config.model.device), config.parallel.timeout)
    with budgeted("loading the models", LOADING):
        models = build_models(config, ranks=ranks)
        game = game or build_game(config, ranks)
    require_room(game, models)
    if isinstance(game, Dataset) and game.prompts.skipped:
        left, skipped = len(game.prompts), game.prompts.skipped
        observer.said(f"{game.prompts.name}: {skipped} empty prompts skipped, {left} are left")
    sampler = build_sampler(models, config, folder.path)
    watched = held_out(config, DEVELOPMENT_SEED, config.evaluation.n)
    match = held_out(config, MATCH_SEED, config.health.match_n)
    trackers: list[Tracker] = []
    ranks.first("opening the trackers", lambda: trackers.extend(open_trackers(config, folder, observer.said)))
    trainer = Trainer(
        game=game,
        sampler=sampler,
        learner=build_learner(models, config, game),
        weights=models.weights,
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
        overlap=config.rollout.overlap,
        trackers=trackers,
        observer=observer,
        ranks=ranks,
        health=Guard(config.health, observer.said, None if match is None else lambda: match.scores(sampler)),
    )
    return Assembly(config, models, sampler, trainer)


def withdraw(folder: RunFolder) -> None:
    """Take a run back that never began; the folder goes too where nothing else lies in it."""
    for path in (folder.config, folder.lineage):
        path.unlink(missing_ok=True)
    folder.close()
    left = {path.name for path in folder.path.iterdir()}
    if left <= {".lock"}:
        (folder.path / ".lock").unlink(missing_ok=True)
        folder.path.rmdir()


def _finish(parts: Assembly, folder: RunFolder, observer: Observer) -> Evaluation | None:
    try:
        steps_done = parts.trainer.run()
        parts.sampler.updated(steps_done)
        evaluation = final_evaluation(parts.config, folder, parts.models, parts.sampler, observer)
    finally:
        parts.trainer.game.close()
        parts.sampler.close()
    parts.models.ranks.first("telling the story", lambda: tell_story(folder, steps_done, evaluation))
    return evaluation


def tell_story(folder: RunFolder, steps_done: int, evaluation: Evaluation | None) -> None:
    """Write what came of a finished run into its lineage and its model's card."""
    record = None if evaluation is None else json.loads(folder.evaluation.read_text(encoding="utf-8"))
    story = finish_stage(folder.read_lineage(), steps_done=steps_done, metrics=folder.read_metrics(), evaluation=record)
    folder.write_lineage(story)
    write_model_card(folder.model, story)


def open_trackers(config: RunConfig | SFTConfig, folder: RunFolder, say: Callable[[str], None]) -> list[Tracker]:
    """The run's trackers, going on where an earlier part of the run stopped."""
    if set(config.trackers) <= {AUTO}:  # none, or not chosen: a run that nobody began by `train`
        return []
    last = latest_good(folder.checkpoints, lambda _: None)
    step = 0 if last is None else last.step + 1
    identity = f"{folder.path.name}-{config.seed}-{folder.read_lineage()['stages'][-1]['started']}"
    return [
        open_tracker(name, folder.path.name, folder.path, config.model_dump(), step=step, resume_id=identity, say=say)
        for name in config.trackers
    ]


def held_out(config: RunConfig, seed: int, n: int) -> HeldOut | None:
    """The domain's held-out test of n questions a split, scored by its own verifier; None where it has none."""
    domain = game_domain(config.game)
    if domain.tests is None or domain.reward is None:
        return None
    reward = Reward(domain.reward, name=domain.name)
    return HeldOut(solver_role(config.game, domain), domain.tests(seed, n), reward, config.evaluation.temperature)


def final_evaluation(
    config: RunConfig, folder: RunFolder, models: Models, sampler: TurnSampler, observer: Observer
) -> Evaluation | None:
    """The trained policy against the model it started from, on the final test set; written to evaluation.json."""
    test = held_out(config, config.evaluation.seed, config.evaluation.final_n)
    if test is None:
        return None
    observer.said("evaluating base and trained model on the held-out test")
    if models.reference is not None and config.model.reference is None:
        base_scores = test.scores(sampler.at(0), "reference")
    else:
        start = build_models(_solver_only(config, config.model.path, own=True), trainable=False, ranks=models.ranks)
        base_scores = test.scores(build_sampler(start, config).at(0))
    evaluation = test.compare(test.scores(sampler.at(0)), base_scores)
    record = _record(evaluation, config, folder.model.name, config.model.path, config.evaluation.seed)
    models.ranks.first("writing the evaluation", lambda: write_json_atomic(folder.evaluation, record))
    return evaluation


def _record(evaluation: Evaluation, config: RunConfig, model: str, base: str, seed: int) -> dict[str, Any]:
    settings = {"seed": seed, "temperature": config.evaluation.temperature}
    name = config.game.domain
    body = evaluation.to_json()
    return document("held-out", name, "win_rate", model=model, base=base, body=body, settings=settings)


def _solver_only(config: RunConfig, path: str, *, own: bool) -> RunConfig:
    """The configuration with another model and nothing that needs a frozen reference.

    own: whether the run's revision, chat template and trusted code are that model's too.
    """
    others = {} if own else {"revision": None, "chat_template": None, "remote_code": None}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": path, "reference": None, **others}),
            "game": config.game.model_copy(update={"kind": "grpo", "challenge": ChallengeConfig()}),
            "learner": config.learner.model_copy(update={"beta": 0.0}),
        }
    )
