"""A reward model scores conversations: what it reads, in what batches, and always as for each conversation alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from scripted import turn_of
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward
from sparring.rewards.preference import PreferenceModel, Reader
from sparring.roles import Role
from tiny_models import Style, chat_tokenizer, save_tiny_reward, sizes

WORDS = ("Jupiter", "is", "the", "largest", "planet", "and", "a", "quick", "brown", "fox", "knows", "it", "well")


def chat(length: int, start: int = 0) -> list[dict[str, str]]:
    """A conversation whose answer has this many words."""
    answer = " ".join(WORDS[(start + i) % len(WORDS)] for i in range(length))
    return [{"role": "user", "content": "Which planet is the largest?"}, {"role": "assistant", "content": answer}]


CHATS = [chat(n) for n in (3, 40, 1, 12, 0, 25, 7)]


def model_for(tokenizer: PreTrainedTokenizerBase, **config: Any) -> PreTrainedModel:
    """A random reward model whose scores are far apart."""
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(
        LlamaConfig(**sizes(tokenizer, **{"num_labels": 1, "initializer_range": 0.1, **config}))
    )
    with torch.no_grad():
        model.score.weight.mul_(5)
    return model.eval()


def ids_of_chat(tokenizer: PreTrainedTokenizerBase, conversation: Any) -> list[int]:
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def alone(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Any]) -> list[float]:
    """The oracle: one forward pass a conversation, nothing padded, the model as it is."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids_of_chat(tokenizer, c)])).logits.item() for c in chats]


def scores(model: PreferenceModel, chats: Sequence[Any]) -> list[float | None]:
    return model([""] * len(chats), [""] * len(chats), chats)


class Watched:
    """Keeps what the model was given at each forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []
        model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: Any, args: Any, kwargs: Any) -> None:
        assert torch.is_inference_mode_enabled()
        self.given.append((kwargs["input_ids"], kwargs["attention_mask"]))


@pytest.mark.parametrize("style", ["llama3", "qwen3"])
@pytest.mark.parametrize("token_budget", [1, 150, 16384])
def test_each_score_is_that_of_the_conversation_alone(style: Style, token_budget: int) -> None:
    tokenizer = chat_tokenizer(style)
    model = model_for(tokenizer)
    expected = alone(model, tokenizer, CHATS)
    assert max(expected) - min(expected) > 0.5
    assert scores(PreferenceModel(model, tokenizer, token_budget=token_budget), CHATS) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("own", [None, "eos", "other"])
def test_padding_never_moves_the_place_of_the_score(own: str | None) -> None:
    """Llama 3's template ends each conversation with the token that its tokenizer often has to pad with."""
    tokenizer = chat_tokenizer("llama3")
    tokenizer.pad_token = tokenizer.eos_token
    pad = {None: None, "eos": tokenizer.eos_token_id, "other": 0}[own]
    model = model_for(tokenizer, pad_token_id=pad)
    assert {ids_of_chat(tokenizer, c)[-1] for c in CHATS} == {tokenizer.eos_token_id}
    expected = alone(model, tokenizer, CHATS)
    assert scores(PreferenceModel(model, tokenizer), CHATS) == pytest.approx(expected, abs=1e-5)
    assert model.config.pad_token_id == pad, "the model is as it was"
    assert alone(model, tokenizer, CHATS) == expected


def test_where_the_score_is_read() -> None:
    """At the end of the conversation; before it, where the model's own config says that its last token is padding."""
    tokenizer = chat_tokenizer("llama3")
    ids = ids_of_chat(tokenizer, CHATS[0])
    model = model_for(tokenizer, pad_token_id=None)
    with torch.no_grad():
        hidden_TD = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        at_end, before = model.score(hidden_TD)[[-1, -2], 0].tolist()
    assert abs(at_end - before) > 0.05
    assert scores(PreferenceModel(model, tokenizer), CHATS)[0] == pytest.approx(at_end, abs=1e-5)
    model.config.pad_token_id = tokenizer.eos_token_id
    assert scores(PreferenceModel(model, tokenizer), CHATS)[0] == pytest.approx(before, abs=1e-5)


def test_a_tokenizer_without_padding_will_do() -> None:
    tokenizer = chat_tokenizer("llama3")
    tokenizer.pad_token = None
    model = model_for(tokenizer, pad_token_id=None)
    expected = alone(model, tokenizer, CHATS)
    assert scores(PreferenceModel(model, tokenizer), CHATS) == pytest.approx(expected, abs=1e-5)


def test_a_model_that_looks_both_ways_sees_no_padding() -> None:
    tokenizer = chat_tokenizer("qwen3")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config).eval()
    expected = alone(model, tokenizer, CHATS)
    assert max(expected) - min(expected) > 0.1
    assert scores(PreferenceModel(model, tokenizer), CHATS) == pytest.approx(expected, abs=1e-5)


def test_one_beginning_though_tokenizer_and_template_each_write_one() -> None:
    tokenizer = chat_tokenizer("llama3")
    bos = tokenizer.bos_token_id
    assert tokenizer("x")["input_ids"][0] == bos
    assert "bos_token" in str(tokenizer.chat_template)
    (row,) = Reader(tokenizer, None).rows([chat(2)]).ids
    assert row.count(bos) == 1
    assert row[0] == bos


def test_the_conversation_is_closed_and_no_answer_is_asked_for() -> None:
    tokenizer = chat_tokenizer("llama3")
    (row,) = Reader(tokenizer, None).rows([chat(2)]).ids
    assert tokenizer.decode(list(row)).endswith("<|end_header_id|>\n\nJupiter is<|eot_id|>")


def test_batches_are_of_like_length_within_the_budget() -> None:
    tokenizer = chat_tokenizer("llama3")
    model = model_for(tokenizer)
    watched = Watched(model)
    scores(PreferenceModel(model, tokenizer, token_budget=160), CHATS)
    shapes = [tuple(ids.shape) for ids, _ in watched.given]
    assert sum(rows for rows, _ in shapes) == len(CHATS)
    assert all(rows * longest <= 160 or rows == 1 for rows, longest in shapes)
    assert [longest for _, longest in shapes] == sorted((longest for _, longest in shapes), reverse=True)
    assert 1 < len(shapes) < len(CHATS)
    for ids, mask in watched.given:
        assert (mask.sort(dim=1, descending=True).values == mask).all(), "padded on the right"
        assert (ids[mask == 0] == tokenizer.pad_token_id).all()


def test_equal_conversations_are_scored_once() -> None:
    tokenizer = chat_tokenizer("llama3")
    model = model_for(tokenizer)
    watched = Watched(model)
    a, b = chat(3), chat(9)
    got = scores(PreferenceModel(model, tokenizer), [a, b, a, a, b])
    assert got == [got[0], got[1], got[0], got[0], got[1]]
    assert got[0] != got[1]
    assert [ids.shape[0] for ids, _ in watched.given] == [2]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=12),
    token_budget=st.integers(1, 400),
    max_tokens=st.integers(10, 80),
)
def test_any_batch_is_in_order_and_complete(lengths: list[int], token_budget: int, max_tokens: int) -> None:
    tokenizer = chat_tokenizer("llama3")
    model = model_for(tokenizer)
    chats = [chat(n, start=n) for n in lengths]
    preference = PreferenceModel(model, tokenizer, token_budget=token_budget, max_tokens=max_tokens)
    expected = [
        score if len(ids_of_chat(tokenizer, c)) <= max_tokens else None
        for c, score in zip(chats, alone(model, tokenizer, chats), strict=True)
    ]
    got = scores(preference, chats)
    assert [score is None for score in got] == [score is None for score in expected]
    known = [(a, b) for a, b in zip(got, expected, strict=True) if a is not None]
    assert [a for a, _ in known] == pytest.approx([b for _, b in known], abs=1e-5)


def test_over_long_conversations_are_counted_and_not_scored() -> None:
    tokenizer = chat_tokenizer("llama3")
    exact = len(ids_of_chat(tokenizer, chat(12)))
    preference = PreferenceModel(model_for(tokenizer), tokenizer, max_tokens=exact)
    got = scores(preference, [chat(12), chat(13), chat(1), chat(40)])
    assert [score is None for score in got] == [False, True, False, True]
    scores(preference, [chat(1)])
    assert preference.drain() == {"over_long": 2 / 5}
    assert preference.drain() == {}
    scores(preference, [chat(1)])
    assert preference.drain() == {"over_long": 0.0}


def test_the_models_own_bound_holds_where_none_is_given_or_a_larger_one() -> None:
    tokenizer = chat_tokenizer("llama3")
    exact = len(ids_of_chat(tokenizer, chat(12)))
    for max_tokens in (None, 10_000):
        model = model_for(tokenizer, max_position_embeddings=exact)
        got = scores(PreferenceModel(model, tokenizer, max_tokens=max_tokens), [chat(12), chat(13)])
        assert [score is None for score in got] == [False, True]


def test_scores_are_floats_whatever_the_models_precision() -> None:
    tokenizer = chat_tokenizer("llama3")
    model = model_for(tokenizer).to(torch.bfloat16)
    got = scores(PreferenceModel(model, tokenizer), CHATS)
    assert all(type(score) is float for score in got)
    assert got == pytest.approx(alone(model_for(tokenizer), tokenizer, CHATS), abs=0.5)


def test_dropout_is_off_and_nothing_is_cached() -> None:
    tokenizer = chat_tokenizer("llama3")
    model = model_for(tokenizer, attention_dropout=0.5).train()
    preference = PreferenceModel(model, tokenizer)
    assert scores(preference, CHATS) == scores(preference, CHATS)
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[0, 5]])).past_key_values is None


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"num_labels": 2}, {}, "has 2 labels; game.reward.model takes"),
        ({}, {"token_budget": 0}, "token_budget must be at least 1, not 0"),
        ({}, {"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
    ],
)
def test_what_cannot_score_is_named(config: dict[str, Any], arguments: dict[str, int], message: str) -> None:
    tokenizer = chat_tokenizer("llama3")
    with pytest.raises(ValueError, match=message):
        PreferenceModel(model_for(tokenizer, **config), tokenizer, **arguments)


def test_from_a_folder_through_a_reward(tmp_path: Path) -> None:
    folder = save_tiny_reward(tmp_path / "model", spread=50.0)
    reward = Reward(PreferenceModel.load(folder, max_tokens=60), "preference")
    role = Role("solver", "Answer: {{ query }}", SamplingParams(8))
    texts = [c[1]["content"] for c in CHATS]
    turns = [turn_of(role, role.prompt(query="q", info={"query_text": CHATS[0][0]["content"]}), t) for t in texts]
    model = PreferenceModel.load(folder)._model
    expected = alone(model, chat_tokenizer("llama3"), CHATS)
    got = reward(["q"] * len(turns), turns)
    assert [score is None for score in got] == [len(ids_of_chat(chat_tokenizer(), c)) > 60 for c in CHATS]
    assert [a for a in got if a is not None] == pytest.approx(
        [b for a, b in zip(got, expected, strict=True) if a is not None], abs=1e-5
    )
    assert reward.drain() == {"over_long": sum(score is None for score in got) / len(got)}
    reward.close()
    assert json.loads(json.dumps(reward.state())) == {}


def test_a_bfloat16_model_is_scored_in_float32(tmp_path: Path) -> None:
    folder = save_tiny_reward(tmp_path / "reward", spread=1000.0)
    loaded = PreferenceModel.load(folder, dtype=torch.bfloat16)
    scores = loaded([""] * len(CHATS), [""] * len(CHATS), CHATS)
    assert any(score != float(torch.tensor(score).bfloat16()) for score in scores if score is not None)
