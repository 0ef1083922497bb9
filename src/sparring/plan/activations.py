"""What a forward and a backward pass hold, tensor by tensor as the two engines write them. All in bytes.

Symbols: T tokens of a pass, D hidden, F feed-forward, q and k the widths of all query and all key heads, c bytes of a
number in compute precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sparring.batching import MicroBatch
from sparring.lm.llama_score import KEPT_WEIGHTS
from sparring.plan.model import Linear
from sparring.plan.setup import Setup

INDEX = 8  # bytes of an index
WIDE = 4  # bytes of a float32
FUSED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}  # on the fast path: one matrix with that one


@dataclass(frozen=True)
class Pass:
    """The lengths of one forward pass.

    groups of prompts of at most `prompt` tokens with at most `answers` of at most `answer` tokens each; tokens computed
    (packed on the fast path, padded on the generic one); scored positions.
    """

    groups: int
    prompt: int
    answers: int
    answer: int
    tokens: int
    scored: int

    @property
    def slots(self) -> int:
        """Tokens of the rectangle that attention is laid out in."""
        return self.groups * (self.prompt + self.answers * self.answer)

    @property
    def prompt_pairs(self) -> int:
        """Pairs of a token and one that it may look at, both in a prompt, a head."""
        return self.groups * self.prompt**2

    @property
    def answer_pairs(self) -> int:
        """The same for tokens of answers."""
        return self.groups * self.answers * self.answer * (self.prompt + self.answer)


def scoring_pass(batch: MicroBatch, *, shared_prompts: bool) -> Pass:
    """A micro-batch as an engine computes it: an answer's last token is never fed."""
    prompt = max(len(group.prompt_ids) for group in batch.groups)
    lengths = [[len(ids) for ids in group.completions] for group in batch.groups]
    longest = max(map(max, lengths)) - 1
    scored = sum(map(sum, lengths))
    if not shared_prompts:
        rows = sum(map(len, lengths))
        return Pass(rows, prompt, 1, longest, rows * (prompt + longest), scored)
    tokens = sum(len(group.prompt_ids) for group in batch.groups) + scored - sum(map(len, lengths))
    return Pass(len(batch.groups), prompt, max(map(len, lengths)) if longest else 0, longest, tokens, scored)


def prompts_pass(prompts: int, length: int) -> Pass:
    """Prompts alone, as generation begins."""
    return Pass(prompts, length, 0, 0, prompts * length, prompts)


class Engine(Protocol):
    """One of the two engines, as far as memory goes. Where weights are 4-bit, `forward` and `backward` hold one matrix
    in compute precision as well."""

    def kept(self, setup: Setup, batch: Pass) -> int:
        """What one layer keeps for its backward pass."""
        ...

    def forward(self, setup: Setup, batch: Pass) -> int:
        """The most that a pass without gradient holds inside one layer."""
        ...

    def backward(self, setup: Setup, batch: Pass) -> int:
        """The most that one layer's backward pass holds beyond what the layer keeps."""
        ...

    def indices(self, setup: Setup, batch: Pass) -> int:
        """What a pass holds throughout beside its layers' tensors."""
        ...


class Fast:
    """`lm.llama_score`: packed tokens, fused projections, attention over a rectangle of groups.

    Kept a layer: two norms' input and output 4 D T, attention's rows (q + 2 k) · slots and output q T, the gated MLP's
    4 F T, all · c; and the attention weights where all layers' are at most KEPT_WEIGHTS. Heads that are normed (Qwen3)
    keep what goes into that. Under adapters each keeps its inner product, and a matrix without one no input.
    """

    def kept(self, setup: Setup, batch: Pass) -> int:
        """See Engine."""
        m, t = setup.policy, batch.tokens
        numbers = 2 * m.hidden + m.qkv_width * batch.slots / t + 3 * m.feed_forward
        # A frozen matrix needs its input only where an adapter sits on it.
        seen = {"q_proj": m.hidden, "o_proj": m.query_width, "gate_proj": m.hidden, "down_proj": m.feed_forward}
        adapted = {linear.name.rpartition(".")[2] for linear in setup.adapted} or set(seen)
        adapted = {FUSED.get(name, name) for name in adapted}
        numbers += sum(width for name, width in seen.items() if name in adapted)
        numbers += setup.rank * len(setup.adapted) / m.layers
        if m.head_normed:
            numbers += m.query_width + m.key_width if setup.device == "cpu" else m.qkv_width
        total = setup.compute * t * numbers
        if self._keeps_weights(setup, batch):
            total += setup.compute * self._pairs(setup, batch)
        return int(total) + 2 * WIDE * t

    def forward(self, setup: Setup, batch: Pass) -> int:
        """See Engine: the larger of attention and MLP."""
        m, t = setup.policy, batch.tokens
        projected = t * (2 * m.hidden + m.qkv_width)
        inside = self._fused(setup, batch)
        if self._pairs(setup, batch) <= KEPT_WEIGHTS:
            inside = self._softmax(setup, batch)
        attention = projected + batch.slots * m.qkv_width + inside
        mlp = projected + t * (m.query_width + m.hidden + 4 * m.feed_forward)
        return setup.compute * max(attention, mlp)

    def backward(self, setup: Setup, batch: Pass) -> int:
        """See Engine: gradients in the MLP's middle, or attention's once the MLP's tensors are gone."""
        m, t = setup.policy, batch.tokens
        mlp = t * (2 * m.hidden + 2 * m.feed_forward)
        inside = 2 * self._fused(setup, batch)
        if self._keeps_weights(setup, batch):
            inside = self._softmax(setup, batch)
        attention = batch.slots * max(m.query_width + m.qkv_width + inside / batch.slots, 2 * m.qkv_width)
        return setup.compute * int(max(mlp, attention - t * (4 * m.feed_forward + 2 * m.hidden)))

    def indices(self, setup: Setup, batch: Pass) -> int:
        """See Engine: where each head of each token goes, and back."""
        m = setup.policy
        heads = m.heads + 2 * m.kv_heads
        return INDEX * (batch.slots * heads + batch.tokens * (heads + m.heads))

    def _pairs(self, setup: Setup, batch: Pass) -> int:
        """Attention weights of one layer."""
        return setup.policy.heads * (batch.prompt_pairs + batch.answer_pairs)

    def _keeps_weights(self, setup: Setup, batch: Pass) -> bool:
        """Whether a pass with gradient holds on to the attention weights of all layers that it holds at once."""
        held = 1 if setup.checkpointing else setup.policy.layers
        return held * self._pairs(setup, batch) <= KEPT_WEIGHTS

    def _softmax(self, setup: Setup, batch: Pass) -> int:
        """Numbers of weights, or of their gradients, around a softmax: prompts' twice; or theirs once and the answers',
        to the prompt and to themselves, those side by side, and what the softmax makes of them."""
        return setup.policy.heads * max(2 * batch.prompt_pairs, batch.prompt_pairs + 3 * batch.answer_pairs)

    def _fused(self, setup: Setup, batch: Pass) -> int:
        """Numbers inside fused attention: outputs twice, and one group's keys and values for each answer."""
        m = setup.policy
        return 2 * batch.slots * m.query_width + batch.answers * (batch.prompt + batch.answer) * 2 * m.key_width


class Generic:
    """transformers' own layers, prompts computed once an answer; adapters in fp32, as peft has them.

    Kept a layer: two norms' input in fp32, 8 D T bytes, and c · (4 D + 2 q + 2 k + 4 F) T; under adapters each adapted
    matrix keeps an fp32 copy of its input instead of the inputs above.
    """

    def kept(self, setup: Setup, batch: Pass) -> int:
        """See Engine."""
        m, c = setup.policy, setup.compute
        token = 2 * WIDE * m.hidden + c * (2 * m.query_width + 2 * m.key_width + 3 * m.feed_forward) + WIDE * m.heads
        if setup.adapted:
            token += WIDE * sum(linear.into + setup.rank for linear in setup.adapted) // m.layers
        else:
            token += c * (4 * m.hidden + m.feed_forward)
        return batch.tokens * token

    def forward(self, setup: Setup, batch: Pass) -> int:
        """See Engine: inside the MLP, with its three wide tensors."""
        m, c = setup.policy, setup.compute
        mlp = c * (3 * m.hidden + 3 * m.feed_forward)
        norm = c * 2 * m.hidden + 2 * WIDE * m.hidden
        mask = batch.groups * (batch.prompt + batch.answer) ** 2
        return batch.tokens * max(mlp, norm) + mask + self._unpacked(setup)

    def backward(self, setup: Setup, batch: Pass) -> int:
        """See Engine."""
        m, c = setup.policy, setup.compute
        wide: list[Linear] = sorted(setup.adapted, key=lambda linear: linear.into + linear.out)
        adapter = WIDE * (wide[-1].into + wide[-1].out) if wide else 0
        return batch.tokens * (c * (2 * m.hidden + 2 * m.feed_forward) + adapter) + self._unpacked(setup)

    def indices(self, setup: Setup, batch: Pass) -> int:
        """See Engine."""
        return INDEX * 2 * batch.tokens

    def _unpacked(self, setup: Setup) -> int:
        """A 4-bit matrix in compute precision, as a product needs it."""
        return setup.compute * setup.policy.largest_linear if setup.four_bit else 0
