"""Ids and text: chat templates with their switches, and what a model thought apart from what it says."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from sparring.rendering import Renderer
from tiny_models import chat_tokenizer

KINDS = ("token", "special", "letters")
ASK = [{"role": "user", "content": "Which planet is the largest?"}]


@cache
def renderer(kind: str, **switches: bool) -> Renderer:
    """token: the vocabulary has the tags (Qwen3); special: as special tokens; letters: it has none (Llama 3)."""
    tokenizer = chat_tokenizer("qwen3" if kind == "token" else "llama3")
    if kind == "special":
        tags = [AddedToken(tag, special=True) for tag in ("<think>", "</think>")]
        tokenizer.add_tokens(tags, special_tokens=True)
    return Renderer(tokenizer, switches)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def read(kind: str, completion: str, prefilled: str = "") -> tuple[str | None, str]:
    speaker = renderer(kind)
    prompt = (*speaker.encode(ASK), *ids_of(speaker.tokenizer, prefilled))
    return speaker.read(prompt, (*ids_of(speaker.tokenizer, completion), speaker.tokenizer.eos_token_id))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prefilled", "completion", "thought", "text"),
    [
        ("", "Jupiter.", None, "Jupiter."),
        ("", "<think>\nIt is big.\n</think>\n\nJupiter.", "It is big.", "Jupiter."),
        ("", "\n <think>It is big.</think>Jupiter.", "It is big.", "Jupiter."),
        ("<think>\n", "It is big.\n</think>\n\nJupiter.", "It is big.", "Jupiter."),
        ("<think>", "<think>It is big.</think> Jupiter.", "It is big.", "Jupiter."),
        ("<think>\n\n</think>\n\n", "Jupiter.", None, "Jupiter."),
        ("", "<think>\n\n</think>\n\nJupiter.", None, "Jupiter."),
        ("<think>\n", "</think>Jupiter.", None, "Jupiter."),
        ("", "<think>It is big, it is", "It is big, it is", ""),
        ("<think>\n", "It is big, it is", "It is big, it is", ""),
        ("<think>\n", "", None, ""),
        ("", "", None, ""),
        # Quoted in an answer, a tag is a text like any other (and goes where it is a special token).
        ("", "<think>Close it.</think>Close with </think>.", "Close it.", "Close with </think>."),
        ("<think>\n", "</think><think>Ju</think>piter.", None, "<think>Ju</think>piter."),
        ("", "Write <think> first and </think> last.", None, "Write <think> first and </think> last."),
        ("", "No. </think> Jupiter.", None, "No. </think> Jupiter."),
    ],
)
def test_a_thought_is_not_what_is_said(
    kind: str, prefilled: str, completion: str, thought: str | None, text: str
) -> None:
    if kind == "special":
        text = text.replace("<think>", "").replace("</think>", "")
    assert read(kind, completion, prefilled) == (thought, text)


def test_only_the_vocabularys_own_tags_count() -> None:
    speaker = renderer("token")
    tokenizer = speaker.tokenizer
    written = (*ids_of(tokenizer, "a </th"), *ids_of(tokenizer, "ink> b"))
    close = ids_of(tokenizer, "</think>")
    prompt = (*speaker.encode(ASK), *ids_of(tokenizer, "<think>\n"))
    assert len(close) == 1
    assert speaker.read(prompt, (*written, *close, *ids_of(tokenizer, "c"))) == ("a </think> b", "c")


def test_a_template_s_switches_change_the_prompt() -> None:
    plain, off, open_ = (
        renderer("token", **switches) for switches in ({}, {"enable_thinking": False}, {"prefill_thinking": True})
    )
    prompts = [speaker.encode(ASK) for speaker in (plain, off, open_)]
    assert prompts[1] == (*prompts[0], *ids_of(plain.tokenizer, "<think>\n\n</think>\n\n"))
    assert prompts[2] == (*prompts[0], *ids_of(plain.tokenizer, "<think>\n"))
    completion = ids_of(plain.tokenizer, "It is big.</think>Jupiter.")
    said = [plain.read(prompt, completion) for prompt in prompts]
    assert said == [
        (None, "It is big.</think>Jupiter."),
        (None, "It is big.</think>Jupiter."),
        ("It is big.", "Jupiter."),
    ]


def test_a_prompt_that_speaks_of_the_tag_does_not_open_it() -> None:
    for kind in KINDS:
        speaker = renderer(kind)
        prompt = speaker.encode([{"role": "user", "content": "What does this tag mean? <think>"}])
        assert speaker.read(prompt, ids_of(speaker.tokenizer, "It opens.")) == (None, "It opens.")


def test_a_prompt_has_one_bos_where_both_the_template_and_the_tokenizer_would_write_it() -> None:
    speaker = renderer("letters")
    bos = speaker.tokenizer.bos_token_id
    assert speaker.tokenizer.encode("Jupiter")[0] == bos
    ids = speaker.encode(ASK)
    assert ids[0] == bos and ids.count(bos) == 1
    written = speaker.tokenizer.decode(list(ids), skip_special_tokens=False)
    assert written == speaker.tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)


@given(st.data())
def test_reading_never_raises(data: st.DataObject) -> None:
    speaker = renderer(data.draw(st.sampled_from(KINDS)))
    ids = st.lists(st.integers(0, len(speaker.tokenizer) + 9), max_size=24)
    tags = [*ids_of(speaker.tokenizer, "<think>"), *ids_of(speaker.tokenizer, "</think>\n")]
    some = st.one_of(ids, st.lists(st.sampled_from(tags), max_size=24))
    prompt, completion = data.draw(some), data.draw(some)
    thought, text = speaker.read(prompt, completion)
    assert thought is None or thought.strip()
    if thought is None and text:
        assert speaker.decode(completion).endswith(text)


@given(st.sampled_from(KINDS), st.booleans(), st.text("ab \n<th/>", min_size=1), st.text("ab \n<th/>"))
def test_thoughts_and_texts_of_any_letters_come_apart(kind: str, prefilled: bool, thought: str, text: str) -> None:
    completion = f"{'' if prefilled else '<think>'}{thought}</think>{text}"
    assert read(kind, completion, "<think>\n" if prefilled else "") == (thought.strip() or None, text.lstrip())
