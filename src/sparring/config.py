"""One typed description of a run: recipe function → YAML file → command-line overrides.

Every setting has its meaning and unit in its description; an unknown one is refused with the nearest name.
The resolved configuration, written to the run's folder, repeats the run.
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sparring.tracking import require_known

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]

# The device types are torch's; named here so that a setting is checked without importing it.
DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu|hpu|npu|mtia|xla)(:\d+)?")


class ConfigError(ValueError):
    """A setting is unknown or has a value it can't take."""


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


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
    attention: str = Field(default="sdpa", description="transformers' attention implementation, on the generic path")
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
    cache_tokens: Count = Field(
        default=262_144,
        description="most tokens (prompts and completions) whose key/value cache is held at once while sampling; "
        "lower: less memory",
    )

    @field_validator("device")
    @classmethod
    def _device_has_a_form(cls, name: str) -> str:
        if not DEVICE.fullmatch(name):
            raise ValueError(f"there is no torch device {name!r}; it reads auto, cpu, cuda, cuda:1, mps or xpu")
        return name


class RoleConfig(Section):
    """How one role speaks."""

    prompt: str | None = Field(default=None, description="file with the role's prompt (Jinja); empty: the domain's own")
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
    repetition_archive: Annotated[int, Field(ge=0)] = Field(default=0, description="past queries the penalty remembers")
    compare_by_task: bool = Field(
        default=False, description="centre the Challenger's payoffs within a task, not the batch"
    )
    tasks: str | None = Field(default=None, description="YAML file of (task, template) pairs; empty: the domain's own")


class QualityConfig(Section):
    """Where R_Q comes from (LSP only)."""

    source: Literal["reference", "program"] = Field(
        default="reference",
        description="reference: the frozen model grades, as in the paper; program: the domain's own rubric",
    )
    weight: NotNegative = Field(default=1.0, description="what R_Q is multiplied by against R")
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
        description="kind grpo: prompt file (.jsonl, .json, .parquet), or arena:easy, arena:hard",
    )
    reward: str | None = Field(
        default=None,
        description="package.module:function or file.py:function, ours or TRL's form; null: the domain's",
    )
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

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_tracker_needs_no_list(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _trackers_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            require_known(name)
        return names

    def to_yaml(self) -> str:
        """Every setting, resolved, in the order of this page."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def resolve(start: RunConfig, file: Path | None = None, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Recipe's configuration, then a YAML file's settings, then `key.key=value` overrides.

    Raises:
        ConfigError: an unknown setting (with the nearest known one), a value out of its range, an unreadable
            file.
    """
    settings = start.model_dump(mode="json")
    if file is not None:
        _merge(settings, read_yaml(file), str(file))
    for override in overrides:
        _merge(settings, _parse_override(override), "command line")
    return validated(settings)


def validated(settings: dict[str, Any]) -> RunConfig:
    """A RunConfig from plain data.

    Raises:
        ConfigError: in place of pydantic's own error, one line a problem, each naming its setting.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(item) for item in error.errors())) from error


def describe(model: type[Section] = RunConfig, prefix: str = "") -> list[tuple[str, str, str]]:
    """Every setting as (dotted name, default, meaning), in order."""
    rows = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            rows += describe(inner, f"{prefix}{name}.")
        else:
            default = info.get_default(call_default_factory=True)  # pyright: ignore[reportCallIssue]
            rows.append((prefix + name, _shown(default), info.description or ""))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a YAML file, not yet checked.

    Raises:
        ConfigError: unreadable, not YAML, or no mapping.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read the configuration {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration {file} is no UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold settings (name: value), not a {type(data).__name__}")
    return data


def _parse_override(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"an override reads setting=value (learner.lr=1e-5), not {text!r}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {name} is not YAML: {error}") from error
    if _takes_text(name.strip()):
        # A revision such as 1234567 or 12e4567 is a text, whatever YAML sees in it.
        parsed = parsed if parsed is None or isinstance(parsed, str) else value.strip()
    elif isinstance(parsed, str):
        # YAML 1.1 reads 1e-5 as text: a number without a dot.
        with suppress(ValueError):
            parsed = float(parsed)
    return _nested(name.strip(), parsed)


def _nested(name: str, value: Any) -> dict[str, Any]:
    """`a.b` and v → {a: {b: v}}."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def _takes_text(name: str) -> bool:
    """Whether a setting is a text (or a text or null)."""
    section: Any = RunConfig
    *groups, leaf = name.split(".")
    for group in groups:
        field = section.model_fields.get(group)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, Section)):
            return False
    field = section.model_fields.get(leaf)
    return field is not None and field.annotation in (str, str | None)


def _merge(into: dict[str, Any], new: dict[str, Any], source: str, prefix: str = "") -> None:
    free = {"game.options", "model.template_kwargs"}
    for key, value in new.items():
        name = f"{prefix}{key}"
        if key not in into and prefix.rstrip(".") not in free:
            if isinstance(key, str) and "." in key:  # learner.lr: 1e-5 in a file
                _merge(into, _nested(key, value), source, prefix)
                continue
            raise ConfigError(f"{source}: there is no setting {name!r}{_nearest(name)}")
        if isinstance(into.get(key), dict) and isinstance(value, dict):
            _merge(into[key], value, source, f"{name}.")
        elif isinstance(into.get(key), dict) and name not in free:
            raise ConfigError(f"{source}: {name} is a group of settings: give {name}.<setting>")
        else:
            into[key] = value


def _nearest(name: str) -> str:
    known = [row[0] for row in describe()]
    leaf = name.rpartition(".")[2]
    by_leaf = [row for row in known if row.rpartition(".")[2] == leaf]
    near = by_leaf or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        leaves = {row.rpartition(".")[2]: row for row in known}
        near = [leaves[m] for m in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)]
    return f"; did you mean {near[0]!r}?" if near else "; `sparring recipes --settings` lists them"


def _problem(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"there is no setting {name!r}{_nearest(name)}"
    if item["type"] == "value_error":
        return f"{name}: {item['ctx']['error']}"
    given = item.get("input")
    return f"{name}: {item['msg']} (given: {given!r})"
