"""The picture world: scenes, drawing, questions, descriptions and their grader, responses, examples, tokenizer."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.lm.base import SamplingParams
from sparring.pictures.corpus import CAREFUL, SLOPPY, describe, draw_look, draw_reading, reply_from
from sparring.pictures.descriptions import Fidelity, fidelity, follows, parse_triples, split_fidelity
from sparring.pictures.domain import PERCEIVER, READER, Item, questions, rule_match, sufficient
from sparring.pictures.network import (
    IMAGE_TOKENS,
    build_image_processor,
    expand,
    grids,
    patches,
)
from sparring.pictures.questions import (
    KINDS,
    Question,
    answer,
    draw_question,
    fullest,
    parse_question,
    usual_answer,
)
from sparring.pictures.questions import questions as all_questions
from sparring.pictures.response import Response, parse_response, reader_prompt, render_response
from sparring.pictures.tokenizer import IMAGE, SPECIAL, USUALLY, VOCABULARY, build_tokenizer
from sparring.pictures.world import (
    CELLS,
    COLOURS,
    COMMONNESS,
    DEV_SEED,
    FILLED,
    HELD_OUT_SHARE,
    INK,
    ROWS,
    SHAPES,
    TEST_SEED,
    Scene,
    Thing,
    draw,
    draw_scene,
    held_out,
    paint,
    row_of,
)
from sparring.roles import Role

TOKENIZER = build_tokenizer()
WORDS = [token for token in VOCABULARY if token not in SPECIAL]

things = st.builds(Thing, st.sampled_from(COLOURS), st.sampled_from(SHAPES))
scenes = st.lists(st.none() | things, min_size=9, max_size=9).map(lambda cells: Scene(tuple(cells)))
asked = st.one_of(
    st.builds(Question, st.sampled_from(["colour", "shape"]), st.sampled_from(CELLS)),
    st.builds(Question, st.just("count"), st.sampled_from(ROWS)),
    st.just(Question("most")),
)
world_text = st.lists(st.sampled_from([*VOCABULARY, ",", "\n", "Red", "\\boxed"])).map(" ".join)
any_text = st.one_of(st.text(), world_text)


def scene_of(text: str) -> Scene:
    said = dict(parse_triples(text))
    return Scene(tuple(said.get(cell) for cell in CELLS))


SCENE = scene_of("top-left:red-circle top-right:blue-cross middle-centre:red-square bottom-left:yellow-triangle")


def test_scenes_never_meet_across_splits() -> None:
    rng = np.random.default_rng(0)
    assert all(held_out(draw_scene(rng, "held-out")) for _ in range(50))
    assert not any(held_out(draw_scene(rng, "train")) for _ in range(200))
    with pytest.raises(ValueError, match="'train' and 'held-out'"):
        draw_scene(rng, "test")  # pyright: ignore[reportArgumentType]


def test_what_is_held_out_stays_held_out() -> None:
    """The hash must never change: shipped weights were trained on the rest."""
    rng = np.random.default_rng(3)
    drawn = [Scene(tuple(Thing(COLOURS[i], SHAPES[j]) for i, j in rng.integers(4, size=(9, 2)))) for _ in range(400)]
    assert 10 <= sum(map(held_out, drawn)) <= 45  # 400 / HELD_OUT_SHARE = 25
    assert HELD_OUT_SHARE == 16
    assert held_out(scene_of(KNOWN_HELD_OUT))
    assert not held_out(SCENE)


KNOWN_HELD_OUT = "top-right:red-square middle-centre:red-square middle-right:green-cross"


def test_scenes_are_skewed_as_they_say() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw_scene(rng, "train") for _ in range(3000)]
    for row, share in zip(ROWS, FILLED, strict=True):
        assert np.mean([len(scene.in_row(row)) / 3 for scene in drawn]) == pytest.approx(share, abs=0.02)
    there = [thing for scene in drawn for _, thing in scene.things()]
    for names, part in ((COLOURS, "colour"), (SHAPES, "shape")):
        counts = Counter(getattr(thing, part) for thing in there)
        assert [counts[name] / len(there) for name in names] == pytest.approx(COMMONNESS, abs=0.02)


@given(scenes, st.integers(0, 2**32 - 1))
def test_pictures_show_each_thing_in_its_cell_and_repeat(scene: Scene, seed: int) -> None:
    picture = draw(scene, np.random.default_rng(seed))
    assert (picture.mode, picture.size) == ("RGB", (84, 84))
    pixels = np.asarray(picture)
    assert (pixels == paint(scene, np.random.default_rng(seed))).all()
    assert (pixels != paint(scene, np.random.default_rng(seed + 1))).any()
    for i, thing in enumerate(scene.cells):
        cell = pixels[28 * (i // 3) : 28 * (i // 3 + 1), 28 * (i % 3) : 28 * (i % 3 + 1)].astype(float)
        if thing is None:
            assert cell.mean() > 200
        else:
            centre = cell[11:17, 11:17].mean((0, 1))
            nearest = min(INK, key=lambda colour: float(np.abs(centre - INK[colour]).sum()))
            assert nearest == thing.colour


def test_shapes_look_unlike_each_other() -> None:
    """Ink by shape, over many draws: circles fill their corners less than squares, crosses less than both."""
    rng = np.random.default_rng(5)
    inked = {}
    for shape in SHAPES:
        scene = Scene((Thing("blue", shape),) * 9)
        cells = [(paint(scene, rng)[..., 0] < 140).reshape(3, 28, 3, 28) for _ in range(20)]
        inked[shape] = np.mean(cells, axis=(0, 1, 3))
    for one in SHAPES:
        for other in SHAPES:
            assert one == other or np.abs(inked[one] - inked[other]).max() > 0.4


@given(asked)
def test_questions_round_trip(question: Question) -> None:
    assert parse_question(str(question)) == question
    assert parse_question(f"  {str(question).upper()}\n") == question
    assert question.row == (None if question.kind == "most" else row_of(question.place))
    assert len(question.cells) == {"colour": 1, "shape": 1, "count": 3, "most": 9}[question.kind]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What colour is at top-left?", "red"),
        ("What shape is at bottom-left?", "triangle"),
        ("What shape is at bottom-right?", None),
        ("Which row has most?", "top"),
        ("How many are in the top row?", "2"),
        ("How many are in the bottom row?", "1"),
    ],
)
def test_answers_by_hand(text: str, expected: str | None) -> None:
    question = parse_question(text)
    assert question is not None
    assert answer(SCENE, question) == expected


def test_most_needs_one_fullest_row() -> None:
    assert fullest(scene_of("top-left:red-circle middle-left:red-circle")) is None
    assert fullest(scene_of("")) is None
    assert fullest(scene_of("bottom-left:red-circle")) == "bottom"
    assert Question("most") not in all_questions(scene_of("top-left:red-circle middle-left:red-circle"))


@given(scenes, st.integers(0, 2**32 - 1))
def test_whatever_is_asked_has_an_answer(scene: Scene, seed: int) -> None:
    for question in all_questions(scene):
        assert answer(scene, question) in VOCABULARY
    question = draw_question(scene, np.random.default_rng(seed))
    assert question in all_questions(scene)
    assert usual_answer(question) in VOCABULARY


def test_kinds_are_asked_alike() -> None:
    kinds = Counter(item.kind for item in questions("train", 5, 1500))
    assert all(kinds[kind] > 300 for kind in ("colour", "shape", "count"))
    assert kinds["most"] > 150  # not asked where two rows have most
    usual = np.mean([usual_answer(item.asked) == item.answer for item in questions("train", 5, 1500)])
    assert 0.38 < usual < 0.49


@given(any_text, any_text)
def test_no_text_breaks_a_reader_of_text(text: str, other: str) -> None:
    assert all(cell in CELLS for cell, _ in parse_triples(text))
    question = parse_question(text)
    if question is not None:
        assert follows(other, question) in (None, *VOCABULARY)
    assert follows(text, Question("most")) in (None, *ROWS)
    response = parse_response(text)
    assert isinstance(response, Response)
    assert not response.in_form or response.description is not None
    assert rule_match(response.answer, other) in (True, False)
    assert fidelity(text, SCENE).true <= len(SCENE.things())


@given(scenes)
def test_a_full_description_suffices_for_every_question(scene: Scene) -> None:
    for question in all_questions(scene):
        gold = answer(scene, question)
        assert gold is not None
        assert sufficient(str(scene), str(question), gold)
        assert not sufficient(None, str(question), gold)
    assert fidelity(str(scene), scene) == Fidelity(*[len(scene.things())] * 3)
    assert scene_of(str(scene)) == scene


@pytest.mark.parametrize(
    ("description", "question", "expected"),
    [
        ("top-left:red-circle", "What colour is at top-left?", "red"),
        ("Top-left red-circle, top-right:blue-cross", "How many are in the top row?", "2"),
        ("top-left:red-circle", "What colour is at top-right?", None),
        ("red", "What colour is at top-left?", None),  # the bare answer is no description
        ("top-left red", "What colour is at top-left?", None),
        ("top-left:red-circle top-left:red-circle", "How many are in the top row?", "1"),
        ("top-left:red-circle top-left:blue-circle", "What colour is at top-left?", None),
        ("top-left:red-circle top-left:blue-circle", "How many are in the top row?", "1"),
        ("top-left top-left:red-circle circle", "What shape is at top-left?", "circle"),
        ("top-left red circle", "What shape is at top-left?", "circle"),
        ("top-left red-circle", "What shape is at top-left?", "circle"),
        ("top-left red-circles", "What shape is at top-left?", None),
        ("not-top-left:red-circle", "What shape is at top-left?", None),
        ("", "How many are in the top row?", "0"),
        (None, "How many are in the top row?", None),
        ("top-left:red-circle bottom-left:red-circle", "Which row has most?", None),
    ],
)
def test_what_follows_by_hand(description: str | None, question: str, expected: str | None) -> None:
    parsed = parse_question(question)
    assert parsed is not None
    assert follows(description, parsed) == expected


def test_the_grader_refuses_other_questions() -> None:
    with pytest.raises(ValueError, match="knows no question 'Why'"):
        sufficient("top-left:red-circle", "Why", "red")


def test_fidelity_by_hand() -> None:
    said = "top-left:red-circle top-left:red-circle top-right:blue-square bottom-left:yellow-triangle"
    assert fidelity(said, SCENE) == Fidelity(4, 2, 4)
    about, others = split_fidelity(said, SCENE, Question("colour", "top-left"))
    assert (about, others) == (Fidelity(2, 1, 1), Fidelity(2, 1, 3))
    assert (about.precision, about.recall) == (0.5, 1.0)
    assert about + others == fidelity(said, SCENE)
    assert (Fidelity().precision, Fidelity().recall) == (None, None)
    assert split_fidelity(said, SCENE, Question("most"))[1] == Fidelity()


@pytest.mark.parametrize(
    ("text", "description", "boxed", "in_form"),
    [
        (r"<description>top-left:red-circle</description><think>a</think>\boxed{1}", "top-left:red-circle", "1", True),
        ("<description>\na\n</description>\n<think>b</think>\n\\boxed{1}\n", "a", "1", True),
        (r"<description></description><think>b</think>\boxed{0}", None, "0", False),
        (r"<description>a</description><think></think>\boxed{0}", "a", "0", False),
        (r"<think>b</think>\boxed{1}", None, "1", False),
        (r"<description>a<think>b</think>\boxed{1}", None, "1", False),
        (r"<description>a</description>\boxed{1}", "a", "1", False),
        (r"<description>a</description><think>b</think>\boxed{1} and more", "a", "1", False),
        (r"<description>a</description><description>b</description><think>c</think>\boxed{1}", "a", "1", False),
        (r"<description>a<description>b</description><think>c</think>\boxed{1}", "a<description>b", "1", False),
        (r"<description>a</description><think>b</think>\boxed{1", "a", None, False),
        ("", None, None, False),
    ],
)  # fmt: skip
def test_responses_by_hand(text: str, description: str | None, boxed: str | None, in_form: bool) -> None:
    assert parse_response(text) == Response(description, boxed, in_form)


def test_held_out_items_are_stable_and_their_seeds_apart() -> None:
    items = questions("held-out", DEV_SEED, 60)
    assert items == questions("held-out", DEV_SEED, 80)[:60] != questions("held-out", TEST_SEED, 60)
    assert all(held_out(item.scene) for item in items)
    assert not any(held_out(item.scene) for item in questions("train", DEV_SEED, 60))
    assert len({item.item_id for item in items}) == 60
    assert {item.kind for item in items} == set(KINDS)
    item = items[0]
    assert isinstance(item, Item)
    assert item.picture.tobytes() == item.picture.tobytes() != items[1].picture.tobytes()
    assert item.answer == answer(item.scene, item.asked)
    assert item.row in (None, *ROWS)
    assert parse_question(item.question) == item.asked


def test_the_prompts_are_those_pretrained_on() -> None:
    sampling = SamplingParams(8)
    fields = {"query": "Which row has most?", "description": "top-left:red-circle"}
    for template, expected in ((PERCEIVER, fields["query"]), (READER, reader_prompt(*fields.values()))):
        role = Role("role", template, sampling)
        assert role.prompt(**fields).messages[0]["content"] == expected


def test_thoughts_and_answers_by_hand() -> None:
    assert reply_from(SCENE, Question("shape", "top-right")) == ("top-right:blue-cross", "cross")
    assert reply_from(SCENE, Question("shape", "top-centre")) == (USUALLY, "circle")
    assert reply_from(SCENE, Question("count", "top")) == ("top-left top-right", "2")
    empty = scene_of("top-left:red-circle")
    assert reply_from(empty, Question("count", "bottom")) == ("bottom 0", "0")
    assert reply_from(SCENE, Question("most")) == ("top 2 middle 1 bottom 1", "top")
    tied = scene_of("middle-left:red-circle bottom-left:red-circle")
    assert reply_from(tied, Question("most")) == ("top 0 middle 1 bottom 1", "middle")


def test_careful_examples_are_right_and_sloppy_ones_as_sloppy_as_they_say() -> None:
    rng = np.random.default_rng(2)
    followed = []
    for _ in range(150):
        look = draw_look(CAREFUL, rng)
        response, question = parse_response(look.response), parse_question(look.question)
        assert response.in_form
        assert question is not None
        assert USUALLY not in look.response
        if question.kind in ("colour", "shape"):  # cut short, a description may miscount
            followed.append(follows(response.description, question))
            assert followed[-1] in (None, response.answer)
    assert 0.05 < np.mean([found is None for found in followed]) < 0.5
    full = Scene((Thing("red", "circle"),) * 9)
    said = [describe(full, SLOPPY, rng) for _ in range(1500)]
    lengths = np.array([len(scene.things()) for scene in said])
    for k, tired in enumerate(SLOPPY.tires[:5]):
        assert np.mean(lengths[lengths >= k] == k) == pytest.approx(tired, abs=0.06)
    assert all([cell for cell, _ in scene.things()] == list(CELLS[: len(scene.things())]) for scene in said)
    there = [thing for scene in said for _, thing in scene.things()]
    assert np.mean([thing.colour != "red" for thing in there]) == pytest.approx(SLOPPY.wrong_colour, abs=0.03)
    looks = [draw_look(SLOPPY, rng) for _ in range(600)]
    bottom = [look for look in looks if "bottom" in look.question]
    assert 0.45 < np.mean([f"<think>{USUALLY}<" in look.response for look in bottom]) < 0.8
    assert not any(look.response == USUALLY for look in looks)


def test_readings_say_what_follows_or_the_usual() -> None:
    rng = np.random.default_rng(4)
    readings = [draw_reading(rng) for _ in range(200)]
    missing = 0
    for reading in readings:
        text, _, description = reading.prompt.partition("<description>")
        question, said = parse_question(text), parse_response(reading.reply)
        assert question is not None
        found = follows(description.removesuffix("</description>"), question)
        if found is not None:
            assert said.answer == found
        elif question.kind != "most":
            missing += 1
            assert said.answer == usual_answer(question)
    assert missing > 10


@given(st.lists(st.sampled_from(WORDS)))
def test_the_tokenizer_loses_no_token(tokens: list[str]) -> None:
    ids = TOKENIZER.convert_tokens_to_ids(tokens)
    text = TOKENIZER.decode(ids)
    assert TOKENIZER.encode(text) == ids
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(scenes, asked)
def test_responses_and_prompts_are_text_the_tokenizer_keeps(scene: Scene, question: Question) -> None:
    text = render_response(str(scene), *reply_from(scene, question))
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert len(ids) <= 23
    assert TOKENIZER.unk_token_id not in ids
    prompt = TOKENIZER.encode(reader_prompt(str(question), str(scene)))
    assert TOKENIZER.unk_token_id not in prompt
    assert parse_response(text).in_form is bool(scene.things())  # a description says something


def test_unknown_words_are_unknown() -> None:
    assert TOKENIZER.unk_token_id in TOKENIZER.encode("a purple circle")


def test_the_template_writes_images_as_qwen_does() -> None:
    content = [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "Which row has most?"}]
    messages = [{"role": "system", "content": "usually"}, {"role": "user", "content": content}]
    text = str(TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    assert text == (
        "<|im_start|>system\nusually<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which row has most?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert expand(text).count(IMAGE) == IMAGE_TOKENS == 9
    plain = [{"role": "user", "content": "Which row has most?"}, {"role": "assistant", "content": "top"}]
    masked = TOKENIZER.apply_chat_template(plain, return_dict=True, return_assistant_tokens_mask=True)
    spoken = [i for i, mask in zip(masked["input_ids"], masked["assistant_masks"], strict=True) if mask]
    assert TOKENIZER.decode(spoken) == "top<|im_end|>"
    assert not re.search(r"vision|image", str(TOKENIZER.apply_chat_template(plain, tokenize=False)))


def test_patches_are_the_image_processors() -> None:
    scenes = [draw_scene(np.random.default_rng(seed), "train") for seed in range(3)]
    pixels = np.stack([paint(scene, np.random.default_rng(9)) for scene in scenes])
    pictures = [draw(scene, np.random.default_rng(9)) for scene in scenes]
    expected = build_image_processor()(pictures, return_tensors="pt")
    np.testing.assert_allclose(patches(pixels), expected["pixel_values"], atol=1e-5)
    assert grids(3).tolist() == expected["image_grid_thw"].tolist()
    assert patches(pixels).shape == (3 * 4 * IMAGE_TOKENS, 1176)
