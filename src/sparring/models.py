"""A run's models: loaded, given their adapter, opened for sampling and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparring import prompts
from sparring.images import ImageStore
from sparring.lm.base import LanguageModel
from sparring.lm.load import Saved, load_tokenizer, resolve_dtype
from sparring.lm.lora import LoraSettings, add_lora
from sparring.lm.vision_files import load_processor
from sparring.lm.vision_parts import freeze_vision, is_vision_model, language_lora
from sparring.lm.weights import FullWeights, LoraWeights, ShardedWeights, Weights
from sparring.parallel.placement import placement
from sparring.parallel.ranks import ALONE, Ranks
from sparring.rendering import Renderer
from sparring.settings import ModelConfig, RunConfig
from sparring.shipped import is_shipped, shipped_folder


@dataclass(frozen=True)
class Models:
    """What a run holds in memory. `weights` is what it trains and saves."""

    model: PreTrainedModel
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    policy: LanguageModel
    reference: LanguageModel | None
    stop_ids: tuple[int, ...]
    context: int | None
    ranks: Ranks
    sharded: bool


def build_models(
    config: RunConfig, *, trainable: bool = True, frozen: Sequence[str] = (), ranks: Ranks = ALONE
) -> Models:
    """Load model, tokenizer and, where the run needs it, the frozen reference.

    frozen: parts of the model that are not trained, by a name in their parameters' names.

    Masters are float32 where every weight is trained. Under an adapter the model is frozen in compute precision, and
    is its own reference with the adapter off. Among several ranks all call this.
    """
    settings = config.model
    if config.threads:
        torch.set_num_threads(config.threads)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    adapted = trainable and settings.tuning != "full"
    placed = placement(settings, config.parallel.strategy, ranks, device, dtype)
    masters = dtype if adapted or not trainable else torch.float32
    model = placed.load(locate(settings.path), masters, settings, adapted=adapted)
    tokenizer = load_tokenizer(
        locate(settings.path),
        _chat_template(settings),
        revision=settings.revision,
        remote_code=settings.remote_code is not None,
    )
    saved: Saved = tokenizer
    images: ImageStore | None = None
    if is_vision_model(model):
        saved = load_processor(
            locate(settings.path),
            tokenizer,
            min_pixels=settings.vision.min_pixels,
            max_pixels=settings.vision.max_pixels,
            revision=settings.revision,
        )
        images = ImageStore(saved.image_processor)
        vision = settings.vision
        freeze_vision(model, tower=not vision.train_tower, projector=not vision.train_projector)
    if not trainable:
        model.requires_grad_(False)  # before it is opened: engines share frozen weights and copy trained ones
    if adapted:
        lora = LoraSettings(settings.lora.rank, settings.lora.alpha, settings.lora.targets)
        add_lora(model, lora if images is None else language_lora(model, lora), config.seed)
    for name, parameter in model.named_parameters():
        if not set(frozen).isdisjoint(name.split(".")):
            parameter.requires_grad_(False)
    policy = placed.open(model, settings, trainable=trainable, images=images)
    reference = None
    if adapted or needs_reference(config):
        other = settings.reference if needs_reference(config) else None
        start = None if other is None else locate(other)
        reference, of = placed.reference(policy, model, start, settings)
        _require_same_vocabulary(settings, model, of)
    return Models(
        model,
        _weights(config, model, saved, ranks, adapted=adapted, sharded=placed.sharded),
        tokenizer,
        Renderer(tokenizer, settings.template_kwargs, images),
        policy,
        reference,
        stop_ids_of(model, tokenizer),
        _context(model, config),
        ranks,
        placed.sharded,
    )


def needs_reference(config: RunConfig) -> bool:
    """Whether anything asks the frozen start: the KL, a grader, or frozen queries."""
    game = config.game
    graded = game.kind == "lsp" and game.quality.source == "reference"
    return config.learner.beta > 0 or graded or game.challenge.frozen_share > 0 or game.kind == "custom"


def _weights(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: Saved,
    ranks: Ranks,
    *,
    adapted: bool,
    sharded: bool,
) -> Weights:
    dtype = getattr(torch, config.export.dtype)
    if not adapted:
        return (ShardedWeights if sharded else FullWeights)(model, tokenizer, dtype, ranks)
    base, revision = str(locate(config.model.path)), config.model.revision
    return LoraWeights(model, tokenizer, base, revision, dtype, merged=config.export.adapter == "merged", ranks=ranks)


def locate(path: str) -> str | Path:
    """A model's folder: a shipped one by its name, a run's exported model for a run folder, else as given."""
    if is_shipped(path):
        return shipped_folder(path)
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
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        index, count = int(name.partition(":")[2] or 0), torch.cuda.device_count()
        if index >= count:
            raise ValueError(
                f"there is no device {name} here (CUDA devices: {count}): set model.device, or leave it auto"
            )
    return name


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


def _require_same_vocabulary(settings: ModelConfig, model: PreTrainedModel, reference: PreTrainedModel) -> None:
    sizes = [m.config.get_text_config(decoder=True).vocab_size for m in (model, reference)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"model.reference {settings.reference} has a vocabulary of {sizes[1]} tokens and model.path "
            f"{settings.path} one of {sizes[0]}: take a reference with the same tokenizer"
        )


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
    if game.kind == "vision" and game.perception.visual_weight:
        replies["reader"] = game.reader.max_new_tokens
    if game.kind == "lsp" and game.quality.source == "reference":
        replies["grader"] = game.grader.max_new_tokens
    if sum(replies.values()) >= context:
        listed = ", ".join(f"game.{name}.max_new_tokens ({tokens})" for name, tokens in replies.items())
        raise ValueError(f"{listed} leave no room in the model's context of {context} tokens: lower them")
    return int(context)
