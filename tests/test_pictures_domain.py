"""The picture world as a domain: what it asks, how it is judged, and that the games can be played on it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import small_run
from sparring.build import build_game, domain_named
from sparring.config import ConfigError, resolve
from sparring.domains import Described
from sparring.games.vision import FURTHER, Vision
from sparring.models import locate
from sparring.pictures.descriptions import scene_of
from sparring.pictures.domain import MORE_QUESTIONS, PICTURES, EndlessPictures, questions
from sparring.pictures.questions import answer, parse_question
from sparring.pictures.world import TEST_SEED, draw, held_out
from sparring.recipes import recipe
from sparring.run import train
from sparring.runfolder import RunFolder
from sparring.shipped import is_shipped


def test_training_rows_are_drawn_anew_for_every_step_and_seed_and_never_held_out() -> None:
    rows = EndlessPictures("pictures:train")
    drawn = {(step, seed): rows.at(step, 6, seed) for step in (1, 2) for seed in (0, 1)}
    assert rows.at(2, 6, 1) == drawn[2, 1]
    scenes = [row.columns["scene"] for some in drawn.values() for row in some]
    assert len(set(scenes)) == len(scenes)
    assert not any(held_out(scene_of(scene)) for scene in scenes)
    assert rows.skipped == 0


def test_a_training_row_holds_its_answer_and_further_questions_with_theirs() -> None:
    for row in EndlessPictures("pictures:train").at(1, 20, 3):
        scene, asked = scene_of(str(row.columns["scene"])), parse_question(row.query)
        assert asked is not None
        assert row.columns["answer"] == answer(scene, asked)
        assert row.columns["source"] == asked.kind
        more = [(parse_question(one["question"]), one["answer"]) for one in row.columns[FURTHER]]
        assert 0 < len(more) <= MORE_QUESTIONS
        assert all(question and answer(scene, question) == gold for question, gold in more)
        assert len({row.query, *(one["question"] for one in row.columns[FURTHER])}) == len(more) + 1


def test_held_out_items_hold_the_very_picture() -> None:
    assert PICTURES.tests is not None
    items, drawn = PICTURES.tests(TEST_SEED, 5), questions("held-out", TEST_SEED, 5)
    for item, one in zip(items, drawn, strict=True):
        with Image.open(io.BytesIO(item.images[0])) as picture:
            assert np.array_equal(
                np.asarray(picture), np.asarray(draw(one.scene, np.random.default_rng(one.noise_seed)))
            )
        assert (item.query, item.subset) == (one.question, (one.kind,))
        assert item.columns["answer"] == one.answer


def test_the_reward_is_for_the_boxed_answer() -> None:
    assert PICTURES.reward is not None
    texts = [r"so \boxed{Red.}", r"\boxed{blue}", "red", r"\boxed{red} no: \boxed{blue}"]
    assert PICTURES.reward(["?"] * 4, texts, answer=["red"] * 4) == [1.0, 0.0, 0.0, 0.0]


def test_the_grader_by_hand() -> None:
    assert PICTURES.sufficient is not None
    said = "top-left:red-circle"
    asked = [
        ("What colour is at top-left?", "red"),
        ("What shape is at top-left?", "cross"),
        ("Which row has most?", "top"),
    ]
    assert PICTURES.sufficient([Described(q, said, gold) for q, gold in asked]) == [True, False, True]
    with pytest.raises(ValueError, match="knows no question 'Why\\?'"):
        PICTURES.sufficient([Described("Why?", said, "red")])


def test_faithfulness_by_hand() -> None:
    assert PICTURES.tests is not None
    assert PICTURES.faithful is not None
    item = PICTURES.tests(TEST_SEED, 1)[0]
    scene = "top-left:red-circle top-right:blue-cross bottom-left:green-square"
    first = type(item)("a", (), "What colour is at top-left?", {"scene": scene})
    second = type(item)("b", (), "How many are in the bottom row?", {"scene": scene})
    told = ["top-left:red-circle top-right:blue-square", None]
    assert PICTURES.faithful([first, second], told) == {
        "all": {"precision": 1 / 2, "recall": 1 / 6},
        "asked": {"precision": 1.0, "recall": 1 / 2},
        "unasked": {"precision": 0.0, "recall": 0.0},
    }
    nothing = PICTURES.faithful([second], [None])
    assert nothing["all"] == {"precision": None, "recall": 0.0}


@pytest.mark.parametrize(("preset", "roles"), [("pictures", 2), ("pictures-answer-only", 1)])
def test_the_presets_play_the_game_on_it(preset: str, roles: int) -> None:
    config = recipe("vision-sr1", preset)
    built = build_game(config)
    assert isinstance(built, Vision)
    assert len(built.roles) == roles
    assert built.prompts.name == "pictures:train"
    assert is_shipped(config.model.path)
    assert Path(locate(config.model.path)).is_dir()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("game.kind=lsp",), "the pictures domain has no Challenger"),
        (("game.kind=grpo",), "GRPO doesn't look at pictures"),
        (("game.prompts=pictures:easy",), "has the prompt set pictures:train, not pictures:easy"),
    ],
)
def test_what_can_not_be_played_is_refused(given: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build_game(resolve(recipe("vision-sr1", "pictures"), None, given))


def test_an_unknown_domain_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="pictures"):
        resolve(recipe("vision-sr1", "pictures"), None, ("game.domain=picture",))
    assert domain_named("pictures") is PICTURES


def test_a_run_on_it_looks_reads_and_is_compared_with_its_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluation = train(small_run("vision-sr1", "steps=2"), run)
    assert evaluation is not None
    steps = [row for row in RunFolder(run).read_metrics() if "loss" in row]
    assert len(steps) == 2
    assert all(float(row["vision/described"] or 0) > 0.9 for row in steps)
    assert {"vision/reader/all", "payoff/perceiver/visual", "length/reader"} <= set(steps[0])
    assert is_shipped(json.loads((run / "lineage.json").read_text())["stages"][0]["start"])
    assert "pictures" in (run / "model/README.md").read_text()
