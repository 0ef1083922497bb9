"""Rows of every usual form, as conversations; and what is said of the others."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.settings.sft import SFTDataConfig
from sparring.sft.formats import BadRowError, read_conversation

SETTINGS = SFTDataConfig()
ASKED, SAID = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}
SYSTEM = {"role": "system", "content": "Be brief."}


def read(record: Any, columns: SFTDataConfig = SETTINGS, **more: Any) -> list[dict[str, Any]]:
    return [dict(message) for message in read_conversation(record, columns, more.pop("open_image", None), **more)]


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": [ASKED, SAID]}, [ASKED, SAID]),
        ({"messages": [{**ASKED, "name": None}, SAID], "prompt": None}, [ASKED, SAID]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, SAID]}, [ASKED, SAID]),
        ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]}, [ASKED, SAID]),
        (
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}],
             "system": "Be brief."},
            [SYSTEM, ASKED, SAID],
        ),
        ({"conversations": [SYSTEM, ASKED, SAID], "system": "Be long."}, [SYSTEM, ASKED, SAID]),
        ({"prompt": "Hi?", "completion": "Yes."}, [ASKED, SAID]),
        ({"prompt": [SYSTEM, ASKED], "completion": [SAID]}, [SYSTEM, ASKED, SAID]),
        ({"instruction": "Hi?", "output": "Yes."}, [ASKED, SAID]),
        ({"instruction": "Hi?", "input": " ", "output": "Yes.", "system": ""}, [ASKED, SAID]),
        (
            {"instruction": "Sum up.", "input": "A text. ", "output": "Yes.", "history": [["Hi?", "Yes."]]},
            [ASKED, SAID, {"role": "user", "content": "Sum up.\n\nA text."}, SAID],
        ),
    ],
)  # fmt: skip
def test_each_form_gives_the_same_conversation(record: Any, messages: list[Any]) -> None:
    assert read(record) == messages


def test_pairs_of_other_columns() -> None:
    columns = SFTDataConfig(prompt="question", completion="answer")
    assert read({"question": "Hi?", "answer": "Yes."}, columns) == [ASKED, SAID]
    with pytest.raises(BadRowError, match=r"nor question and answer, .* it has: prompt, completion"):
        read({"prompt": "Hi?", "completion": "Yes."}, columns)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "no object"),
        ({}, "it has: nothing"),
        ({"messages": []}, "list of messages"),
        ({"messages": "text"}, "list of messages"),
        ({"messages": ["text"]}, "no object"),
        ({"messages": [{"content": "Hi?"}]}, "no role"),
        ({"messages": [{"role": "user", "content": 3}, SAID]}, "must be text or a list"),
        ({"messages": [ASKED]}, "nothing to learn"),
        ({"messages": [SAID, ASKED]}, "begins with the assistant"),
        ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, "of the assistant is empty"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "of the assistant is empty"),
        ({"instruction": "", "output": "Yes."}, "of the user is empty"),
        ({"instruction": 3, "output": "Yes."}, "must be text"),
        ({"instruction": "Hi?", "output": "Yes.", "history": ["Hi?"]}, "history"),
        ({"prompt": 3, "completion": "Yes."}, "its prompt must be"),
        ({"conversations": [{"from": "alien", "value": "Hi?"}]}, "'alien'"),
        ({"messages": [ASKED, SAID], "system": 3}, "system must be text"),
        ({"messages": [ASKED, SAID], "images": ["a.png"]}, "reads text only"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, SAID]}, "neither text nor an image"),
    ],
)
def test_a_row_that_cant_be_used_says_why(record: Any, reason: str) -> None:
    with pytest.raises(BadRowError, match=reason):
        read(record)


NAMES = ("messages", "conversations", "prompt", "completion", "instruction", "output", "history", "images", "system",
         "input", "role", "content", "from", "value", "type", "text", "image", "image_url")  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.sampled_from(["user", "gpt", "assistant", "text", "image", " "])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_any_row_is_read_or_refused(record: Any) -> None:
    with suppress(BadRowError):
        assert read(record, open_image=lambda image: image)


# --- images ------------------------------------------------------------------------------------------


def opened(image: Any) -> Any:
    return ("opened", image)


def test_markers_take_the_images_in_order(tmp_path: Path) -> None:
    record = {
        "conversations": [
            {"from": "human", "value": "<image>First, <image>\nsecond?"},
            {"from": "gpt", "value": "Yes."},
        ],
        "images": ["a.png", {"bytes": b"png", "path": "b.png"}],
    }
    asked, said = read(record, open_image=opened, folder=tmp_path)
    assert asked["content"] == [
        {"type": "image", "image": ("opened", tmp_path / "a.png")},
        {"type": "text", "text": "First, "},
        {"type": "image", "image": ("opened", b"png")},
        {"type": "text", "text": "\nsecond?"},
    ]
    assert said == SAID


def test_images_without_markers_come_before_the_first_question() -> None:
    record = {"messages": [SYSTEM, ASKED, SAID], "image": b"png"}
    asked = read(record, open_image=opened)[1]
    assert asked["content"] == [{"type": "image", "image": ("opened", b"png")}, {"type": "text", "text": "Hi?"}]


def test_parts_of_openais_form_hold_their_images() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What? <image>"}]
    record = {"messages": [{"role": "user", "content": parts}, SAID]}
    asked = read(record, open_image=opened, folder=Path("photos"))[0]
    assert asked["content"] == [
        {"type": "image", "image": ("opened", Path("photos/a.png"))},
        {"type": "text", "text": "What? <image>"},
    ]
    with pytest.raises(BadRowError, match="a data set of the hub must hold the images themselves"):
        read(record, open_image=opened)


def test_a_marker_without_images_is_a_text() -> None:
    asked = {"role": "user", "content": "What does <image> mean?"}
    assert read({"messages": [asked, SAID]}) == [asked, SAID]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"messages": [{"role": "user", "content": "<image><image>?"}, SAID], "images": [b"1"]},
            "2 places .* 1 images",
        ),
        ({"messages": [ASKED, {"role": "assistant", "content": "<image>"}], "images": [b"1"]}, "in it"),
        ({"messages": [ASKED, SAID], "images": [b"broken"]}, "an image can't be read: broken"),
    ],
)
def test_images_out_of_place(record: Any, reason: str) -> None:
    def refuse(image: Any) -> Any:
        raise ValueError("broken")

    with pytest.raises(BadRowError, match=reason):
        read(record, open_image=refuse if "broken" in reason else opened)
