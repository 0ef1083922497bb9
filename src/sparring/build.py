"""From a configuration to the objects it describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparring import prompts
from sparring.advantages import Baseline, centred, standardised
from sparring.arena import model_path
from sparring.batching import Aggregation, constant_length, sequence_mean, sequence_sum, token_mean
from sparring.config import GameConfig, LearnerConfig, ModelConfig, RoleConfig, RunConfig
from sparring.data import PromptSet, load_prompts
from sparring.domains import Domain, Task
from sparring.games.base import Game
from sparring.games.challenge import Adversarial, ChallengerPayoff, Frontier, RepetitionPenalty
from sparring.games.dataset import Dataset
from sparring.games.lsp import LSP, LSPZero
from sparring.games.quality import ProgramQuality, Quality, ReferenceQuality
from sparring.learner import ExactKL, KLPenalty, Learner, SampledKL, Update
from sparring.lm.base import LanguageModel, SamplingParams
from sparring.lm.load import load_model, load_tokenizer, open_frozen, open_lm, resolve_dtype
from sparring.losses import k2, k3
from sparring.rendering import Renderer
from sparring.rewards.base import Reward, load_object, load_reward
from sparring.roles import Role
from sparring.sampling.local import LocalSampler

AGGREGATIONS: dict[str, Aggregation] = {
    "sum": sequence_sum,
    "grpo": sequence_mean,
    "dapo": token_mean,
    "dr_grpo": constant_length,
}
SCALES: dict[str, Baseline] = {"centred": centred, "standardised": standardised}
KL_TERMS: dict[str, KLPenalty | None] = {"exact": ExactKL(), "k1": None, "k2": SampledKL(k2), "k3": SampledKL(k3)}


@dataclass(frozen=True)
class Models:
    """What a run holds in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    policy: LanguageModel
    reference: LanguageModel | None
    stop_ids: tuple[int, ...]
    context: int | None


@dataclass(frozen=True)
class Parts:
    """What a custom game is built from: `build(parts, **options) -> Game`."""

    config: GameConfig
    domain: Domain
    reward: Reward | None

    def role(self, name: str, template: str, settings: RoleConfig, weight: float = 1.0) -> Role:
        """A role with a run's settings."""
        return make_role(name, template, settings, weight)


def build_models(config: RunConfig, *, trainable: bool = True) -> Models:
    """Load model, tokenizer and, where the run needs it, the frozen reference."""
    settings = config.model
    if config.threads:
        torch.set_num_threads(config.threads)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    path = locate(settings.path)
    model = load_model(path, device=device, attention=settings.attention, revision=settings.revision)
    tokenizer = load_tokenizer(path, _chat_template(settings), revision=settings.revision)
    reference = None
    if needs_reference(config):
        start = model if settings.reference is None else _other_reference(settings, model, device)
        reference = open_frozen(start, dtype, path=settings.engine)
    return Models(
        model,
        tokenizer,
        Renderer(tokenizer, settings.template_kwargs),
        open_lm(model, dtype, trainable=trainable, path=settings.engine),
        reference,
        stop_ids_of(model, tokenizer),
        _context(model, config),
    )


def needs_reference(config: RunConfig) -> bool:
    """Whether anything asks the frozen start: the KL, a grader, or frozen queries."""
    game = config.game
    graded = game.kind == "lsp" and game.quality.source == "reference"
    return config.learner.beta > 0 or graded or game.challenge.frozen_share > 0 or game.kind == "custom"


def build_sampler(models: Models, config: RunConfig) -> LocalSampler:
    """The local sampler over a run's models."""
    return LocalSampler(
        models.policy,
        models.reference,
        models.renderer,
        stop_ids=models.stop_ids,
        seed=config.seed,
        context=models.context,
        batch_tokens=config.model.cache_tokens,
    )


def build_learner(models: Models, config: RunConfig, game: Game) -> Learner:
    """Optimiser and learner over a run's models."""
    c = config.learner
    optimizer = torch.optim.AdamW(
        [p for p in models.model.parameters() if p.requires_grad],
        lr=c.lr,
        betas=(c.adam_beta1, c.adam_beta2),
        weight_decay=c.weight_decay,
        fused=True,
    )
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
    )
    return Learner(models.model, models.policy, models.reference, optimizer, update)


def learning_rate(config: LearnerConfig, steps: int) -> Callable[[int], float]:
    """Step (from 1) → learning rate: linear warm-up, then constant, or linear or cosine towards 0 after the last."""

    def rate(step: int) -> float:
        if step <= config.warmup_steps:
            return config.lr * step / config.warmup_steps
        done = (step - config.warmup_steps - 1) / max(1, steps - config.warmup_steps)
        shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return config.lr * shapes[config.schedule]

    return rate


def build_game(config: RunConfig) -> Game:
    """The game a configuration describes."""
    game, domain = config.game, domain_named(config.game.domain)
    reward = _reward(game, domain)
    if game.kind == "custom":
        if game.custom is None:
            raise ValueError("game.kind is custom: game.custom must name package.module:function or file.py:function")
        built = load_object(game.custom, "game.custom")(Parts(game, domain, reward), **game.options)
        if not isinstance(built, Game):
            raise ValueError(f"game.custom: {game.custom} returned {type(built).__name__}, not a sparring Game")
        return built
    if reward is None:
        raise ValueError(
            f"the {domain.name} domain has no reward of its own: give game.reward (--reward), "
            "package.module:function or file.py:function"
        )
    if game.kind == "grpo":
        return Dataset(
            solver=solver_role(game, domain),
            prompts=_prompts(game, domain),
            reward=reward,
            n_queries=game.n_queries,
            n_answers=game.n_answers,
            scale=SCALES[game.advantage],
        )
    settings: dict[str, Any] = _lsp_settings(game, domain, reward)
    if game.kind == "lsp_zero":
        return LSPZero(**settings)
    return LSP(**settings, quality=_quality(game, domain), quality_weight=game.quality.weight)


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
    from sparring.text import TEXT

    return TEXT


def solver_role(game: GameConfig, domain: Domain) -> Role:
    """The Solver, as trained."""
    return make_role("solver", domain.solver, game.solver)


def make_role(name: str, template: str, settings: RoleConfig, weight: float = 1.0) -> Role:
    """A role from its settings; the user's prompt file, where given, in place of the template."""
    if settings.prompt is not None:
        needs = {"solver": ("query",), "grader": ("query", "answer")}.get(name, ())
        template = prompts.from_file(settings.prompt, f"game.{name}.prompt", needs)
    params = SamplingParams(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
    return Role(name, template, params, weight)


def locate(path: str) -> str | Path:
    """A model's folder: the shipped one for `arena`, a run's exported model for a run folder, else as given."""
    if path == "arena":
        return model_path()
    folder = Path(path)
    if (folder / "config.yaml").is_file():
        if not (folder / "model").is_dir():
            raise ValueError(f"{path} is a run that has not finished: it has no model folder yet; resume it first")
        return folder / "model"
    return path


def default_token_budget(device: str) -> int:
    """Padded tokens a forward pass: on a CPU attention past about 4k tokens falls out of the cache."""
    return 4_096 if device == "cpu" else 16_384


def resolve_device(name: str) -> str:
    """`auto`: cuda where there is one, else cpu."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def stop_ids_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a reply: the generation config's (chat models often have several) and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    found = tuple(dict.fromkeys(int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None))
    if not found:
        raise ValueError("neither the model's generation config nor the tokenizer names an end-of-sequence token")
    return found


def _chat_template(settings: ModelConfig) -> str | None:
    if settings.chat_template is None:
        return None
    return prompts.from_file(settings.chat_template, "model.chat_template")


def _other_reference(settings: ModelConfig, model: PreTrainedModel, device: str) -> PreTrainedModel:
    assert settings.reference is not None
    other = load_model(locate(settings.reference), device=device, attention=settings.attention)
    sizes = [m.config.vocab_size for m in (model, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"model.reference {settings.reference} has a vocabulary of {sizes[1]} tokens and model.path "
            f"{settings.path} one of {sizes[0]}: take a reference with the same tokenizer"
        )
    return other


def _trained_temperature(game: Game) -> float:
    """The one temperature that trained roles are sampled and scored at (greedy ones are scored at 1)."""
    found = {role.name: role.sampling.temperature for role in game.roles if role.weight > 0}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"game.{name}.temperature is {value:g}" for name, value in found.items())
        raise ValueError(f"roles that are trained must have one temperature, but {listed}: set them equal")
    return next(iter(found.values()), 1.0) or 1.0


def _context(model: PreTrainedModel, config: RunConfig) -> int | None:
    """Most tokens of a prompt and its reply together; None where the model names no such bound.

    Replies become part of later prompts (the grader reads query and answer), so they must fit one context together:
    better refused here than in the middle of a run.
    """
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is None:
        return None
    game = config.game
    replies = {"solver": game.solver.max_new_tokens}
    if game.kind in ("lsp", "lsp_zero"):
        replies["challenger"] = game.challenger.max_new_tokens
    if game.kind == "lsp" and game.quality.source == "reference":
        replies["grader"] = game.grader.max_new_tokens
    if sum(replies.values()) >= context:
        listed = ", ".join(f"game.{name}.max_new_tokens ({tokens})" for name, tokens in replies.items())
        raise ValueError(f"{listed} leave no room in the model's context of {context} tokens: lower them")
    return int(context)


def _reward(game: GameConfig, domain: Domain) -> Reward | None:
    if game.reward is not None:
        return load_reward(game.reward)
    return None if domain.reward is None else Reward(domain.reward, name=domain.name)


def _prompts(game: GameConfig, domain: Domain) -> PromptSet:
    if game.prompts is None:
        raise ValueError("game.kind is grpo: game.prompts must name a prompt file, arena:easy or arena:hard")
    prefix, colon, name = game.prompts.partition(":")
    if colon and prefix == domain.name and domain.prompt_set is not None:
        return domain.prompt_set(name)
    return load_prompts(Path(game.prompts))


def _lsp_settings(game: GameConfig, domain: Domain, reward: Reward) -> dict[str, Any]:
    c = game.challenge
    payoff: ChallengerPayoff = Frontier(c.frontier_target) if c.payoff == "frontier" else Adversarial()
    repetition = RepetitionPenalty(c.repetition_weight, c.repetition_archive) if c.repetition_weight else None
    return {
        "challenger": make_role("challenger", domain.challenger, game.challenger, game.alpha),
        "solver": solver_role(game, domain),
        "tasks": domain.tasks if c.tasks is None else load_tasks(Path(c.tasks)),
        "read_query": domain.read_query,
        "reward": reward,
        "n_queries": game.n_queries,
        "n_answers": game.n_answers,
        "payoff": payoff,
        "invalid_payoff": c.invalid_payoff,
        "frozen_share": c.frozen_share,
        "repetition": repetition,
        "compare_by_task": c.compare_by_task,
        "scale": SCALES[game.advantage],
    }


def _quality(game: GameConfig, domain: Domain) -> Quality:
    if game.quality.source == "program":
        if domain.rubric is None:
            raise ValueError(f"the {domain.name} domain has no rubric by program: set game.quality.source=reference")
        return ProgramQuality(domain.rubric)
    grader = make_role("grader", domain.grader, game.grader, weight=0.0)
    return ReferenceQuality(grader, domain.parse_grade, game.quality.samples)


def load_tasks(path: Path) -> Sequence[Task]:
    """(task, template) pairs from a YAML list of {task, template, name}.

    Raises:
        ValueError: unreadable, not a list, or an entry (named by its number) with unknown keys.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"game.challenge.tasks: can't read {path}: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"game.challenge.tasks: {path} must hold a list of task, template pairs")
    tasks = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not set(entry) <= {"task", "template", "name"}:
            raise ValueError(f"game.challenge.tasks: entry {number} of {path} takes the keys task, template, name")
        task, template = str(entry.get("task") or ""), str(entry.get("template") or "")
        tasks.append(Task(task, template, str(entry.get("name") or task or "own judgement")))
    return tasks
