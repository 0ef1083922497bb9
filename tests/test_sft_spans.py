"""Which ids are learned, by hand, under the templates that there are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.arena.tokenizer import build_tokenizer
from sparring.lm.load import load_tokenizer
from sparring.models import locate
from sparring.rendering import Renderer
from sparring.sft.formats import BadRowError
from sparring.sft.spans import Lesson, Speller
from tiny_models import chat_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = [{"role": "user", "content": "Which planet is the largest?"}, {"role": "assistant", "content": "Jupiter."}]
MORE = [{"role": "user", "content": "And the next?"}, {"role": "assistant", "content": "The lazy dog."}]

# Qwen3's own rules: thoughts are written in the turns after the last question alone, an empty one where there is none.
QWEN3 = """{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set content = message.content %}{% set thought = message.reasoning_content or '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if loop.index0 > ns.last %}
{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}{% endif %}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
# It begins each answer with a thought, and takes thoughts out of answers that are there.
R1 = """{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + message.content.split('</think>')[-1] + '<|im_end|>' }}
{%- else %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""


def speller(style: Any, template: str | None = None, *, last_only: bool = False, **switches: Any) -> Speller:
    tokenizer = chat_tokenizer(style)
    if template is not None:
        tokenizer.chat_template = template
    return Speller(Renderer(tokenizer, switches), (tokenizer.eos_token_id,), last_only=last_only)


def texts(made: Speller, lesson: Lesson) -> list[tuple[bool, str]]:
    """A lesson's ids as pieces of text, each learned or not."""
    ids = (*lesson.prompt_ids, *lesson.completion_ids)
    learned = np.concatenate([np.zeros(len(lesson.prompt_ids), bool), lesson.trained])
    edges = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    return [
        (bool(learned[a]), made.renderer.tokenizer.decode(list(ids[a:b]), skip_special_tokens=False))
        for a, b in pairwise(edges)
    ]


def spelled(made: Speller, messages: Any) -> list[list[tuple[bool, str]]]:
    return [texts(made, lesson) for lesson in made.lessons(messages)]


def header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def test_llama3_learns_every_answer_and_its_end_and_nothing_else() -> None:
    question = f"<|begin_of_text|>{header('system')}Be brief.<|eot_id|>{header('user')}Which planet is the largest?"
    assert spelled(speller("llama3"), [SYSTEM, *ASK, *MORE]) == [
        [
            (False, f"{question}<|eot_id|>{header('assistant')}"),
            (True, "Jupiter.<|eot_id|>"),
            (False, f"{header('user')}And the next?<|eot_id|>{header('assistant')}"),
            (True, "The lazy dog.<|eot_id|>"),
        ]
    ]


def test_the_ids_are_those_that_the_sampler_asks_with_and_the_template_writes() -> None:
    made = speller("llama3")
    (lesson,) = made.lessons(ASK)
    assert lesson.prompt_ids == made.renderer.encode(ASK[:1])
    whole = made.renderer.tokenizer.apply_chat_template(ASK, return_dict=False)
    assert [*lesson.prompt_ids, *lesson.completion_ids] == whole
    assert lesson.trained.all()


def test_the_last_answer_alone() -> None:
    (lesson,) = spelled(speller("llama3", last_only=True), [*ASK, *MORE])
    assert [piece for piece in lesson if piece[0]] == [(True, "The lazy dog.<|eot_id|>")]
    assert "Jupiter." in lesson[0][1]


def test_an_answer_of_weight_0_is_not_learned() -> None:
    first = [ASK[0], {**ASK[1], "weight": 0}]
    (lesson,) = spelled(speller("llama3"), [*first, *MORE])
    assert [learned for learned, _ in lesson] == [False, True]
    with pytest.raises(BadRowError, match="weight 0"):
        speller("llama3").lessons(first)


def test_what_follows_the_last_answer_is_left_out() -> None:
    assert spelled(speller("llama3"), [*ASK, MORE[0]]) == spelled(speller("llama3"), ASK)


def test_qwen3_style_ends_with_the_turn_not_the_line() -> None:
    (lesson,) = spelled(speller("qwen3"), [SYSTEM, *ASK, *MORE])
    assert lesson == [
        (False, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich planet is the largest?<|im_end|>\n"
                "<|im_start|>assistant\n"),
        (True, "Jupiter.<|im_end|>"),
        (False, "\n<|im_start|>user\nAnd the next?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "The lazy dog.<|im_end|>"),
    ]  # fmt: skip


THOUGHT = "<think>\nIt is big.\n</think>\n\nJupiter."


def test_qwen3_takes_thoughts_out_of_earlier_turns_so_each_turn_is_a_row_of_its_own() -> None:
    made = speller("qwen3", QWEN3)
    first, second = spelled(made, [ASK[0], {"role": "assistant", "content": THOUGHT}, *MORE])
    question = "<|im_start|>user\nWhich planet is the largest?<|im_end|>\n<|im_start|>assistant\n"
    assert first == [(False, question), (True, f"{THOUGHT}<|im_end|>")]
    assert second == [
        (False, f"{question}Jupiter.<|im_end|>\n<|im_start|>user\nAnd the next?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "<think>\n\n</think>\n\nThe lazy dog.<|im_end|>"),
    ]
    assert made.verbatim == 0


def test_qwen3_without_thinking_prompts_with_the_empty_thought() -> None:
    first, second = spelled(speller("qwen3", QWEN3, enable_thinking=False), [*ASK, *MORE])
    assert first[0][1].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert first[1:] == [(True, "Jupiter.<|im_end|>")]
    assert second[1:] == [(True, "The lazy dog.<|im_end|>")]


def test_a_thought_beside_the_content() -> None:
    answer = {"role": "assistant", "content": "Jupiter.", "reasoning_content": "It is big."}
    (lesson,) = spelled(speller("qwen3", QWEN3), [ASK[0], answer])
    assert lesson[1:] == [(True, f"{THOUGHT}<|im_end|>")]
    with pytest.raises(BadRowError, match="leaves its reasoning_content out"):
        speller("llama3").lessons([ASK[0], answer])


SEEN = "<description>A planet.</description><think>It is big.</think>\\boxed{Jupiter}"


@pytest.mark.parametrize("template", [QWEN3, None], ids=["as Qwen3", "thoughts always taken out"])
def test_an_answer_that_the_template_would_shorten_is_written_as_it_stands(template: str | None) -> None:
    made = speller("qwen3", template)
    (lesson,) = spelled(made, [ASK[0], {"role": "assistant", "content": SEEN}])
    assert lesson[0][1].endswith("<|im_start|>assistant\n")
    assert lesson[1:] == [(True, f"{SEEN}<|im_end|>")]
    assert made.verbatim == 1


def test_a_thought_that_the_prompt_opens_is_gone_on_with() -> None:
    made = speller("qwen3", R1)
    (lesson,) = spelled(made, [ASK[0], {"role": "assistant", "content": THOUGHT}])
    assert lesson == [
        (False, "<|im_start|>user\nWhich planet is the largest?<|im_end|>\n<|im_start|>assistant\n<think>\n"),
        (True, "It is big.\n</think>\n\nJupiter.<|im_end|>"),
    ]
    with pytest.raises(BadRowError, match="this one has no thought"):
        made.lessons(ASK)


def test_the_arenas_template() -> None:
    tokenizer = load_tokenizer(locate("arena"))
    assert "{% generation %}" in str(tokenizer.chat_template)
    made = Speller(Renderer(tokenizer), (build_tokenizer().eos_token_id,))
    asked = [{"role": "user", "content": "Solver:reverse:bead"}, {"role": "assistant", "content": "daeb"}]
    (lesson,) = made.lessons(asked)
    assert lesson.completion_ids == (*made.renderer.write("daeb"), tokenizer.eos_token_id)
    kept: Any = tokenizer.apply_chat_template(asked, return_dict=True, return_assistant_tokens_mask=True)
    mask = [0] * len(lesson.prompt_ids) + lesson.trained.astype(int).tolist()
    assert kept["assistant_masks"] == mask and tuple(kept["input_ids"]) == lesson.prompt_ids + lesson.completion_ids


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "none of the model's end tokens"),
        (
            "{{ messages | length }} {% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}",
            "otherwise than it asks",
        ),
        ("{% for m in messages %}{{ m.content | upper }}<|eot_id|>{% endfor %}", "something else than the answer"),
        ("{{ raise_exception('no such role') }}", "no such role"),
    ],
)
def test_a_template_that_hides_the_answer_is_refused(template: str, reason: str) -> None:
    with pytest.raises(BadRowError, match=reason):
        speller("llama3", template).lessons(ASK)


def test_an_end_token_in_an_answer_is_refused() -> None:
    with pytest.raises(BadRowError, match="has the end token '<|eot_id|>' in it".replace("|", r"\|")):
        speller("llama3").lessons([ASK[0], {"role": "assistant", "content": "Ju<|eot_id|>piter."}])


def test_a_template_that_ends_the_text_behind_the_turn() -> None:
    turns = "{% for m in messages %}{{ m.content }}<|eot_id|>\n{% endfor %}"
    template = turns + "{% if not add_generation_prompt %}<|eot_id|>{% endif %}"
    (lesson,) = spelled(speller("llama3", template), [*ASK, *MORE])
    assert [text for learned, text in lesson if learned] == ["Jupiter.<|eot_id|>", "The lazy dog.<|eot_id|>"]


def test_cutting_keeps_whole_spans_or_their_beginning() -> None:
    (lesson,) = speller("llama3").lessons([*ASK, *MORE])
    prompt, first = len(lesson.prompt_ids), int(np.flatnonzero(~lesson.trained)[0])
    assert lesson.cut(prompt) is None
    assert lesson.cut(prompt + 1) is not None
    between = lesson.cut(prompt + first + 2)
    assert between is not None and between.trained.all() and len(between.completion_ids) == first


def test_a_value_that_is_no_json_is_refused(tmp_path: Path) -> None:
    """Contents that no chat template takes are refused with a reason, whatever they are."""
    with pytest.raises(BadRowError):
        speller("llama3").lessons([{"role": "user", "content": "Hi?", "picture": tmp_path}, ASK[1]])
