"""A sampler that replies by a script, at the `Sampler` protocol's boundary; an optimiser that records.

Texts become ids letter by letter, so that a test writes games as text and trains on the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sparring.roles import Role
from sparring.sampling.seeds import generator
from sparring.types import ModelName, Prompt, Turn

VOCAB = 97
STOP = 2


def ids_of(text: str) -> tuple[int, ...]:
    """One id a character, in [5, 97)."""
    return tuple(5 + ord(letter) % (VOCAB - 5) for letter in text)


class ScriptedSampler:
    """Replies from lists, one a role (the reference's: "challenger/reference"), taken in order."""

    def __init__(self, replies: Mapping[str, Iterable[str]], *, step: int = 1, seed: int = 0) -> None:
        self.step, self.seed = step, seed
        self._replies = {name: iter(texts) for name, texts in replies.items()}
        self.asked: list[tuple[str, int, ModelName]] = []

    def sample(self, role: Role, prompts: Sequence[Prompt], n: int = 1, model: ModelName = "policy") -> list[Turn]:
        """The next len(prompts) * n replies of the role's list."""
        self.asked.append((role.name, len(prompts) * n, model))
        replies = self._replies[role.name if model == "policy" else f"{role.name}/{model}"] if prompts else iter(())
        return [turn_of(role, prompt, next(replies), model) for prompt in prompts for _ in range(n)]

    def rng(self, purpose: str) -> np.random.Generator:
        """As the local sampler's."""
        return generator(self.seed, self.step, f"game/{purpose}")


def turn_of(role: Role, prompt: Prompt, text: str, model: ModelName = "policy") -> Turn:
    """A turn with this text; its ids end with the stop id."""
    ids = (*ids_of(text), STOP)
    prompt_ids = (1, *ids_of(str(prompt.messages[-1]["content"])))
    logprobs = np.full(len(ids), -1.0, dtype=np.float32)
    return Turn(role, prompt, prompt_ids, ids, logprobs, text, "stop", model, prompt.info)


def tiny_llama(seed: int, *, kv_heads: int = 4) -> PreTrainedModel:
    """Two layers, 97 tokens, weights large enough that predictions differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=STOP,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def nudged(model: PreTrainedModel, size: float, seed: int = 1) -> PreTrainedModel:
    """The same model, a little further: a policy that has left its reference."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * size)
    return model


class Recorder(torch.optim.Optimizer):
    """Keeps each step's gradients and leaves the parameters alone."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(list(parameters), {"lr": 1.0})
        self.steps: list[list[Tensor]] = []

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keep copies of the gradients."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.steps.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])


def relative_error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """‖got − want‖ / ‖want‖ over all tensors together."""
    a, b = (torch.cat([tensor.detach().double().flatten() for tensor in tensors]) for tensors in (got, want))
    return float((a - b).norm() / b.norm())
