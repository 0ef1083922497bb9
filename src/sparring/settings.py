"""The settings of a run, each with its meaning and unit: one pydantic tree, `RunConfig` at its root."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sparring.tracking import require_known

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]

# The device types are torch's; named here so that a setting is checked without importing it.
DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu|hpu|npu|mtia|xla)(:\d+)?")


def _device(name: str) -> str:
    if not DEVICE.fullmatch(name):
        raise ValueError(f"there is no torch device {name!r}; it reads auto, cpu, cuda, cuda:1, mps or xpu")
    return name


def _listed(value: Any) -> Any:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class LoraConfig(Section):
    """The adapter trained under tuning lora and qlora. It has no dropout: sampler and learner must be one policy."""

    rank: Count = Field(default=32, description="rank of each low-rank pair")
    alpha: Positive = Field(default=32.0, description="the pair's product is multiplied by alpha / rank")
    targets: tuple[str, ...] = Field(
        default=(), description="endings of the linear layers that get a pair (q_proj, ...); empty: all but the head"
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_target_needs_no_list(cls, value: Any) -> Any:
        return _listed(value)


class ModelConfig(Section):
    """The model that plays."""

    path: str = Field(
        default="arena", description="model folder, run folder or hub id; 'arena' is the tiny model shipped"
    )
    reference: str | None = Field(default=None, description="frozen reference; empty: the model as it is at the start")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="compute precision; masters stay float32; auto: bfloat16 where the hardware has it",
    )
    device: str = Field(default="auto", description="torch device; auto: cuda where there is one, else cpu")
    tuning: Literal["full", "lora", "qlora"] = Field(
        default="full",
        description="what is trained: every weight, or a low-rank adapter on the frozen model, in compute precision "
        "(lora) or 4 bits (qlora); under both the frozen start is the model with the adapter off",
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description="the adapter")
    gradient_checkpointing: bool = Field(
        default=False, description="compute each layer again in the backward pass: less memory, about a third slower"
    )
    attention: str = Field(
        default="sdpa",
        description="transformers' attention implementation (flash_attention_2 where installed), on the generic path",
    )
    engine: Literal["auto", "generic"] = Field(
        default="auto",
        description="auto: the fast path for the Llama and Qwen family; generic: transformers' own forward",
    )
    chat_template: str | None = Field(
        default=None, description="file with a chat template, where the tokenizer has none"
    )
    template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="passed to the chat template (enable_thinking: false, say)"
    )
    revision: str | None = Field(default=None, description="hub revision")
    remote_code: str | None = Field(
        default=None,
        description="path again, to run the Python code that this model brings; null: such a model is refused",
    )
    cache_tokens: Count = Field(
        default=262_144,
        description="most tokens (prompts and completions) whose key/value cache is held at once while sampling; "
        "lower: less memory",
    )

    @field_validator("device")
    @classmethod
    def _device_has_a_form(cls, name: str) -> str:
        return _device(name)

    @model_validator(mode="after")
    def _code_is_asked_for_by_name(self) -> Self:
        if self.remote_code is not None and self.remote_code != self.path:
            raise ValueError(
                f"remote_code names {self.remote_code!r}, but the model is {self.path!r}: code is run for the model "
                "that is named, and no other"
            )
        return self


class RoleConfig(Section):
    """How one role speaks."""

    prompt: str | None = Field(default=None, description="file with the role's prompt (Jinja); empty: the domain's own")
    system: str | None = Field(default=None, description="system message before the prompt; empty: none")
    max_new_tokens: Count = Field(default=256, description="longest completion, tokens")
    temperature: NotNegative = Field(default=1.0, description="sampling temperature; 0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="nucleus share; 1 is off")
    top_k: Annotated[int, Field(ge=0)] = Field(default=0, description="tokens kept by rank; 0 is off")


class ChallengeConfig(Section):
    """What the Challenger is asked for and paid."""

    payoff: Literal["adversarial", "frontier"] = Field(
        default="adversarial",
        description="for V(q): adversarial is the paper's -V; frontier is highest at `frontier_target`",
    )
    frontier_target: Share = Field(default=0.5, description="share solved that the frontier payoff likes best")
    invalid_payoff: float | None = Field(
        default=None, description="payoff of a query that can't be read (never answered); null: the worst valid one's"
    )
    frozen_share: Share = Field(default=0.0, description="share of the queries drawn from the frozen Challenger")
    repetition_weight: NotNegative = Field(
        default=0.0, description="penalty of a query equal to all others of its batch"
    )
    repetition_measure: Literal["exact", "ngrams"] = Field(
        default="exact", description="how alike two queries are: equal or not, or by their word 3-grams"
    )
    repetition_archive: Annotated[int, Field(ge=0)] = Field(default=0, description="past queries the penalty remembers")
    compare_by_task: bool = Field(
        default=False, description="centre the Challenger's payoffs within a task, not the batch"
    )
    tasks: str | None = Field(default=None, description="YAML file of (task, template) pairs; empty: the domain's own")
    refuse_copies: bool | None = Field(
        default=None,
        description="a query that repeats another of its batch is invalid; null: the domain's (text yes, arena no)",
    )
    shortest: Count = Field(default=8, description="text domain: a shorter query is invalid, characters")
    longest: Count = Field(default=8000, description="text domain: a longer query is invalid, characters")


class RewardConfig(Section):
    """R(q, a): the domain's verifier, a function of yours, or a reward model, loaded here or served."""

    function: str | None = Field(
        default=None,
        description="package.module:function or file.py:function, ours or TRL's form; null: the domain's",
    )
    model: str | None = Field(
        default=None, description="sequence-classification reward model, folder or hub id; its chat template is used"
    )
    url: str | None = Field(
        default=None,
        description="vLLM server of that model (http://host:port); the model is then not loaded, only its tokenizer",
    )
    scale: Literal["raw", "sigmoid", "standardised"] = Field(
        default="raw",
        description="raw scores, 1/(1+e^-score), or minus mean over std of every score of the run so far",
    )
    revision: str | None = Field(default=None, description="hub revision of the reward model")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="the reward model's precision")
    device: str = Field(default="auto", description="the reward model's torch device; auto: model.device")
    token_budget: Annotated[int, Field(ge=0)] = Field(
        default=0, description="most padded tokens in one of its forward passes; 0: 4096 on a CPU, else 32768"
    )
    max_tokens: Count | None = Field(
        default=None, description="a longer conversation is not scored; null: the reward model's own bound"
    )
    timeout: Positive = Field(default=60.0, description="url: seconds a request may take")
    retries: Annotated[int, Field(ge=0)] = Field(
        default=5, description="url: times a failed request is tried again, with growing pauses"
    )

    @field_validator("device")
    @classmethod
    def _device_has_a_form(cls, name: str) -> str:
        return _device(name)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.function is not None and self.model is not None:
            raise ValueError("function and model are two sources of one reward: leave one of them null")
        if self.url is not None and self.model is None:
            raise ValueError("url needs model too: its tokenizer and chat template write what the server scores")
        if self.scale != "raw" and self.model is None:
            raise ValueError(f"scale is {self.scale}, which is for a reward model: give model, or leave it raw")
        return self


class QualityConfig(Section):
    """Where R_Q comes from (LSP only)."""

    source: Literal["reference", "program"] = Field(
        default="reference",
        description="reference: the frozen model grades, as in the paper; program: the domain's own rubric",
    )
    weight: NotNegative = Field(default=1.0, description="what R_Q is multiplied by against R")
    scale: Literal["points", "share"] = Field(
        default="points", description="R_Q's unit: points of the rubric (0 to 7, the paper's) or their share (0 to 1)"
    )
    criteria: Count = Field(
        default=7, description="text domain: yes-or-no criteria of the rubric in game.grader.prompt"
    )
    samples: Count = Field(default=1, description="grades averaged an exchange (with grader.temperature above 0)")


class GameConfig(Section):
    """The game that is played."""

    kind: Literal["lsp", "lsp_zero", "grpo", "custom"] = Field(default="lsp", description="which game")
    domain: Literal["arena", "text"] = Field(
        default="arena", description="arena: the toy language; text: natural language"
    )
    custom: str | None = Field(default=None, description="kind custom: package.module:function or file.py:function")
    options: dict[str, Any] = Field(default_factory=dict, description="kind custom: passed to that function")
    n_queries: Count = Field(default=8, description="N, queries a step")
    n_answers: Count = Field(default=8, description="G, answers a query")
    advantage: Literal["centred", "standardised"] = Field(
        default="centred",
        description="centred: minus the siblings' mean; standardised: also divided by their std (GRPO)",
    )
    alpha: NotNegative = Field(default=1.0, description="weight of the Challenger's loss")
    prompts: str | None = Field(
        default=None,
        description="kind grpo: prompt file (.jsonl, .json, .parquet), folder or hub id, or arena:easy, arena:hard",
    )
    prompt_split: str = Field(default="train", description="split of a hub data set")
    prompt_subset: str | None = Field(default=None, description="configuration of a hub data set")
    prompt_column: str | None = Field(
        default=None,
        description="column with the prompt; null: messages, prompt, instruction (and input), question ...",
    )
    prompt_revision: str | None = Field(default=None, description="revision of a hub data set")
    reward: RewardConfig = Field(default_factory=RewardConfig, description="R(q, a)")
    challenge: ChallengeConfig = Field(default_factory=ChallengeConfig, description="the Challenger's side")
    quality: QualityConfig = Field(default_factory=QualityConfig, description="R_Q (LSP only)")
    challenger: RoleConfig = Field(default_factory=RoleConfig, description="the Challenger's prompt and sampling")
    solver: RoleConfig = Field(default_factory=RoleConfig, description="the Solver's prompt and sampling")
    grader: RoleConfig = Field(
        default_factory=lambda: RoleConfig(temperature=0.0), description="the grader's prompt and sampling"
    )

    @model_validator(mode="after")
    def _grades_differ(self) -> Self:
        if self.quality.samples > 1 and self.grader.temperature == 0:
            raise ValueError(
                f"quality.samples = {self.quality.samples} does nothing with grader.temperature = 0, where every grade "
                "is the same: raise the temperature, or leave the samples at 1"
            )
        return self


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
        default=(), description="tensorboard, trackio, wandb; metrics.jsonl is always written"
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="the model that plays")
    game: GameConfig = Field(default_factory=GameConfig, description="the game")
    learner: LearnerConfig = Field(default_factory=LearnerConfig, description="the update")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="held-out evaluation")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="checkpoints and turns")
    export: ExportConfig = Field(default_factory=ExportConfig, description="the trained model's folder")

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_tracker_needs_no_list(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("trackers")
    @classmethod
    def _trackers_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            require_known(name)
        return names

    def to_yaml(self) -> str:
        """Every setting, resolved, in the order of this page."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
