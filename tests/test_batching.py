"""Normalisers by hand; packing never loses, repeats or reorders anything."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted import ids_of, turn_of
from sparring.batching import (
    Example,
    constant_length,
    pack,
    sequence_mean,
    sequence_sum,
    to_examples,
    token_mean,
)
from sparring.lm.base import SamplingParams
from sparring.roles import Role

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=20)


def test_aggregations_by_hand() -> None:
    assert sequence_sum([2, 4, 2], 8) == pytest.approx([1 / 3] * 3)
    assert sequence_mean([2, 4, 2], 8) == pytest.approx([1 / 6, 1 / 12, 1 / 6])
    assert token_mean([2, 4, 2], 8) == pytest.approx([1 / 8] * 3)
    assert constant_length([2, 4, 2], 8) == pytest.approx([1 / 24] * 3)


@given(lengths_lists)
def test_normalisers_sum_to_what_they_should(lengths: list[int]) -> None:
    def total(aggregation) -> float:
        return sum(w * n for w, n in zip(aggregation(lengths, 40), lengths, strict=True))

    assert total(sequence_mean) == pytest.approx(1)
    assert total(token_mean) == pytest.approx(1)
    assert total(sequence_sum) == pytest.approx(sum(lengths) / len(lengths))
    assert total(constant_length) == pytest.approx(sum(lengths) / (40 * len(lengths)))
    assert total(constant_length) <= 1


def test_each_role_is_normalised_by_itself_and_weighted() -> None:
    params = SamplingParams(8)
    solver, challenger = Role("solver", "{{ q }}", params), Role("challenger", "{{ q }}", params, weight=0.3)
    turns = [
        turn_of(challenger, challenger.prompt(q="ask"), "q"),
        turn_of(challenger, challenger.prompt(q="ask"), "p"),
    ]
    turns += [turn_of(solver, solver.prompt(q="q"), text) for text in ("a", "bb", "ccc")]
    unpaid = turn_of(solver, solver.prompt(q="q"), "unpaid")
    examples = to_examples([*turns, unpaid], dict.fromkeys(turns, 1.0), sequence_sum)
    assert [(e.tag, e.token_weight) for e in examples] == [("challenger", pytest.approx(0.3 / 2))] * 2 + [
        ("solver", pytest.approx(1 / 3))
    ] * 3
    assert [e.completion_ids for e in examples] == [turn.completion_ids for turn in turns]


def test_skipped_turns_still_count_in_the_normaliser() -> None:
    role = Role("solver", "{{ q }}", SamplingParams(8))
    turns = [turn_of(role, role.prompt(q="q"), text) for text in ("a", "bb", "c", "d")]
    advantages = dict(zip(turns, (0.5, 0.0, -0.5, 1e-12), strict=True))
    kept = to_examples(turns, advantages, sequence_sum, skip_zero=True)
    assert [(e.advantage, e.token_weight) for e in kept] == [(0.5, 0.25), (-0.5, 0.25)]
    assert len(to_examples(turns, advantages, sequence_sum)) == 4


@st.composite
def batches(draw: st.DrawFn) -> list[Example]:
    prompts = draw(st.lists(st.text("abc", min_size=1, max_size=12), min_size=1, max_size=5))
    lengths = draw(st.lists(st.tuples(st.integers(0, len(prompts) - 1), st.integers(1, 30)), min_size=1, max_size=25))
    return [
        Example(
            ids_of(prompts[place]),
            tuple(range(number, number + length)),
            advantage=float(number),
            token_weight=1 / (1 + number),
            sampler_logprobs=np.arange(number, number + length, dtype=np.float32),
            tag="even" if number % 2 == 0 else "odd",
        )
        for number, (place, length) in enumerate(lengths)
    ]


@settings(deadline=None)
@given(batches(), st.integers(1, 200))
def test_pack_loses_repeats_and_reorders_nothing(examples: list[Example], budget: int) -> None:
    packed = pack(examples, budget)
    assert Counter(e for batch in packed for e in batch.examples) == Counter(examples)
    for batch in packed:
        # Every array over positions follows the groups' order: prompt, completion and numbers stay together.
        rows = [(group.prompt_ids, ids) for group in batch.groups for ids in group.completions]
        assert rows == [(e.prompt_ids, e.completion_ids) for e in batch.examples]
        expected = [e.advantage for e in batch.examples for _ in e.completion_ids]
        assert batch.per_token([e.advantage for e in batch.examples]).tolist() == expected
        assert batch.scored_tokens == len(expected)
        longest = max(len(e.completion_ids) for e in batch.examples)
        prompt = max(len(group.prompt_ids) for group in batch.groups)
        padded = prompt * len(batch.groups) + longest * len(batch.examples)
        assert padded <= budget or len(batch.examples) == 1
        most = max(len(group.completions) for group in batch.groups)
        before_last = batch.scored_tokens - batch.groups[-1].scored_tokens
        little_padding = batch.scored_tokens >= 0.75 * len(batch.groups) * most * longest
        assert little_padding or len(batch.groups) == 1 or before_last < budget / 16


@settings(deadline=None)
@given(batches(), st.integers(1, 200))
def test_pack_counts_a_prompt_that_is_not_shared_for_every_completion(examples: list[Example], budget: int) -> None:
    packed = pack(examples, budget, shared_prompts=False)
    assert Counter(e for batch in packed for e in batch.examples) == Counter(examples)
    for batch in packed:
        rows = [(group.prompt_ids, ids) for group in batch.groups for ids in group.completions]
        assert rows == [(e.prompt_ids, e.completion_ids) for e in batch.examples]
        assert len(rows) == 1 or len(rows) * max(len(p) + len(c) for p, c in rows) <= budget


def test_a_large_budget_computes_each_prompt_once() -> None:
    role = Role("solver", "{{ q }}", SamplingParams(8))
    prompts = [role.prompt(q=q) for q in ("first query", "second query")]
    turns = [turn_of(role, prompt, "same") for prompt in prompts for _ in range(4)]
    (batch,) = pack(to_examples(turns, dict.fromkeys(turns, 1.0), sequence_sum), 10_000)
    assert [len(group.completions) for group in batch.groups] == [4, 4]


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="token_budget must be at least 1, not 0"):
        pack([], 0)
    assert pack([], 1) == []
