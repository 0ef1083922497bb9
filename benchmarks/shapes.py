"""Random models at real layer shapes, batches for them, the FLOPs of an update, and what a device can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from common import Clock
from sides import Turn
from sparring.batching import Example
from sparring.lm.lora import LoraSettings, add_lora
from sparring.lm.probe import cast_parameters

RANK, ALPHA = 32, 32


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int = 128_256

    @property
    def projections(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's seven matrices."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden)]
        return attention + 2 * [(self.hidden, self.intermediate)] + [(self.intermediate, self.hidden)]

    @property
    def body(self) -> int:
        """Parameters of all layers' matrices."""
        return self.layers * sum(a * b for a, b in self.projections)

    @property
    def adapters(self) -> int:
        """Parameters of all layers' adapters."""
        return self.layers * RANK * sum(a + b for a, b in self.projections)


SHAPES = {
    "1b": Shape(2048, 8192, 32, 8, 64, 16),
    "3b": Shape(3072, 8192, 24, 8, 128, 28),
    "tiny": Shape(64, 128, 4, 2, 16, 2, 512),
}


@dataclass(frozen=True)
class Case:
    """One measurement: model, batch (queries × answers, tokens of a prompt and of an answer), how it is trained."""

    name: str
    shape: Shape
    device: str
    dtype: str
    tuning: str
    checkpointing: bool
    queries: int
    answers: int
    prompt: int
    tokens: int
    token_budget: int

    @property
    def batch_tokens(self) -> int:
        """The batch's own tokens: each prompt once."""
        return self.queries * (self.prompt + self.answers * self.tokens)

    def forward_flops(self) -> tuple[int, int, int]:
        """Of one forward pass's matrix products: layers, head, attention."""
        s, rows = self.shape, self.queries * self.answers
        keys = self.queries * self.prompt * (self.prompt + 1) // 2
        keys += rows * ((self.tokens - 1) * self.prompt + (self.tokens - 1) * self.tokens // 2)
        head = 2 * s.vocab * s.hidden * rows * self.tokens
        return 2 * s.body * self._inputs, head, 4 * s.layers * s.heads * s.head_dim * keys

    def update_flops(self) -> int:
        """Of the matrix products that one update needs."""
        body, head, attention = self.forward_flops()
        if self.tuning == "full":
            return 4 * (body + head + attention)
        return 3 * (body + head) + 4 * attention + 3 * 2 * self.shape.adapters * self._inputs

    @property
    def _inputs(self) -> int:
        """Tokens that go through the layers: an answer's last one is only predicted."""
        return self.queries * (self.prompt + self.answers * (self.tokens - 1))


def make_model(case: Case, dtype: torch.dtype) -> LlamaForCausalLM:
    """A random model on the case's device, the same in every process."""
    s = case.shape
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        intermediate_size=s.intermediate,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.device(case.device):
        model = LlamaForCausalLM(config)
    cast_parameters(model, dtype)
    return model.eval()


def make_trained(case: Case) -> LlamaForCausalLM:
    """Masters of every weight in fp32, or a frozen model in compute precision with adapters."""
    dtype = getattr(torch, case.dtype)
    model = make_model(case, torch.float32 if case.tuning == "full" else dtype)
    if case.tuning == "lora":
        add_lora(model, LoraSettings(RANK, ALPHA), seed=0)
    return model


def make_examples(case: Case) -> list[Example]:
    """Random prompts, answers and advantages (centred by query); every token weighs the same."""
    rng = np.random.default_rng(0)
    weight = 1 / (case.queries * case.answers * case.tokens)
    examples = []
    for _ in range(case.queries):
        prompt = tuple(rng.integers(0, case.shape.vocab, case.prompt).tolist())
        advantages = rng.normal(size=case.answers)
        for advantage in advantages - advantages.mean():
            ids = tuple(rng.integers(0, case.shape.vocab, case.tokens).tolist())
            examples.append(Example(prompt, ids, float(advantage), weight, np.zeros(case.tokens, np.float32), "solver"))
    return examples


def make_clock(device: str) -> Clock:
    """CPU time; with a GPU the wall's, once the device has finished what it was given."""
    clock = Clock(cpu=device == "cpu")
    if device != "cpu":
        wall = clock.now

        def now() -> float:
            torch.cuda.synchronize()
            return wall()

        clock.now = now
    return clock


def device_side(turn: Turn, device: str) -> None:
    """FLOP/s of a large square bf16 matrix product, bytes/s of a large copy (read and written): the best of ten."""
    clock, size = make_clock(device), 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    data = torch.ones(2**26 if device == "cpu" else 2**30, device=device)
    copy = torch.ones_like(data)

    def seconds(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(13):
            start = clock.now()
            run()
            times.append(clock.now() - start)
        return min(times[3:])

    while turn.begin():
        name = "cpu" if device == "cpu" else torch.cuda.get_device_name()
        matrix, copied = 2 * size**3 / seconds(lambda: a @ b), 2 * data.nbytes / seconds(lambda: copy.copy_(data))
        turn.end({"seconds": {}, "name": name, "matrix": matrix, "copy": copied})
