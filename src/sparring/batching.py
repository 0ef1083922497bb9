"""Turns to micro-batches, and the one place of normalisers.

The loss of a step is Σ weight_S · loss_S over every scored position S. A token's weight is its role's weight (α)
times what the aggregation gives: all of "mean over sequences", "mean over tokens" and so on is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sparring.lm.base import PromptGroup
from sparring.types import Advantages, Turn

Aggregation = Callable[[Sequence[int], int], "list[float]"]
"""(completion lengths of one role, longest allowed) → the weight of each token of each completion"""


def sequence_sum(lengths: Sequence[int], max_tokens: int) -> list[float]:
    """1/B: tokens summed, sequences averaged. The paper's 1/(NG) Σ and 1/N Σ, with no length normalisation.

    >>> sequence_sum([2, 4], 8)
    [0.5, 0.5]
    """
    return [1 / len(lengths)] * len(lengths)


def sequence_mean(lengths: Sequence[int], max_tokens: int) -> list[float]:
    """1/(B · T_i): mean over sequences of each sequence's mean. TRL's loss_type="grpo".

    >>> sequence_mean([2, 4], 8)
    [0.25, 0.125]
    """
    return [1 / (len(lengths) * max(1, length)) for length in lengths]


def token_mean(lengths: Sequence[int], max_tokens: int) -> list[float]:
    """1/Σ T_i: mean over tokens. TRL's loss_type="dapo".

    >>> token_mean([2, 4], 8)[0] == 1 / 6
    True
    """
    return [1 / max(1, sum(lengths))] * len(lengths)


def constant_length(lengths: Sequence[int], max_tokens: int) -> list[float]:
    """1/(B · longest allowed): no bias towards short or long. TRL's loss_type="dr_grpo".

    >>> constant_length([2, 4], 8)
    [0.0625, 0.0625]
    """
    return [1 / (len(lengths) * max_tokens)] * len(lengths)


@dataclass(frozen=True, eq=False)
class Example:
    """One completion to learn from.

    `tag` is the role's name: each tag is dealt to minibatches by itself, and figures are by tag.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    advantage: float
    token_weight: float
    sampler_logprobs: NDArray[np.float32]
    tag: str


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Examples of one forward pass, by shared prompt. Arrays are over scored positions S, in the groups' order."""

    groups: tuple[PromptGroup, ...]
    examples: tuple[Example, ...]

    def per_token(self, values: Sequence[float]) -> NDArray[np.float32]:
        """One value an example → one a scored position."""
        return np.repeat(np.asarray(values, dtype=np.float32), [len(e.completion_ids) for e in self.examples])

    @property
    def scored_tokens(self) -> int:
        """Scored positions."""
        return sum(group.scored_tokens for group in self.groups)


def to_examples(
    turns: Sequence[Turn],
    advantages: Advantages,
    aggregation: Aggregation,
    role_factors: Mapping[str, float] = MappingProxyType({}),
    *,
    skip_zero: bool = False,
) -> list[Example]:
    """Turns with an advantage, as examples with their token weights.

    role_factors: what a role's own weight is multiplied by, by its name; 1 where absent.

    skip_zero leaves out those with advantage 0 (groups without spread), whose only term is the KL; the normalisers
    still count them.
    """
    by_role: dict[str, list[Turn]] = {}
    for turn in turns:
        if turn in advantages and turn.completion_ids:
            by_role.setdefault(turn.role.name, []).append(turn)
    examples: list[Example] = []
    for name, taken in by_role.items():
        role = taken[0].role
        factor = role_factors.get(name, 1.0)
        weights = aggregation([len(turn.completion_ids) for turn in taken], role.sampling.max_new_tokens)
        examples += [
            Example(
                turn.prompt_ids,
                turn.completion_ids,
                advantages[turn],
                role.weight * factor * weight,
                turn.logprobs,
                name,
            )
            for turn, weight in zip(taken, weights, strict=True)
            if is_trained(turn, advantages, skip_zero=skip_zero)
        ]
    return examples


def is_trained(turn: Turn, advantages: Advantages, *, skip_zero: bool = False) -> bool:
    """Whether `to_examples` makes an example of this turn."""
    if turn not in advantages or not turn.completion_ids:
        return False
    return not (skip_zero and abs(advantages[turn]) < 1e-9)


def pack(examples: Sequence[Example], token_budget: int, *, shared_prompts: bool = True) -> list[MicroBatch]:
    """Length buckets: examples of one prompt together, groups of like lengths in one micro-batch.

    token_budget bounds the padded tokens of a micro-batch (prompts once a group, completions padded to the longest);
    one group over the budget is split, one example over it goes alone. A micro-batch that holds a sixteenth of the
    budget also ends where the next group would leave its attention too much padding. For an engine without
    shared_prompts each completion is a group, padded with its prompt to the longest such row.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, not {token_budget}")
    if not shared_prompts:
        return _pack_rows(examples, token_budget)
    pieces = [piece for group in _by_prompt(examples).values() for piece in _split(group, token_budget)]
    pieces.sort(key=lambda p: (len(p[0].completion_ids), len(p), len(p[0].prompt_ids)), reverse=True)
    batches: list[MicroBatch] = []
    held: list[list[Example]] = []
    for piece in pieces:
        full = _tokens(held) >= token_budget / 16 and _ragged([*held, piece])
        if held and (full or _padded([*held, piece]) > token_budget):
            batches.append(_micro_batch(held))
            held = []
        held.append(piece)
    return [*batches, _micro_batch(held)] if held else batches


def _pack_rows(examples: Sequence[Example], token_budget: int) -> list[MicroBatch]:
    """Rows of prompt and completion, longest first: rows times longest within the budget."""
    batches: list[MicroBatch] = []
    held: list[list[Example]] = []
    longest = tokens = 0
    for example in sorted(examples, key=_row_length, reverse=True):
        length = _row_length(example)
        padded = longest * (len(held) + 1)
        ragged = tokens >= token_budget / 16 and tokens + length < 0.75 * padded
        if held and (ragged or padded > token_budget):
            batches.append(_micro_batch(held))
            held, tokens = [], 0
        if not held:
            longest = length
        held.append([example])
        tokens += length
    return [*batches, _micro_batch(held)] if held else batches


def _row_length(example: Example) -> int:
    return len(example.prompt_ids) + len(example.completion_ids)


def _by_prompt(examples: Sequence[Example]) -> Mapping[tuple[int, ...], list[Example]]:
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.prompt_ids, []).append(example)
    return groups


def _split(group: list[Example], token_budget: int) -> list[list[Example]]:
    """Cut a prompt's completions, longest first, where the padding saved outweighs computing the prompt again."""
    rest = sorted(group, key=lambda example: len(example.completion_ids), reverse=True)
    prompt = len(rest[0].prompt_ids)
    pieces: list[list[Example]] = []
    while rest:
        longest = len(rest[0].completion_ids)
        fit = max(1, (token_budget - prompt) // max(1, longest))
        # Cutting after k saves padding of (longest − next) for each that follows, and costs the prompt once more.
        gains = [
            (longest - len(rest[k].completion_ids)) * (len(rest) - k) - prompt for k in range(1, min(fit, len(rest)))
        ]
        best = max(range(len(gains)), key=gains.__getitem__, default=0)
        cut = best + 1 if gains and gains[best] > 0 else min(fit, len(rest))
        pieces.append(rest[:cut])
        rest = rest[cut:]
    return pieces


def _padded(pieces: Sequence[Sequence[Example]]) -> int:
    longest = max(len(piece[0].completion_ids) for piece in pieces)
    prompt = max(len(piece[0].prompt_ids) for piece in pieces)
    return prompt * len(pieces) + longest * sum(len(piece) for piece in pieces)


def _tokens(pieces: Sequence[Sequence[Example]]) -> int:
    return sum(len(example.completion_ids) for piece in pieces for example in piece)


def _ragged(pieces: Sequence[Sequence[Example]]) -> bool:
    """Whether padding fills more than a quarter of attention's rectangle: groups × most answers × longest."""
    most, longest = max(map(len, pieces)), max(len(piece[0].completion_ids) for piece in pieces)
    return _tokens(pieces) < 0.75 * len(pieces) * most * longest


def _micro_batch(pieces: Sequence[Sequence[Example]]) -> MicroBatch:
    groups = tuple(PromptGroup(p[0].prompt_ids, tuple(e.completion_ids for e in p)) for p in pieces)
    return MicroBatch(groups, tuple(example for piece in pieces for example in piece))
