r"""Vision-SR1 as a game: who looks, who reads, who is paid for what."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripted import ScriptedSampler
from sparring.data import PromptSet, Row
from sparring.games.perception import CLOSE, OPEN, description_of, leaks, well_formed
from sparring.games.vision import Decoupled, Vision, summed
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.types import Payoff, children, of_role
from sparring.verify.extract import boxed

PERCEIVER = Role("perceiver", "{{ query }}", SamplingParams(64))
READER = Role("reader", "{{ description }} | {{ query }}", SamplingParams(32, temperature=0.0), weight=0.0)


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def right(queries: Sequence[str], answers: Sequence[str], answer: Sequence[str]) -> list[float | None]:
    """1 for the row's answer in the box; None for a boxed question mark, which nobody can judge."""
    found = [boxed(text) for text in answers]
    return [None if f == "?" else float(f == gold) for f, gold in zip(found, answer, strict=True)]


def game(rows: Sequence[Row] | None = None, **settings: Any) -> Vision:
    rows = rows or [Row("what colour?", columns={"answer": "red", "source": "toys"}, images=(png(1),))]
    given: dict[str, Any] = {
        "solver": PERCEIVER,
        "reader": READER,
        "prompts": PromptSet(rows, "pictures"),
        "reward": Reward(right, name="right"),
        "n_queries": len(rows),
        "n_answers": 4,
    }
    return Vision(**{**given, **settings})


def said(description: str | None, answer: str) -> str:
    tagged = "" if description is None else f"{OPEN}{description}{CLOSE}"
    return rf"{tagged}<think>hm</think>\boxed{{{answer}}}"


FOUR = [said("a red ball", "red"), said("a ball", "red"), said("a red ball", "blue"), said(None, "red")]


def played(replies: Sequence[str], read: Sequence[str], **settings: Any) -> tuple[Vision, list[Any], Any]:
    vision = game(**settings)
    sampler = ScriptedSampler({"perceiver": replies, "reader": read})
    turns = vision.play(sampler)
    return vision, turns, vision.payoffs(turns)


def test_who_is_paid_for_what_by_hand() -> None:
    vision, turns, payoffs = played(FOUR, [r"\boxed{red}", r"\boxed{green}", r"\boxed{red}"])
    seen = of_role(turns, PERCEIVER)
    assert [payoffs[turn].total for turn in seen] == pytest.approx([0.9 + 0.1 + 1, 0.9 + 0.1, 0.1 + 1, 0.9])
    assert [dict(payoffs[turn].parts) for turn in seen] == [
        {"accuracy": 0.9, "format": 0.1, "visual": 1.0},
        {"accuracy": 0.9, "format": 0.1, "visual": 0.0},
        {"accuracy": 0.0, "format": 0.1, "visual": 1.0},
        {"accuracy": 0.9, "format": 0.0, "visual": 0.0},
    ]
    assert not any(turn in payoffs for turn in of_role(turns, READER))
    advantages = vision.baseline(turns, payoffs)
    totals = np.array([2.0, 1.0, 1.1, 0.9])
    z = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-6)
    assert [advantages[turn] for turn in seen] == pytest.approx(z.tolist())
    assert set(advantages) == set(seen)


def test_the_reader_sees_the_description_and_the_question_and_no_picture() -> None:
    _, turns, _ = played(FOUR, [r"\boxed{red}"] * 3)
    readers = of_role(turns, READER)
    assert [turn.prompt.messages[-1]["content"] for turn in readers] == [
        "a red ball | what colour?",
        "a ball | what colour?",
        "a red ball | what colour?",
    ]
    seen = of_role(turns, PERCEIVER)
    assert [turn.parent for turn in readers] == seen[:3]  # one pass a description, none without
    shown = seen[0].prompt.messages[-1]["content"]
    assert [part["type"] for part in shown] == ["image", "text"]
    assert all(turns.index(turn.parent) < turns.index(turn) for turn in readers)


def test_decoupled_by_hand() -> None:
    weights = {"accuracy": 0.9, "format": 0.1, "visual": 1.0}
    vision, turns, payoffs = played(
        FOUR, [r"\boxed{red}", r"\boxed{green}", r"\boxed{red}"], combine=Decoupled(weights)
    )
    parts = {"accuracy": [1, 1, 0, 1], "format": [1, 1, 1, 0], "visual": [1, 0, 1, 0]}
    expected = np.zeros(4)
    for name, values in parts.items():
        values_G = weights[name] * np.array(values, dtype=float)
        expected += weights[name] * (values_G - values_G.mean()) / (values_G.std(ddof=1) + 1e-6)
    advantages = vision.baseline(turns, payoffs)
    assert [advantages[turn] for turn in of_role(turns, PERCEIVER)] == pytest.approx(expected.tolist())


def test_a_part_without_spread_moves_nothing_and_a_group_of_one_is_zero() -> None:
    pays = [Payoff(1.0, {"accuracy": 0.9, "format": 0.1}), Payoff(0.1, {"accuracy": 0.0, "format": 0.1})]
    assert Decoupled({"accuracy": 0.9, "format": 0.1})(pays) == pytest.approx(Decoupled({"accuracy": 0.9})(pays))
    assert summed(pays[:1]).tolist() == [0.0]
    assert Decoupled({"accuracy": 1.0})(pays[:1]).tolist() == [0.0]


def test_with_visual_weight_0_nobody_reads() -> None:
    vision, turns, payoffs = played(FOUR, [], visual_weight=0.0)
    assert of_role(turns, READER) == []
    assert vision.roles == (PERCEIVER,)
    assert [payoffs[turn].total for turn in turns] == pytest.approx([1.0, 1.0, 0.1, 0.9])
    assert all("visual" not in payoffs[turn].parts for turn in turns)


def test_a_question_without_a_picture_is_paid_for_answer_and_form() -> None:
    rows = [Row("2 + 2?", columns={"answer": "4"})]
    _, turns, payoffs = played([said("nothing", "4"), said("nothing", "5")], [], rows=rows, n_answers=2)
    assert [payoffs[turn].total for turn in turns] == pytest.approx([1.0, 0.1])
    assert turns[0].prompt.messages[-1]["content"] == "2 + 2?"


ASKED_MORE = Row(
    "what colour?",
    columns={
        "answer": "red",
        "also": [{"question": "what thing?", "answer": "ball"}, {"question": "how big?", "answer": "small"}],
    },
    images=(png(1),),
)


def test_further_questions_share_the_visual_part() -> None:
    replies = [said("a red ball", "red"), said(None, "red"), said("red", "red")]
    read = [r"\boxed{red}", r"\boxed{ball}", r"\boxed{?}", r"\boxed{red}", r"\boxed{cat}", r"\boxed{big}"]
    settings: dict[str, Any] = {"rows": [ASKED_MORE], "extra_questions": 2, "n_answers": 3}
    vision, turns, payoffs = played(replies, read, **settings)
    seen, readers = of_role(turns, PERCEIVER), of_role(turns, READER)
    asked = [turn.prompt.messages[-1]["content"] for turn in readers]
    assert asked[:3] == ["a red ball | what colour?", "a red ball | what thing?", "a red ball | how big?"]
    assert [turn.prompt.info["answer"] for turn in readers] == ["red", "ball", "small"] * 2
    # The third reply can't be judged: the share is of the two that can.
    assert [payoffs[turn].parts["visual"] for turn in seen] == pytest.approx([1.0, 0.0, 1 / 3])
    assert vision.metrics(turns, payoffs)["vision/reader/all"] == pytest.approx((1 + 0 + 1 / 3) / 3)


def test_fewer_further_questions_than_wanted_are_asked_as_they_are_and_none_by_default() -> None:
    replies, read = [said("a red ball", "red")], [r"\boxed{red}"] * 3
    counts = {
        wanted: len(of_role(played(replies, read, rows=[ASKED_MORE], extra_questions=wanted, n_answers=1)[1], READER))
        for wanted in (0, 1, 9)
    }
    assert counts == {0: 1, 1: 2, 9: 3}


def test_a_trained_reader_is_compared_question_by_question() -> None:
    reader = replace(READER, weight=1.0, sampling=replace(READER.sampling, temperature=1.0))
    replies, read = [said("a", "red"), said("b", "red")], [r"\boxed{red}", r"\boxed{ball}"] * 2
    vision = game([ASKED_MORE], extra_questions=1, n_answers=2, reader=reader)
    turns = vision.play(ScriptedSampler({"perceiver": replies, "reader": read}))
    groups = [
        [str(turn.prompt.info["query_text"]) for turn in group] for group in vision.groups(turns, vision.payoffs(turns))
    ]
    assert sorted(groups) == [["what colour?"] * 2, ["what colour?"] * 2, ["what thing?"] * 2]  # one the perceiver's


def test_sources_that_hardly_two_rows_share_are_told_apart_by_type() -> None:
    rows = [
        Row("what colour?", columns={"answer": "red", "source": f"{i}.png", "problem_type": "word"}, images=(png(i),))
        for i in range(13)
    ]
    replies, read = [said("a red ball", "red")] * 13, [r"\boxed{red}"] * 12 + [r"\boxed{blue}"]
    vision, turns, payoffs = played(replies, read, rows=rows, n_answers=1)
    figures = {name: value for name, value in vision.metrics(turns, payoffs).items() if "/reader/" in name}
    assert {name for name in figures if name.startswith("vision/")} == {"vision/reader/all", "vision/reader/word"}
    assert figures["vision/reader/word"] == pytest.approx(12 / 13)


@pytest.mark.parametrize(
    "also", ["what?", [{"answer": "red"}], [{"question": "how many?"}], [3], {"question": "what?"}]
)
def test_further_questions_of_another_form_are_named(also: Any) -> None:
    row = Row("what colour?", columns={"answer": "red", "also": also}, images=(png(1),))
    with pytest.raises(ValueError, match=r"the row that asks 'what colour\?'.*column also must be a list"):
        played([said("a", "red")], [], rows=[row], extra_questions=1, n_answers=1)


def test_what_can_not_be_judged_goes_unpaid() -> None:
    replies = [said("a", "red"), said("b", "?"), said("c", "red"), said("d", "blue")]
    vision, turns, payoffs = played(replies, [r"\boxed{red}", r"\boxed{red}", r"\boxed{?}", "no box"])
    seen = of_role(turns, PERCEIVER)
    assert [turn in payoffs for turn in seen] == [True, False, False, True]
    assert vision.metrics(turns, payoffs)["reward/unscored"] == 0.5


def test_a_trained_reader_is_compared_over_all_descriptions_of_the_question() -> None:
    reader = Role("reader", "{{ description }} | {{ query }}", SamplingParams(32), weight=0.5)
    vision, turns, payoffs = played(FOUR, [r"\boxed{red}", r"\boxed{green}", r"\boxed{red}"], reader=reader)
    readers = of_role(turns, reader)
    assert [payoffs[turn].total for turn in readers] == pytest.approx([0.9, 0.0, 0.9])
    advantages = vision.baseline(turns, payoffs)
    z = np.array([0.3, -0.6, 0.3]) / (np.std([0.9, 0.0, 0.9], ddof=1) + 1e-6)
    assert [advantages[turn] for turn in readers] == pytest.approx(z.tolist())


def test_equal_questions_drawn_twice_are_two_groups() -> None:
    row = Row("what colour?", columns={"answer": "red"}, images=(png(1),))
    vision, turns, payoffs = played([said("x", "red"), said("x", "red"), said("x", "blue"), said("x", "blue")],
                                    [r"\boxed{red}"] * 4, rows=[row, row], n_answers=2)  # fmt: skip
    assert set(vision.baseline(turns, payoffs).values()) == {0.0}  # each group has no spread


def test_a_picture_that_can_not_be_read_leaves_its_question_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        Row("good?", columns={"answer": "red"}, images=(png(1),)),
        Row("gone?", columns={"answer": "red"}, images=(tmp_path / "gone.png",)),
        Row("broken?", columns={"answer": "red"}, images=(b"no image",)),
    ]
    with caplog.at_level(logging.WARNING):
        vision, turns, payoffs = played([said("x", "red")] * 2, [r"\boxed{red}"] * 2, rows=rows, n_answers=2)
    assert len(of_role(turns, PERCEIVER)) == 2
    assert "gone.png" in caplog.text
    assert vision.metrics(turns, payoffs)["data/unreadable_pictures"] == 2
    assert "data/unreadable_pictures" not in vision.metrics(turns, payoffs)


def test_the_figures_by_hand() -> None:
    vision, turns, payoffs = played(FOUR, [r"\boxed{red}", r"\boxed{green}", r"\boxed{red}"])
    figures = vision.metrics(turns, payoffs)
    assert figures["vision/described"] == 0.75
    assert figures["vision/boxed"] == 1.0
    assert figures["vision/leaked"] == pytest.approx(2 / 3)
    assert figures["vision/reader/all"] == figures["vision/reader/toys"] == 0.5
    assert figures["vision/description_length"] == pytest.approx((10 + 6 + 10) / 3)
    assert figures["payoff/perceiver/accuracy"] == pytest.approx(0.9 * 0.75)
    assert figures["dead_groups/perceiver"] == 0.0
    assert figures["length/reader"] > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (said("x", "1"), True),
        (f" {said('x', '1')} ", True),
        (f"{OPEN}x{CLOSE}\n\n<think>so</think>\n\\boxed{{\\frac{{1}}{{2}}}}", True),
        (said(None, "1"), False),
        (said("", "1"), False),
        (said("x", "1") + " done", False),
        (rf"{OPEN}x{CLOSE}\boxed{{1}}", False),
        (rf"{OPEN}x{CLOSE}<think></think>\boxed{{1}}", False),
        (rf"{OPEN}x{CLOSE}<think>a</think>\boxed{{1", False),
        (rf"{OPEN}x{CLOSE}<think>a</think>\boxed{{1}}\boxed{{2}}", False),
        (rf"{OPEN}x{CLOSE}{OPEN}y{CLOSE}<think>a</think>\boxed{{1}}", False),
        (rf"<think>a</think>{OPEN}x{CLOSE}\boxed{{1}}", False),
        (f"{OPEN}x{CLOSE}<think>a</think>the answer is 1", False),
    ],
)
def test_the_form(text: str, expected: bool) -> None:
    assert well_formed(text) is expected


PIECES = st.sampled_from([OPEN, CLOSE, "<think>", "</think>", "\\boxed{", "}", "{", "red", " ", "\n", "\x00", "é"])


@given(st.lists(PIECES, max_size=40).map("".join) | st.text())
def test_readers_are_total(text: str) -> None:
    found = description_of(text)
    assert found is None or (found and found == found.strip() and found in text)
    if well_formed(text):
        assert found is not None
        assert boxed(text) is not None
    leaks(text, "red")


def test_readers_take_time_that_grows_with_the_text_alone() -> None:
    for piece in (OPEN, f"{OPEN}x{CLOSE}<think>", "\\boxed{", "<think></think>"):
        text = piece * 20_000
        assert well_formed(text) is False
        description_of(text)


def test_children_are_known_by_identity() -> None:
    _, turns, _ = played([said("same", "red")] * 4, [r"\boxed{red}"] * 4)
    assert all(len(replies) == 1 for replies in children(turns, READER).values())
