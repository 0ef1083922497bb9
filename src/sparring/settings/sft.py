"""Settings of supervised fine-tuning; `SFTConfig` is the whole."""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from sparring.settings.base import Count, Decay, NotNegative, Positive, Section, Seed, Share, listed
from sparring.settings.model import ModelConfig
from sparring.settings.run import ExportConfig, ParallelConfig
from sparring.tracking import require_known

VISION = ("visual", "vision_tower", "multi_modal_projector")
"""What transformers calls the vision tower, with its projector where that is no part of it."""

Names = Annotated[tuple[str, ...], BeforeValidator(listed)]


def _known_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        require_known(name)
    return names


class SFTDataConfig(Section):
    """Which conversations are learned from."""

    path: str = Field(default="", description="file (.jsonl, .json, .parquet), pattern of files, folder or hub id")
    split: str = Field(default="train", description="split, of a folder or a hub data set; train[:1000] is a part")
    subset: str | None = Field(default=None, description="configuration of a hub data set that has several")
    revision: str | None = Field(default=None, description="hub revision")
    prompt: str = Field(default="prompt", description="column of the prompts of prompt and completion pairs")
    completion: str = Field(default="completion", description="column of their completions")
    images: str | None = Field(
        default=None, description="folder that relative paths of images count from; null: where the data file lies"
    )
    turns: Literal["all", "last"] = Field(
        default="all", description="which of a conversation's assistant turns are trained"
    )
    max_tokens: Count = Field(default=4092, description="longest row, tokens of prompt and answers")
    too_long: Literal["drop", "cut"] = Field(default="drop", description="what becomes of a longer row")
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05, description="share of the conversations that is not trained but measured"
    )
    held_out_most: Annotated[int, Field(ge=0)] = Field(default=200, description="most conversations held out")


class SFTLearnerConfig(Section):
    """How the model learns from them."""

    lr: Positive = Field(default=1e-5, description="peak learning rate (AdamW)")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="after warm-up; linear, cosine: to 0"
    )
    warmup: Share = Field(default=0.1, description="share of the steps that is linear warm-up")
    batch: Count = Field(default=16, description="rows an update, over all ranks together")
    adam_beta1: Decay = Field(default=0.9, description="AdamW's first moment")
    adam_beta2: Decay = Field(default=0.999, description="AdamW's second moment")
    weight_decay: NotNegative = Field(default=0.0, description="AdamW's decoupled weight decay")
    max_grad_norm: Positive | None = Field(
        default=1.0, description="gradients are scaled down to this norm; null: never"
    )
    token_budget: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="most padded tokens in one forward pass; lower: less memory; 0: 4096 on a CPU, else 16384",
    )


class SFTEvaluationConfig(Section):
    """How often the held-out rows are measured."""

    every: Annotated[int, Field(ge=0)] = Field(
        default=50, description="steps between measurements, beside those at start and end; 0: only these"
    )


class SFTCheckpointConfig(Section):
    """What survives an interruption."""

    every: Annotated[int, Field(ge=0)] = Field(
        default=100, description="steps between checkpoints; 0: only at the end or a signal"
    )
    keep: Annotated[int, Field(ge=0)] = Field(default=2, description="checkpoints kept; 0: all")


class SFTConfig(Section):
    """Everything that decides the result of a supervised run. The defaults are those of Vision-SR1's cold start
    (arXiv 2508.19652): every weight but the vision tower's and projector's, lr 1e-5, cosine, warm-up 0.1, 3 epochs."""

    recipe: Literal["sft"] = Field(default="sft", description="what kind of run this is")
    preset: Literal["cold-start"] = Field(default="cold-start", description="the settings that it started from")
    seed: Seed = Field(default=0, description="every random draw derives from it")
    epochs: Positive = Field(default=3.0, description="passes over the rows")
    steps: Annotated[int, Field(ge=0)] = Field(default=0, description="updates; 0: as many as the epochs have")
    threads: Annotated[int, Field(ge=0)] = Field(default=0, description="CPU threads; 0: torch's choice")
    trackers: Annotated[Names, AfterValidator(_known_trackers)] = Field(
        default=("auto",),
        description="tensorboard, trackio, wandb or none, beside metrics.jsonl; auto: trackio where it is installed",
    )
    frozen: Names = Field(
        default=VISION,
        description="parts of the model, by a name in their parameters' names, that are not trained; the default "
        "names the vision tower and its projector; []: none",
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="the model that learns")
    data: SFTDataConfig = Field(default_factory=SFTDataConfig, description="the conversations")
    learner: SFTLearnerConfig = Field(default_factory=SFTLearnerConfig, description="the update")
    evaluation: SFTEvaluationConfig = Field(default_factory=SFTEvaluationConfig, description="held-out rows")
    checkpoint: SFTCheckpointConfig = Field(default_factory=SFTCheckpointConfig, description="checkpoints")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="several processes")
    export: ExportConfig = Field(default_factory=ExportConfig, description="the trained model's folder")

    @field_validator("model")
    @classmethod
    def _there_is_no_reference(cls, model: ModelConfig) -> ModelConfig:
        if model.reference is not None:
            raise ValueError("reference is for self-play: supervised fine-tuning has no KL to a frozen model")
        return model

    def to_yaml(self) -> str:
        """Every setting, resolved, in the order of this page."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
