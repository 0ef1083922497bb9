"""What an engine asks of a language model: write completions, and score them.

Two implementations share this page: `lm.llama.FastLlama` (Llama and Qwen family) and
`lm.generic.GenericLM` (any transformers causal LM). Both speak token ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn.

    temperature 0 is greedy. top_p 1 and top_k 0 switch those filters off. `stop_ids` end a
    completion; `banned_ids` are never drawn (image placeholders, padding).
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_ids: tuple[int, ...] = ()
    banned_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, not {self.top_k}")


@dataclass(frozen=True, eq=False)
class Completion:
    """One sampled continuation.

    `ids` holds the stop token where finish is "stop". `logprobs` [T] float32 are natural
    logarithms under the model at the sampling temperature over the whole vocabulary (before
    top-p, top-k or bans; for greedy decoding at temperature 1), so they can be compared with `score`.
    """

    ids: tuple[int, ...]
    logprobs: np.ndarray
    finish: Finish

    def __post_init__(self) -> None:
        if not np.isfinite(self.logprobs).all():
            raise FloatingPointError("the model's log-probabilities are NaN or infinite: its weights are broken")


@dataclass(frozen=True)
class PromptGroup:
    """Completions that continue one and the same prompt: the prompt is computed once."""

    prompt_ids: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]

    @property
    def scored_tokens(self) -> int:
        """Completion tokens in all: each is one scored position."""
        return sum(len(ids) for ids in self.completions)


@dataclass(frozen=True)
class Scores:
    """Per scored position S, ordered by group, then completion, then token; all float32.

    logprobs_S: log π(token | context) at the given temperature, with gradient where enabled.
    kl_S: exact KL(π ‖ π_ref) over the vocabulary (only with a reference), with gradient.
    entropy_S: entropy of π in nats, never with gradient (only where asked for).
    """

    logprobs_S: Tensor
    kl_S: Tensor | None = None
    entropy_S: Tensor | None = None


class LanguageModel(Protocol):
    """One causal LM in compute precision, with the passes that self-play needs.

    A trainable one holds compute copies of a transformers model's fp32 parameters (the masters):
    after each backward pass `collect_gradients` adds the copies' gradients to the masters' `.grad` in
    fp32 and clears them; after each optimiser step `refresh` copies the masters in again.
    `shares_prompts`: whether `score` computes a group's prompt once, or again for every completion.
    """

    shares_prompts: bool

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        uniforms: np.ndarray,
    ) -> list[list[Completion]]:
        """n completions of every prompt.

        uniforms [len(prompts) * n, max_new_tokens] float32 in [0, 1): row p * n + j drives completion
        j of prompt p by the inverse CDF, so a completion never depends on its batch neighbours'
        draws. Unused (may be empty) when greedy.
        """
        ...

    def score(
        self,
        groups: Sequence[PromptGroup],
        *,
        temperature: float = 1.0,
        reference: LanguageModel | None = None,
        entropy: bool = False,
    ) -> Scores:
        """Log-probabilities of every completion token; gradients follow torch's grad mode."""
        ...

    def refresh(self) -> None:
        """Copy the masters into the compute copies."""
        ...

    def collect_gradients(self) -> None:
        """Add the compute copies' gradients to the masters' and clear them."""
        ...
