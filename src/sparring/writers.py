"""From a configuration to who writes the completions: the trainer's own models, or vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from sparring.images import Picture
from sparring.lm.hub import find_folder
from sparring.lm.vision_parts import vision_tokens
from sparring.models import Models, locate
from sparring.parallel import Ranks
from sparring.rendering import Renderer
from sparring.rollout.base import RolloutEngine
from sparring.rollout.folders import prepare_folder
from sparring.rollout.images import PromptImages
from sparring.rollout.nccl import NcclTransfer
from sparring.rollout.process import ProcessEngine
from sparring.rollout.server import ServerEngine
from sparring.rollout.several import Engines
from sparring.sampling.local import LocalWriter
from sparring.sampling.parallel import LedEngine, spread
from sparring.sampling.turns import Ids, TurnSampler, Writer
from sparring.sampling.vllm import Answerer, EngineWriter, Feed, VLLMWriter
from sparring.settings import RolloutConfig, RunConfig


def build_sampler(models: Models, config: RunConfig, folder: Path | None = None) -> TurnSampler:
    """The sampler over a run's models.

    folder: the run's, where a vLLM engine finds new weights (rollout.folder names another); None: the models in this
    process write, whatever rollout.engine says.
    """
    if config.rollout.engine == "local" or folder is None:
        local = LocalWriter(models.policy, models.reference, batch_tokens=config.model.cache_tokens)
        writer: Writer = spread(local, models)
        context = models.context
    else:
        writer, longest = _vllm(models, config, folder)
        context = longest if models.context is None else min(longest, models.context)
    return TurnSampler(writer, models.renderer, stop_ids=models.stop_ids, seed=config.seed, context=context)


def _vllm(models: Models, config: RunConfig, folder: Path) -> tuple[VLLMWriter, int]:
    """vLLM's writer, and the most tokens of a prompt and its completion there."""
    settings = config.rollout
    tied = bool(getattr(models.model.config, "tie_word_embeddings", False))
    exchange = Path(settings.folder) if settings.folder is not None else folder / "rollout"
    ranks = models.ranks
    if ranks.size > 1:
        _require_servers(models, config)
        ranks = ranks.apart() if settings.overlap else ranks
    images = _prompt_images(models)
    if settings.url:
        engine = _led(lambda: _servers(settings, settings.url, images, nccl=settings.weights == "nccl"), ranks)
    else:
        engine = _in_process(config, exchange, images, tied=tied)
    reference: Answerer | None = None
    if settings.reference_url:
        reference = EngineWriter(
            _led(lambda: _servers(settings, settings.reference_url, images, nccl=False), ranks), adapter=False
        )
    elif models.reference is not None:
        reference = spread(LocalWriter(models.policy, models.reference, batch_tokens=config.model.cache_tokens), models)
    feed = Feed(models.weights, exchange, getattr(torch, config.model.dtype), untie=tied and engine.info.cpu)
    probe = _probe(models.renderer)
    writer = VLLMWriter(engine, reference, feed, models.policy, gap_limit=settings.gap_limit, probe=probe)
    return writer, engine.info.max_tokens


def _prompt_images(models: Models) -> PromptImages | None:
    """How an engine is told of images; None where the model reads text."""
    store = models.renderer.images
    if store is None:
        return None
    return PromptImages(store, int(models.model.config.image_token_id), vision_tokens(models.model))


def _probe(renderer: Renderer) -> Ids:
    """The first prompt by which trainer and engine are compared; a vision model's shows a picture."""
    text = "Write one short sentence about anything you like."
    if renderer.images is None:
        return renderer.encode([{"role": "user", "content": text}])
    picture = Picture.open(Image.radial_gradient("L").resize((64, 64)), name="the probe's picture")
    return renderer.encode(
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
    )


def _led(opened: Callable[[], RolloutEngine], ranks: Ranks) -> RolloutEngine:
    """An engine; among several ranks rank 0 holds it for all."""
    return opened() if ranks.size == 1 else LedEngine(opened, ranks)


def _require_servers(models: Models, config: RunConfig) -> None:
    settings = config.rollout
    if not settings.url:
        raise ValueError("several ranks need a vLLM server: set rollout.url (sparring serve-command starts one)")
    held = models.reference is not None and config.model.tuning == "full" and not settings.reference_url
    if settings.overlap and held:
        raise ValueError(
            "rollout.overlap on several ranks needs a server for the frozen start: set rollout.reference_url"
        )


def _servers(settings: RolloutConfig, urls: Sequence[str], images: PromptImages | None, *, nccl: bool) -> RolloutEngine:
    engines = [
        ServerEngine(
            url,
            timeout=settings.timeout,
            connect_timeout=settings.patience,
            silence=settings.silence,
            concurrency=settings.concurrency,
            retries=settings.retries,
            weights=NcclTransfer(settings.nccl_address, settings.nccl_port + number) if nccl else None,
            images=images,
        )
        for number, url in enumerate(urls)
    ]
    return engines[0] if len(engines) == 1 else Engines(engines)


def _in_process(config: RunConfig, exchange: Path, images: PromptImages | None, *, tied: bool) -> RolloutEngine:
    start = find_folder(locate(config.model.path), config.model.revision, weights=True)
    if tied and not torch.cuda.is_available():
        start = prepare_folder(start, exchange / "start")
    return ProcessEngine(
        start,
        lora_rank=None if config.model.tuning == "full" else config.model.lora.rank,
        dtype=config.model.dtype,
        memory=config.rollout.memory,
        seed=config.seed,
        images=images,
    )
