"""Settings of a run: the update, evaluation, what survives, engines; `RunConfig` is the whole."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from sparring.settings.base import Count, Decay, NotNegative, Positive, Section, Seed, listed
from sparring.settings.game import GameConfig
from sparring.settings.health import HealthConfig
from sparring.settings.model import ModelConfig
from sparring.tracking import require_known


class LearnerConfig(Section):
    """How the model learns from a step."""

    lr: Positive = Field(default=3e-6, description="peak learning rate (AdamW)")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="after warm-up; linear, cosine: to 0"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(default=0, description="steps of linear warm-up")
    adam_beta1: Decay = Field(default=0.9, description="AdamW's first moment")
    adam_beta2: Decay = Field(default=0.999, description="AdamW's second moment")
    weight_decay: NotNegative = Field(default=0.0, description="AdamW's decoupled weight decay")
    max_grad_norm: Positive | None = Field(
        default=1.0, description="gradients are scaled down to this norm; null: never"
    )
    beta: NotNegative = Field(default=0.05, description="weight of the KL to the frozen start")
    kl: Literal["exact", "k1", "k2", "k3"] = Field(
        default="k3",
        description="exact: in the loss, whole vocabulary; k2, k3: in the loss, sampled; k1: in the reward",
    )
    aggregation: Literal["sum", "grpo", "dapo", "dr_grpo"] = Field(
        default="sum",
        description="sum: tokens summed, sequences averaged (the paper); the others are TRL's loss types",
    )
    skip_dead_groups: bool = Field(
        default=False, description="leave turns with advantage 0 out of the update (they carry only the KL)"
    )
    minibatches: Count = Field(default=1, description="optimiser steps a pass over a batch")
    epochs: Count = Field(default=1, description="passes over a batch")
    clip_low: NotNegative | None = Field(default=None, description="ratio is clipped at 1 - clip_low; null: never")
    clip_high: NotNegative | None = Field(default=None, description="ratio is clipped at 1 + clip_high; null: never")
    token_budget: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="most padded tokens in one forward pass; lower: less memory; 0: 4096 on a CPU, else 16384",
    )
    log_entropy: bool = Field(default=True, description="measure the policy's entropy each step")

    @model_validator(mode="after")
    def _clipping_has_a_ratio(self) -> Self:
        given = [name for name in ("clip_low", "clip_high") if getattr(self, name) is not None]
        if given and self.minibatches == self.epochs == 1:
            raise ValueError(
                f"{' and '.join(given)} does nothing with minibatches = epochs = 1, where the ratio is always 1: "
                "raise one of these, or leave it null"
            )
        return self


class EvaluationConfig(Section):
    """How the trained model is compared with its start."""

    every: Annotated[int, Field(ge=0)] = Field(
        default=0, description="steps between held-out evaluations while training; 0: none"
    )
    n: Count = Field(default=200, description="held-out queries a split while training")
    final_n: Count = Field(default=1000, description="held-out queries a split at the end")
    seed: Seed = Field(default=2, description="seed of the final test set; the one while training is another")
    temperature: NotNegative = Field(default=0.0, description="sampling temperature of evaluated answers")


class CheckpointConfig(Section):
    """What survives an interruption."""

    every: Annotated[int, Field(ge=0)] = Field(
        default=50, description="steps between checkpoints; 0: only at the end or a signal"
    )
    keep: Annotated[int, Field(ge=0)] = Field(default=2, description="checkpoints kept; 0: all")
    turns_every: Annotated[int, Field(ge=0)] = Field(
        default=1, description="steps between saved turns (Parquet); 0: none"
    )


class ExportConfig(Section):
    """What the run's model folder holds at the end."""

    adapter: Literal["merged", "kept"] = Field(
        default="merged", description="tuning lora, qlora: a whole model, or the adapter alone (PEFT's format)"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="precision of a whole model's weights; float32 loses nothing of a small update"
    )


def _addresses(value: Any) -> Any:
    """None, one, several with commas between, or a list; without what a trailing comma leaves."""
    given = [] if value is None else listed(value)
    return [url for url in given if url] if isinstance(given, list) else given


Addresses = Annotated[tuple[str, ...], BeforeValidator(_addresses)]


class RolloutConfig(Section):
    """Who writes the completions, and how the trainer's weights get there."""

    engine: Literal["local", "vllm"] = Field(
        default="local", description="local: the trainer's own process and weights; vllm: a server, or in this process"
    )
    url: Addresses = Field(
        default=(),
        description="vLLM servers of the policy: http://host:port, with commas between; []: vLLM in this process",
    )
    reference_url: Addresses = Field(
        default=(),
        description="tuning full: vLLM servers of the frozen start; []: the trainer's frozen copy writes for it",
    )
    weights: Literal["folder", "nccl"] = Field(
        default="folder",
        description="tuning full: new weights by a folder that trainer and server see, or from GPU to GPU by NCCL",
    )
    folder: str | None = Field(
        default=None, description="that folder, and the adapter's (a RAM disk is fastest); null: `rollout` in the run's"
    )
    nccl_address: str = Field(default="127.0.0.1", description="weights nccl: the trainer, as the server reaches it")
    nccl_port: Count = Field(
        default=29_600, description="weights nccl: a free port there (and the next ones, one a server)"
    )
    gap_limit: Positive = Field(
        default=0.1,
        description="nats a token by which sampler and trainer may differ after an update; above, the run stops",
    )
    importance_cap: Positive | None = Field(
        default=2.0,
        description="tokens count by min(cap, trainer's probability over sampler's); null: all alike",
    )
    overlap: bool = Field(
        default=False,
        description="write the next batch while the update runs: its weights are one update old (importance_cap "
        "corrects for it); a resumed run is then not the same to the bit",
    )
    memory: Positive = Field(
        default=4.0, description="in this process, or on a CPU: GiB of vLLM's cache of keys and values"
    )
    timeout: Positive = Field(
        default=3600.0, description="seconds that all completions of a call, or an update, may take"
    )
    silence: Positive = Field(default=60.0, description="seconds within which a busy server must give a sign of life")
    patience: Positive = Field(default=60.0, description="seconds in which a server that can't be reached must be back")
    concurrency: Count = Field(default=256, description="requests under way at once, one a prompt")
    retries: Annotated[int, Field(ge=0)] = Field(default=3, description="times a lost request is made again")

    @model_validator(mode="after")
    def _vllm_is_asked_for(self) -> Self:
        if self.engine == "local":
            given = [name for name in ("url", "reference_url") if getattr(self, name)]
            if given or self.overlap:
                raise ValueError(f"{(given or ['overlap'])[0]} is for vLLM: set rollout.engine=vllm")
        if self.overlap and not self.url:
            raise ValueError("overlap needs a server (rollout.url): in one process writing and learning take turns")
        every = [*self.url, *self.reference_url]
        if twice := {url for url in every if every.count(url) > 1}:
            raise ValueError(
                f"{', '.join(sorted(twice))} is named twice in url and reference_url: each is one server's"
            )
        return self


class ParallelConfig(Section):
    """Several processes (torchrun); a single one needs none of it."""

    strategy: Literal["auto", "replicate", "shard"] = Field(
        default="auto",
        description="replicate: every rank holds the model; shard: FSDP2; auto: replicate an adapter, shard the rest",
    )
    timeout: Positive = Field(
        default=1800.0, description="seconds after which ranks give up on one that does not answer"
    )


class RunConfig(Section):
    """Everything that decides a run's result."""

    recipe: str = Field(default="lsp", description="the recipe that this configuration started from")
    preset: str = Field(default="default", description="the recipe's preset")
    seed: Seed = Field(default=0, description="every random draw derives from it")
    steps: Count = Field(default=100, description="steps of self-play")
    time_limit: NotNegative = Field(
        default=0.0, description="seconds after which the run ends early, as if complete; 0: none"
    )
    threads: Annotated[int, Field(ge=0)] = Field(default=0, description="CPU threads; 0: torch's choice")
    trackers: tuple[str, ...] = Field(
        default=("auto",),
        description="tensorboard, trackio, wandb or none, beside metrics.jsonl; auto: trackio where it is installed",
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="the model that plays")
    game: GameConfig = Field(default_factory=GameConfig, description="the game")
    learner: LearnerConfig = Field(default_factory=LearnerConfig, description="the update")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="held-out evaluation")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="checkpoints and turns")
    health: HealthConfig = Field(default_factory=HealthConfig, description="what is watched, and what an alarm does")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="who writes the completions")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="several processes")
    export: ExportConfig = Field(default_factory=ExportConfig, description="the trained model's folder")

    @model_validator(mode="after")
    def _a_roll_back_can_be_made(self) -> Self:
        if self.health.on_alarm == "roll_back":
            challenged = self.game.kind != "grpo" and self.game.alpha > 0
            if self.learner.beta == 0 and not (challenged and self.health.alpha_factor < 1):
                raise ValueError(
                    "health.on_alarm=roll_back would change nothing: learner.beta is 0, and health.alpha_factor lowers "
                    "a Challenger's weight only (game.alpha above 0, factor below 1)"
                )
            if not self.checkpoint.every:
                raise ValueError("health.on_alarm=roll_back needs checkpoints to go back to: checkpoint.every above 0")
        return self

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_tracker_needs_no_list(cls, value: Any) -> Any:
        return listed(value)

    @field_validator("trackers")
    @classmethod
    def _trackers_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            require_known(name)
        return names

    @model_validator(mode="after")
    def _an_adapter_lies_over_the_frozen_start(self) -> Self:
        adapted = self.rollout.engine == "vllm" and self.model.tuning != "full"
        given = {"rollout.reference_url": self.rollout.reference_url, "model.reference": self.model.reference}
        if adapted and (named := [name for name, value in given.items() if value]):
            raise ValueError(f"with an adapter vLLM's base is the frozen start: leave {named[0]} unset")
        return self

    def to_yaml(self) -> str:
        """Every setting, resolved, in the order of this page."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
