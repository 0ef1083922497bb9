"""From a configuration to the objects it describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparring import prompts
from sparring.advantages import Baseline, centred, standardised
from sparring.batching import Aggregation, constant_length, sequence_mean, sequence_sum, token_mean
from sparring.data import PromptSet, load_prompts
from sparring.domains import Domain, Task
from sparring.games.base import Game
from sparring.games.challenge import (
    Adversarial,
    ChallengerPayoff,
    Equality,
    Frontier,
    NGrams,
    RepetitionPenalty,
    Similarity,
)
from sparring.games.dataset import Dataset
from sparring.games.lsp import LSP, LSPZero
from sparring.games.quality import ProgramQuality, Quality, ReferenceQuality
from sparring.games.vision import FURTHER, Combination, Decoupled, Vision, summed
from sparring.learner import ExactKL, KLPenalty, Learner, SampledKL, Update
from sparring.lm.base import SamplingParams
from sparring.lm.load import resolve_dtype
from sparring.losses import k2, k3
from sparring.models import Models, default_token_budget, resolve_device
from sparring.parallel import ALONE, Ranks
from sparring.rewards.base import Reward, RewardFunction, load_reward
from sparring.rewards.imports import load_object
from sparring.rewards.parallel import FirstReward, SplitPreference
from sparring.rewards.preference import PreferenceModel
from sparring.rewards.scale import Raw, Scale, Scaled, Sigmoid, Standardised
from sparring.roles import Role
from sparring.settings import GameConfig, LearnerConfig, PerceptionConfig, RewardConfig, RoleConfig, RunConfig
from sparring.tasks import load_tasks
from sparring.text import GradeReader, TemplateReader

AGGREGATIONS: dict[str, Aggregation] = {
    "sum": sequence_sum,
    "grpo": sequence_mean,
    "dapo": token_mean,
    "dr_grpo": constant_length,
}
SCORE_SCALES: dict[str, Callable[[], Scale]] = {"raw": Raw, "sigmoid": Sigmoid, "standardised": Standardised}
SIMILARITIES: dict[str, Callable[[], Similarity]] = {"exact": Equality, "ngrams": NGrams}
SCALES: dict[str, Baseline] = {"centred": centred, "standardised": standardised}
COMBINATIONS: dict[str, Callable[[PerceptionConfig], Combination]] = {
    "summed": lambda p: summed,
    "decoupled": lambda p: Decoupled(
        {"accuracy": p.accuracy_weight, "visual": p.visual_weight, "format": p.format_weight}
    ),
}
KL_TERMS: dict[str, KLPenalty | None] = {"exact": ExactKL(), "k1": None, "k2": SampledKL(k2), "k3": SampledKL(k3)}


@dataclass(frozen=True)
class Parts:
    """What a custom game is built from: `build(parts, **options) -> Game`."""

    config: GameConfig
    domain: Domain
    reward: Reward | None

    def role(self, name: str, template: str, settings: RoleConfig, weight: float = 1.0) -> Role:
        """A role with a run's settings."""
        return make_role(name, template, settings, weight)


def build_learner(models: Models, config: RunConfig, game: Game) -> Learner:
    """Optimiser and learner over a run's models."""
    c = config.learner
    optimizer = torch.optim.AdamW(
        list(models.weights.parameters().values()),
        lr=c.lr,
        betas=(c.adam_beta1, c.adam_beta2),
        weight_decay=c.weight_decay,
        fused=True,
    )
    served = config.rollout.engine == "vllm"
    if served:
        _require_no_filters(game)
    update = Update(
        beta=c.beta,
        kl=KL_TERMS[c.kl],
        temperature=_trained_temperature(game),
        minibatches=c.minibatches,
        epochs=c.epochs,
        clip_low=c.clip_low,
        clip_high=c.clip_high,
        max_grad_norm=c.max_grad_norm,
        token_budget=c.token_budget or default_token_budget(str(models.model.device)),
        entropy=c.log_entropy,
        importance_cap=config.rollout.importance_cap if served else None,
    )
    return Learner(
        models.model,
        models.policy,
        models.reference,
        optimizer,
        update,
        ranks=models.ranks,
        lockstep=models.sharded,
    )


def _require_no_filters(game: Game) -> None:
    """vLLM's log-probabilities are after top-p and top-k, so under these they can't be compared with the learner's."""
    for role in game.roles:
        if role.weight > 0 and (role.sampling.top_p < 1 or role.sampling.top_k > 0):
            raise ValueError(
                f"game.{role.name}.top_p must be 1 and top_k 0 for a trained role with rollout.engine=vllm"
            )


def learning_rate(config: LearnerConfig, steps: int) -> Callable[[int], float]:
    """Step (from 1) → learning rate: linear warm-up, then constant, or linear or cosine towards 0 after the last."""

    def rate(step: int) -> float:
        if step <= config.warmup_steps:
            return config.lr * step / config.warmup_steps
        done = (step - config.warmup_steps - 1) / max(1, steps - config.warmup_steps)
        shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return config.lr * shapes[config.schedule]

    return rate


def build_game(config: RunConfig, ranks: Ranks = ALONE) -> Game:
    """The game a configuration describes. Among several ranks all call this, and its reward is theirs together."""
    game, domain = config.game, game_domain(config.game)
    reward = build_reward(config, domain, ranks)
    if game.kind == "custom":
        if game.custom is None:
            raise ValueError("game.kind is custom: game.custom must name package.module:function or file.py:function")
        built = load_object(game.custom, "game.custom")(Parts(game, domain, reward), **game.options)
        if not isinstance(built, Game):
            raise ValueError(f"game.custom: {game.custom} returned {type(built).__name__}, not a sparring Game")
        return built
    if reward is None:
        raise ValueError(
            f"the {domain.name} domain has no reward of its own: give --reward, a reward model (game.reward.model: "
            "folder or hub id) or a function (game.reward.function: package.module:function or file.py:function)"
        )
    if game.kind == "grpo":
        if domain.name == "pictures":
            raise ValueError("GRPO doesn't look at pictures: set game.kind=vision and game.perception.visual_weight=0")
        return Dataset(
            solver=solver_role(game, domain),
            prompts=_prompts(game, domain),
            reward=reward,
            n_queries=game.n_queries,
            n_answers=game.n_answers,
            scale=SCALES[game.advantage],
        )
    if game.kind == "vision":
        return _vision(game, domain, reward)
    settings: dict[str, Any] = _lsp_settings(game, domain, reward)
    if game.kind == "lsp_zero":
        return LSPZero(**settings)
    unit = domain.points if game.quality.scale == "points" else 1
    return LSP(**settings, quality=_quality(game, domain), quality_weight=game.quality.weight * unit)


def _vision(game: GameConfig, domain: Domain, reward: Reward) -> Vision:
    p, prompts = game.perception, _prompts(game, domain)
    if p.extra_questions and not any(row.columns.get(FURTHER) is not None for row in prompts.rows):
        raise ValueError(
            f"game.perception.extra_questions is {p.extra_questions}, and no row of {prompts.name} has a column "
            f"{FURTHER} (a list of {{question, answer}}): add it, or set 0"
        )
    return Vision(
        solver=solver_role(game, domain),
        prompts=prompts,
        reward=reward,
        n_queries=game.n_queries,
        n_answers=game.n_answers,
        reader=reader_role(game, domain),
        extra_questions=p.extra_questions,
        accuracy_weight=p.accuracy_weight,
        visual_weight=p.visual_weight,
        format_weight=p.format_weight,
        combine=COMBINATIONS[p.combine](p),
    )


def require_room(game: Game, models: Models) -> None:
    """Refuse a game whose every query would be cut off: the Challenger's prompts must fit the model's context.

    Raises:
        ValueError: one doesn't; it names the task and the settings.
    """
    if not isinstance(game, LSPZero) or models.context is None:
        return
    for task in game.tasks:
        asked = game.challenger.prompt(task=task.task, template=task.template)
        tokens, reply = len(models.renderer.encode(asked.messages)), game.challenger.sampling.max_new_tokens
        if tokens + reply > models.context:
            raise ValueError(
                f"the Challenger's prompt for {task.name!r} has {tokens} tokens and game.challenger.max_new_tokens is "
                f"{reply}, more than the model's context of {models.context}: shorten one of them"
            )


def domain_named(name: str) -> Domain:
    """A shipped domain."""
    if name == "arena":
        from sparring.arena.domain import ARENA

        return ARENA
    if name == "pictures":
        from sparring.pictures.domain import PICTURES

        return PICTURES
    from sparring.text import TEXT

    return TEXT


def solver_role(game: GameConfig, domain: Domain) -> Role:
    """The Solver, as trained; the perceiver, where there are pictures to look at."""
    if game.kind == "vision":
        return make_role("perceiver", domain.perceiver, game.solver, needs=("query",))
    return make_role("solver", domain.solver, game.solver, needs=("query",))


def reader_role(game: GameConfig, domain: Domain) -> Role:
    """The reader of Vision-SR1: answers from a description alone."""
    weight = game.perception.reader_weight
    return make_role("reader", domain.reader, game.reader, weight, needs=("query", "description"))


def make_role(name: str, template: str, settings: RoleConfig, weight: float = 1.0, needs: tuple[str, ...] = ()) -> Role:
    """A role from its settings; the user's prompt file, which needs these placeholders, in place of the template."""
    if settings.prompt is not None:
        template = prompts.from_file(settings.prompt, f"game.{name}.prompt", needs)
    params = SamplingParams(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
    return Role(name, template, params, weight, settings.system)


def _trained_temperature(game: Game) -> float:
    """The one temperature that trained roles are sampled and scored at (greedy ones are scored at 1)."""
    found = {role.name: role.sampling.temperature for role in game.roles if role.weight > 0}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"game.{name}.temperature is {value:g}" for name, value in found.items())
        raise ValueError(f"roles that are trained must have one temperature, but {listed}: set them equal")
    return next(iter(found.values()), 1.0) or 1.0


def game_domain(game: GameConfig) -> Domain:
    """The domain as a game's settings have it: the text domain's bounds and rubric are settings."""
    domain = domain_named(game.domain)
    if domain.name != "text":
        return domain
    return replace(
        domain,
        read_query=TemplateReader(game.challenge.shortest, game.challenge.longest),
        parse_grade=GradeReader(game.quality.criteria),
        points=game.quality.criteria,
    )


def build_reward(config: RunConfig, domain: Domain, ranks: Ranks = ALONE) -> Reward | None:
    """R(q, a): a function, a reward model loaded or served, or the domain's own; None where there is none."""
    settings = config.game.reward
    if settings.function is not None:
        if ranks.size > 1:
            return FirstReward(load_object(settings.function, "--reward"), settings.function, ranks)
        return load_reward(settings.function)
    if settings.model is None:
        return None if domain.reward is None else Reward(domain.reward, name=domain.name)
    scale = SCORE_SCALES[settings.scale]()
    function = _preference(settings, config.model.device)
    if ranks.size > 1 and settings.url is not None:
        return FirstReward(Scaled(function, scale), settings.model, ranks)
    if isinstance(function, PreferenceModel) and ranks.size > 1:
        function = SplitPreference(function, ranks)
    return Reward(Scaled(function, scale), name=settings.model)


def _preference(settings: RewardConfig, model_device: str) -> RewardFunction:
    assert settings.model is not None
    if settings.url is not None:
        from sparring.rewards.served import ServedPreference  # its HTTP client is needed here alone

        return ServedPreference.load(
            settings.url,
            settings.model,
            revision=settings.revision,
            model=settings.model,
            timeout=settings.timeout,
            retries=settings.retries,
            max_tokens=settings.max_tokens,
            template_kwargs=settings.template_kwargs,
        )
    path, settings = settings.model, resolved_reward(settings, model_device)
    return PreferenceModel.load(
        path,
        device=settings.device,
        dtype=resolve_dtype(settings.dtype, settings.device),
        revision=settings.revision,
        token_budget=settings.token_budget,
        max_tokens=settings.max_tokens,
        template_kwargs=settings.template_kwargs,
    )


def resolved_reward(settings: RewardConfig, model_device: str) -> RewardConfig:
    """With what `auto` and 0 stand for here."""
    device = resolve_device(model_device if settings.device == "auto" else settings.device)
    dtype = str(resolve_dtype(settings.dtype, device)).removeprefix("torch.")
    budget = settings.token_budget or (2_048 if device == "cpu" else 32_768)
    return settings.model_copy(update={"device": device, "dtype": dtype, "token_budget": budget})


def _prompts(game: GameConfig, domain: Domain) -> PromptSet:
    if game.prompts is None:
        raise ValueError(
            f"game.kind is {game.kind}: game.prompts must name a prompt file, arena:easy, arena:hard or pictures:train"
        )
    prefix, colon, name = game.prompts.partition(":")
    if colon and prefix == domain.name and domain.prompt_set is not None:
        return domain.prompt_set(name)
    return load_prompts(
        game.prompts,
        split=game.prompt_split,
        subset=game.prompt_subset,
        column=game.prompt_column,
        revision=game.prompt_revision,
        max_pixels=game.prompt_pixels,
    )


def _lsp_settings(game: GameConfig, domain: Domain, reward: Reward) -> dict[str, Any]:
    c = game.challenge
    if domain.read_query is None:
        raise ValueError(
            f"the {domain.name} domain has no Challenger, so game.kind={game.kind} can't be played there: "
            "set game.kind=vision, or another game.domain"
        )
    if c.payoff == "frontier" and game.reward.model is not None and game.reward.scale != "sigmoid":
        raise ValueError(
            f"game.challenge.payoff=frontier needs a reward in [0, 1], and game.reward.scale is {game.reward.scale}: "
            "set game.reward.scale=sigmoid"
        )
    tasks = domain.tasks if c.tasks is None else load_tasks(Path(c.tasks))
    payoff: ChallengerPayoff = Frontier(c.frontier_target) if c.payoff == "frontier" else Adversarial()
    repetition = None
    if c.repetition_weight:
        similarity = SIMILARITIES[c.repetition_measure]()
        repetition = RepetitionPenalty(c.repetition_weight, c.repetition_archive, similarity)
    return {
        "challenger": make_role("challenger", domain.challenger, game.challenger, game.alpha, _needs(tasks)),
        "solver": solver_role(game, domain),
        "tasks": tasks,
        "read_query": domain.read_query,
        "reward": reward,
        "n_queries": game.n_queries,
        "n_answers": game.n_answers,
        "payoff": payoff,
        "invalid_payoff": c.invalid_payoff,
        "frozen_share": c.frozen_share,
        "repetition": repetition,
        "compare_by_task": c.compare_by_task,
        "refuse_copies": domain.refuse_copies if c.refuse_copies is None else c.refuse_copies,
        "scale": SCALES[game.advantage],
    }


def _needs(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The placeholders a Challenger's prompt can't do without: what any of the tasks would put there."""
    given = {"task": any(t.task for t in tasks), "template": any(t.template for t in tasks)}
    return tuple(name for name, present in given.items() if present)


def _quality(game: GameConfig, domain: Domain) -> Quality:
    if game.quality.source == "program":
        if domain.rubric is None:
            raise ValueError(f"the {domain.name} domain has no rubric by program: set game.quality.source=reference")
        return ProgramQuality(domain.rubric)
    assert domain.parse_grade is not None  # whoever has a Challenger has a grader
    grader = make_role("grader", domain.grader, game.grader, weight=0.0, needs=("query", "answer"))
    return ReferenceQuality(grader, domain.parse_grade, game.quality.samples)
