"""Where a run's models lie: whole in every process, or sharded over the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

import torch
from transformers import PreTrainedModel

from sparring.images import ImageStore
from sparring.lm.base import LanguageModel
from sparring.lm.engines import Adapted, open_lm, open_reference
from sparring.lm.load import load_model
from sparring.lm.lora import has_adapters
from sparring.lm.vision import VisionLM
from sparring.lm.vision_parts import is_vision_model
from sparring.parallel.ranks import Ranks
from sparring.settings import ModelConfig


class Placement(Protocol):
    """Loads models and opens them. Among several ranks all call each of these.

    sharded: whether each rank holds a part, so that every pass is a meeting.
    """

    sharded: bool

    def load(self, path: str | Path, dtype: torch.dtype, settings: ModelConfig, *, adapted: bool) -> PreTrainedModel:
        """The model that plays, with its weights in `dtype`; adapted: it gets adapters before it is opened."""
        ...

    def open(
        self, model: PreTrainedModel, settings: ModelConfig, *, trainable: bool, images: ImageStore | None = None
    ) -> LanguageModel:
        """The model as it writes and scores. images: the pictures of prompts, for a model that sees."""
        ...

    def reference(
        self, policy: LanguageModel, model: PreTrainedModel, other: str | Path | None, settings: ModelConfig
    ) -> tuple[LanguageModel, PreTrainedModel]:
        """The frozen start, and the model it is of: another one's, or `model` as it is before anything was trained."""
        ...


def placement(settings: ModelConfig, strategy: str, ranks: Ranks, device: str, dtype: torch.dtype) -> Placement:
    """Where a run's models lie.

    Args:
        strategy: replicate, shard, or auto: adapters over a whole model, everything else sharded.
        device, dtype: where and in what precision they compute.

    Raises:
        ValueError: what is asked for can't be sharded.
    """
    adapted = settings.tuning != "full"
    if ranks.size == 1 or strategy == "replicate" or (strategy == "auto" and adapted):
        return Whole(device, dtype)
    if settings.tuning == "qlora":
        raise ValueError("parallel.strategy=shard can't shard 4-bit weights: set it to replicate, or model.tuning=lora")
    if settings.remote_code is not None:
        raise ValueError("parallel.strategy=shard is for models that transformers has: set it to replicate")
    return Sharded(ranks, device, dtype)


class Whole:
    """Models whole in this process, and in every other alike."""

    sharded = False

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype

    def load(self, path: str | Path, dtype: torch.dtype, settings: ModelConfig, *, adapted: bool) -> PreTrainedModel:
        """See `Placement.load`."""
        return load_model(
            path,
            device=self._device,
            dtype=dtype,
            attention=settings.attention,
            revision=settings.revision,
            remote_code=settings.remote_code is not None,
            four_bit=adapted and settings.tuning == "qlora",
        )

    def open(
        self, model: PreTrainedModel, settings: ModelConfig, *, trainable: bool, images: ImageStore | None = None
    ) -> LanguageModel:
        """See `Placement.open`."""
        again = settings.gradient_checkpointing
        return open_lm(
            model, self._dtype, trainable=trainable, path=settings.engine, checkpointing=again, images=images
        )

    def reference(
        self, policy: LanguageModel, model: PreTrainedModel, other: str | Path | None, settings: ModelConfig
    ) -> tuple[LanguageModel, PreTrainedModel]:
        """See `Placement.reference`."""
        if other is not None:
            model = load_model(other, device=self._device, dtype=self._dtype, attention=settings.attention)
            model.requires_grad_(False)
        return open_reference(policy, model, self._dtype, path=settings.engine), model


class Sharded:
    """Models sharded over the ranks, on the general engine."""

    sharded = True

    def __init__(self, ranks: Ranks, device: str, dtype: torch.dtype) -> None:
        from sparring.parallel.team import Team

        assert isinstance(ranks, Team)
        self._team, self._device, self._dtype = ranks, device, dtype
        self._path: str | Path = ""

    def load(self, path: str | Path, dtype: torch.dtype, settings: ModelConfig, *, adapted: bool) -> PreTrainedModel:
        """See `Placement.load`. A model that gets adapters is loaded whole, into the memory of the CPU."""
        self._path = path
        if adapted:
            return load_model(path, dtype=dtype, attention=settings.attention, revision=settings.revision)
        return self._shards(path, dtype, settings.attention, settings.revision)

    def open(
        self, model: PreTrainedModel, settings: ModelConfig, *, trainable: bool, images: ImageStore | None = None
    ) -> LanguageModel:
        """See `Placement.open`."""
        from sparring.lm.vision_sharded import ShardedVisionLM
        from sparring.parallel.engine import ShardedLM
        from sparring.parallel.sharding import is_sharded_model, shard

        if not is_sharded_model(model):
            model = shard(model, self._team, self._dtype, self._device)
        again = settings.gradient_checkpointing
        if is_vision_model(model):
            assert images is not None
            return ShardedVisionLM(model, self._dtype, trainable, images, checkpointing=again)
        return ShardedLM(model, self._dtype, trainable, checkpointing=again)

    def reference(
        self, policy: LanguageModel, model: PreTrainedModel, other: str | Path | None, settings: ModelConfig
    ) -> tuple[LanguageModel, PreTrainedModel]:
        """See `Placement.reference`. Shards can't be copied: the start is loaded again."""
        if other is None and has_adapters(model):
            return cast(Adapted, policy).without_adapters(), model
        path, revision = (self._path, settings.revision) if other is None else (other, None)
        frozen = self._shards(path, self._dtype, settings.attention, revision).requires_grad_(False)
        images = policy.images if isinstance(policy, VisionLM) else None
        return self.open(frozen, settings, trainable=False, images=images), frozen

    def _shards(self, path: str | Path, dtype: torch.dtype, attention: str, revision: str | None) -> PreTrainedModel:
        from sparring.parallel.loading import load_sharded

        return load_sharded(
            path,
            self._team,
            device=self._device,
            dtype=dtype,
            computing=self._dtype,
            attention=attention,
            revision=revision,
        )
