"""Settings of the model that plays."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparring.settings.base import Count, Positive, Section, known_device, listed


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
        return listed(value)


class VisionConfig(Section):
    """How a vision model's images are prepared, and which of its parts are trained. Text models ignore it.

    Under an adapter only the language model's adapter is trained.
    """

    min_pixels: Count | None = Field(
        default=None, description="an image is resized to at least this many pixels; null: as the model's files have it"
    )
    max_pixels: Count | None = Field(
        default=None, description="and to at most this many; null: as the model's files have it"
    )
    train_tower: bool = Field(default=True, description="train the vision tower (tuning: full)")
    train_projector: bool = Field(default=True, description="train what turns its output into tokens (tuning: full)")


class ModelConfig(Section):
    """The model that plays."""

    path: str = Field(
        default="arena",
        description="model folder, run folder or hub id; 'arena' and 'pictures' are tiny models that are shipped",
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
    vision: VisionConfig = Field(default_factory=VisionConfig, description="of a model that sees")
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
        return known_device(name)

    @model_validator(mode="after")
    def _code_is_asked_for_by_name(self) -> Self:
        if self.remote_code is not None and self.remote_code != self.path:
            raise ValueError(
                f"remote_code names {self.remote_code!r}, but the model is {self.path!r}: code is run for the model "
                "that is named, and no other"
            )
        return self
