"""Pictures of a run: kept beside the turns, shown on the page and named in the terminal."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chromium import chromium_fixture  # noqa: F401
from conftest import Recorder
from sparring import gallery
from sparring.cli import main
from sparring.config import resolve
from sparring.gallery import Gallery, kept, name_of, shown_by
from sparring.images import Picture
from sparring.lm.base import SamplingParams
from sparring.recipes import recipe
from sparring.records import turn_rows
from sparring.report.browser import browser
from sparring.report.live import followed
from sparring.report.page import page_html
from sparring.report.pictures import Pictures
from sparring.report.turns import read_turns
from sparring.roles import Role
from sparring.run import resume, train
from sparring.runfolder import RunFolder
from sparring.types import Prompt, Turn
from test_report_browser import ATTACK, Steps, browsing, cards, told, write_page
from tiny_vision import save_tiny_qwen25vl

FORM = "<description>{}</description><think>{}</think>\\boxed{{{}}}"


def image(seed: int, width: int = 30, height: int = 20) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def picture(seed: int, width: int = 30, height: int = 20) -> Picture:
    return Picture.open(image(seed, width, height))


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def turn_on(*shown: Picture, text: str = "What?", parent: Turn | None = None) -> Turn:
    parts = [*({"type": "image", "image": one} for one in shown), {"type": "text", "text": text}]
    role = Role("perceiver", "{{ query }}", SamplingParams(max_new_tokens=4))
    prompt = Prompt(({"role": "user", "content": parts if shown else text},), parent)
    return Turn(role, prompt, (1,), (2,), np.zeros(1, np.float32), "said", "stop")


class TestKeeping:
    def test_small_pictures_are_kept_exactly_and_large_ones_smaller(self, tmp_path: Path) -> None:
        small, large = picture(0, 256, 100), picture(1, 900, 300)
        Gallery(tmp_path / "pictures", pytest.fail).keep([small, large])
        first, second = (kept(tmp_path / "pictures", name_of(one)) for one in (small, large))
        assert first is not None
        assert second is not None
        assert (first.suffix, second.suffix) == (".png", ".webp")
        assert name_of(small) == f"{-small.handle:x}"
        assert Picture.open(first).handle == small.handle  # to the pixel
        with Image.open(second) as thumbnail:
            assert thumbnail.size == (256, 85)

    def test_each_is_written_once_after_a_resume_too(self, tmp_path: Path) -> None:
        one, same, other = picture(0), picture(0), picture(1)
        Gallery(tmp_path, pytest.fail).keep([one, same])
        (file,) = tmp_path.iterdir()
        before = file.stat()
        (tmp_path / f"{name_of(other)}.png").touch()  # as a power cut may leave it
        Gallery(tmp_path, pytest.fail).keep([same, other])
        assert len(files(tmp_path)) == 2
        assert all(made.stat().st_size for made in tmp_path.iterdir())
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    def test_nothing_to_keep_makes_no_folder(self, tmp_path: Path) -> None:
        Gallery(tmp_path / "pictures", pytest.fail).keep(shown_by([turn_on()]))
        assert not (tmp_path / "pictures").exists()

    def test_a_step_has_its_bound_and_a_run_too_each_told_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        keeper = Gallery(tmp_path, said.append)
        monkeypatch.setattr(gallery, "MOST_A_STEP", 2)
        keeper.keep(map(picture, range(4)))
        keeper.keep(map(picture, range(4)))  # the first two are there: the others are this step's
        assert len(files(tmp_path)) == 4
        keeper.keep(map(picture, range(4, 9)))
        assert len(files(tmp_path)) == 6
        assert said == [f"of a step's new pictures the first 2 are kept in {tmp_path}"]
        monkeypatch.setattr(gallery, "MOST_BYTES", sum(file.stat().st_size for file in tmp_path.iterdir()) + 1)
        for _ in range(2):
            keeper.keep(map(picture, range(10, 14)))
        assert len(files(tmp_path)) == 7
        assert [line.split(":")[-1] for line in said[1:]] == [" no further pictures are kept"]
        Gallery(tmp_path, said.append).keep([picture(20)])  # counts what is there
        assert len(files(tmp_path)) == 7

    def test_one_that_is_gone_is_told_and_the_run_goes_on(self, tmp_path: Path) -> None:
        image(0).save(tmp_path / "a.png")
        gone = Picture.open(tmp_path / "a.png")
        (tmp_path / "a.png").unlink()
        said: list[str] = []
        keeper = Gallery(tmp_path / "kept", said.append)
        keeper.keep([gone, picture(1)])
        keeper.keep([gone])
        assert len(files(tmp_path / "kept")) == 1
        assert said == [f"a picture could not be kept: {tmp_path / 'a.png'}: no such file"]

    def test_a_kill_while_writing_leaves_no_half_of_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def killed(rgb: Image.Image, file: Path, form: str) -> None:
            file.write_bytes(b"\x89PNG half")
            raise KeyboardInterrupt

        folder = RunFolder(tmp_path)
        monkeypatch.setattr(gallery, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            Gallery(folder.pictures, pytest.fail).keep([picture(0)])
        assert kept(folder.pictures, name_of(picture(0))) is None
        monkeypatch.undo()
        (folder.pictures / f".{name_of(picture(0))}.png.tmp-77").write_bytes(b"of a process that was killed outright")
        folder.clear_leftovers()
        assert files(folder.pictures) == []
        Gallery(folder.pictures, pytest.fail).keep([picture(0)])
        assert len(files(folder.pictures)) == 1

    @given(st.text() | st.sampled_from(["../a", "a/b", "..", "", "a\x00b", "A", "abc.png"]))
    def test_a_name_that_is_none_has_no_file(self, name: str) -> None:
        if not re.fullmatch("[0-9a-f]+", name):
            assert kept(Path("/"), name) is None


class TestTurns:
    def test_only_turns_with_pictures_name_them(self, tmp_path: Path) -> None:
        one, two = picture(0), picture(1)
        seen = turn_on(one, two)
        turns = [seen, turn_on(text="read", parent=seen)]
        rows = turn_rows(turns, {}, {}, ())
        assert rows[0]["images"] == [name_of(one), name_of(two)]
        assert rows[0]["prompt"] == "[image]\n[image]\nWhat?"
        assert "images" not in rows[1]
        folder = RunFolder(tmp_path)
        folder.write_turns(1, rows)
        folder.write_turns(2, turn_rows([turn_on()], {}, {}, ()))  # a run without pictures: files as they were
        assert [row.get("images") for row in folder.read_turns()] == [rows[0]["images"], None, None]
        assert "images" not in pq.ParquetFile(folder.turns_file(2)).schema_arrow.names
        assert list(shown_by(turns)) == [one, two]

    def test_answers_share_their_prompts_pictures(self) -> None:
        first = turn_on(picture(0))
        again = Turn(first.role, first.prompt, (1,), (3,), np.zeros(1, np.float32), "other", "stop")
        assert len(list(shown_by([first, again]))) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, and one that was killed after its second and resumed from its first."""
    folder = tmp_path_factory.mktemp("trained")
    for number, size in enumerate([(28, 28), (56, 28), (300, 28)]):
        image(number, *size).save(folder / f"{number}.png")
    (folder / "reward.py").write_text(
        "def reward(queries, answers, answer):\n    return [float(len(a) % 3 == 0) for a in answers]\n"
    )
    rows = [{"problem": "what?", "answer": "A", "images": [f"{number}.png"]} for number in range(3)]
    rows += [
        {"problem": "no picture?", "answer": "4"},
        {"problem": "both?", "answer": "B", "images": ["0.png", "1.png"]},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_tiny_qwen25vl(folder / "model")
    settings = resolve(
        recipe("vision-sr1"),
        None,
        (
            *(
                f"model.path={model}",
                f"game.prompts={folder / 'rows.jsonl'}",
                "model.dtype=float32",
                "model.device=cpu",
            ),
            *(f"game.reward.function={folder / 'reward.py'}:reward", "model.gradient_checkpointing=false"),
            *("model.vision.min_pixels=784", "model.vision.max_pixels=3136", "game.n_queries=3", "game.n_answers=2"),
            *(
                "game.solver.max_new_tokens=6",
                "game.solver.top_p=1",
                "game.reader.max_new_tokens=4",
                "learner.lr=0.003",
            ),
            *("learner.minibatches=1", "learner.token_budget=256", "steps=3", "threads=1", "checkpoint.every=1"),
            "health.on_alarm=go_on",
        ),
    )

    class Killed(Exception):  # noqa: N818 - a signal, not an error
        pass

    class Killer(Recorder):
        def stepped(self, step: int, metrics: Any, turns: Any, payoffs: Any) -> None:
            if step == 2:
                raise Killed

    patch = pytest.MonkeyPatch()
    patch.setattr("sparring.games.vision.description_of", lambda text: text.strip() or None)
    train(settings, folder / "whole")
    with pytest.raises(Killed):
        train(settings, folder / "killed", observer=Killer())
    (folder / "killed/pictures/.abc.png.tmp-1").write_bytes(b"half")
    resume(folder / "killed")
    patch.undo()
    return folder


def test_a_run_keeps_its_pictures_and_a_resumed_one_the_same(trained: Path) -> None:
    whole, killed = (RunFolder(trained / name) for name in ("whole", "killed"))
    assert whole.read_turns() == killed.read_turns()
    assert [file.suffix for file in sorted(whole.pictures.iterdir(), key=lambda file: file.suffix)] == [
        ".png",
        ".png",
        ".webp",
    ]
    assert {f.name: f.read_bytes() for f in whole.pictures.iterdir()} == {
        f.name: f.read_bytes() for f in killed.pictures.iterdir()
    }
    named = {name for row in whole.read_turns() for name in row["images"] or []}
    assert named == {file.stem for file in whole.pictures.iterdir()}
    assert {len(row["images"] or []) for row in whole.read_turns()} == {0, 1, 2}


def test_the_page_of_a_real_run_shows_them(trained: Path) -> None:
    html = page_html([trained / "whole"])
    assert html.count('type="image/webp;base64"') == 3
    assert "img-src data:;" in followed(html, {})  # the live page's too
    for title in ("What the perceiver is paid", "Descriptions and boxes", "Length of the descriptions"):
        assert title in html


def make_vision(run: Path) -> Path:
    """Two steps. The same question of two pictures, one after the other; a large one; one that was not kept."""
    steps = Steps(run)
    pictures = [picture(0, 84, 84), picture(1, 84, 84), picture(2, 400, 300)]
    for step in (1, 2):
        about: dict[str, Any] = {}
        for number, one in enumerate(pictures):
            about = {"answer": "red", "query_text": "What colour?", "pictures": 1, "source": "colour"}
            for draft in range(2):
                description = f"a red square, {step}.{number}.{draft}"
                parts = {"accuracy": 0.9, "format": 0.1, "visual": float(draft == 0)}
                at = steps.turn(
                    "perceiver",
                    FORM.format(description, "as I see it", "red"),
                    parts=parts,
                    prompt="[image]\nWhat colour?\nDescribe it first.",
                    info={**about, "description": description, "well_formed": True},
                    images=[name_of(one)],
                    advantage=0.5 - draft,
                )
                steps.turn(
                    "reader",
                    "<think>as I read it</think>\\boxed{red}",
                    at,
                    prompt=f"What colour? {description}",
                    info=about,
                    trained=False,
                )
        steps.turn("perceiver", "no tags", parts={"accuracy": 0.0, "visual": 0.0}, images=["f00"], info=about)
        steps.write(step)
    Gallery(steps.folder.pictures, pytest.fail).keep(pictures)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_vision(folder / "vision")
    steps = Steps(folder / "text")
    steps.turn("solver", "four", prompt="Two and two?", info={"answer": "4", "description": "d", "pictures": 3})
    steps.write(1)
    return folder


@pytest.fixture(scope="module")
def page_path(runs: Path) -> Path:
    return write_page(runs / "page.html", runs / "vision")


class TestPage:
    def test_equal_questions_of_other_pictures_are_other_threads(self, runs: Path) -> None:
        turns = read_turns([("vision", runs / "vision")])
        assert turns.threads["step"] == [1] * 4 + [2] * 4
        assert turns.shown == [[0], [1], [2], [3]] * 2
        assert [file != "" for file in turns.pictures.file] == [True, True, True, False]

    def test_a_page_without_pictures_has_nothing_of_them(self, runs: Path) -> None:
        html = browser([("text", runs / "text")]).html
        assert "Looks" not in html
        assert ".looked" not in html
        assert "browser-picture" not in html
        turns = read_turns([("text", runs / "text")])
        assert "shown" not in json.loads(gzip.decompress(base64.b64decode(turns.head())))

    def test_what_is_put_in_is_small_and_webp(self, runs: Path) -> None:
        html = browser([("vision", runs / "vision")]).html
        blocks = re.findall(
            r'<script type="image/webp;base64" id="browser-picture-(\d)">([A-Za-z0-9+/=]+)</script>', html
        )
        assert sorted(place for place, _ in blocks) == ["0", "1", "2"]
        for _, data in blocks:
            with Image.open(io.BytesIO(base64.b64decode(data))) as found:
                assert found.format == "WEBP"
                assert max(found.size) <= 256

    def test_equal_pictures_of_two_runs_are_one(self, runs: Path) -> None:
        html = browser([("a", runs / "vision"), ("b", runs / "vision")]).html
        assert html.count("browser-picture-") == 3 + html.count("`browser-picture-")

    def test_what_has_no_room_is_spread_and_told(self, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pictures = Pictures(several=False)
        folder = RunFolder(runs / "vision").pictures
        pictures.add("vision", runs / "vision", [file.stem for file in sorted(folder.iterdir())])
        every = pictures.shown()
        assert [one.place for one in every] == [0, 2, 1]
        assert [one.place for one in pictures.shown(len(every[0].data) + len(every[1].data))] == [0, 2]
        assert pictures.size[1] is None
        assert pictures.shown(0) == []

    def test_a_damaged_one_is_told(self, runs: Path, tmp_path: Path) -> None:
        for name, content in {"a": b"", "b": b"\x89PNG\r\n\x1a\n half", "c": b"<svg onload='alert(1)'/>"}.items():
            (tmp_path / "pictures").mkdir(exist_ok=True)
            (tmp_path / "pictures" / f"{name}.png").write_bytes(content)
            (tmp_path / "pictures" / f"{name}{name}.webp").write_bytes(content)
        image(0, 3000, 3000).save(tmp_path / "pictures" / "d.png")
        pictures = Pictures(several=False)
        pictures.add("run", tmp_path, ["a", "b", "c", "d", "aa", "bb", "cc", "../a", "dd"])
        assert pictures.shown() == []
        assert len(pictures.notes) == 7
        assert pictures.columns()["file"] == [""] * 9


@pytest.mark.browser
class TestBrowser:
    def test_a_picture_its_question_and_both_passes_side_by_side(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path) as page:
            assert told(page) == "8 of 8 threads."
            thread = page.locator(".thread").first
            shown = thread.locator(".pictures img")
            assert shown.count() == 1
            assert shown.evaluate("async image => { await image.decode(); return image.naturalWidth; }") == 84
            assert (shown.get_attribute("width"), shown.get_attribute("class")) == ("168", "enlarged")
            assert thread.locator(".prompt > pre").inner_text() == "What colour?"
            assert thread.locator(".reference pre").inner_text() == "red"
            first = thread.locator(".passes").first
            perceiver, reader = first.locator("[data-role=perceiver]"), first.locator("[data-role=reader]")
            assert perceiver.locator("dt").all_inner_texts() == ["description", "thought", "answer"]
            assert perceiver.locator("dd pre").all_inner_texts() == ["a red square, 1.0.0", "as I see it", "red"]
            assert reader.locator("dd pre").all_inner_texts() == ["as I read it", "red"]
            assert reader.locator("h4").inner_text().split("\n")[-1] == "pays visual 1"
            chips = perceiver.locator(".chips span").all_inner_texts()
            assert chips[:4] == ["accuracy 0.9", "format 0.1", "visual 1", "▲ advantage +0.5"]
            assert not [chip for chip in chips if "description" in chip or "pictures" in chip or "well_formed" in chip]
            left, right = perceiver.bounding_box(), reader.bounding_box()
            assert left["x"] + left["width"] <= right["x"]
            assert abs(left["y"] - right["y"]) < 2

    def test_several_readers_of_one_description_stand_beside_it(self, chromium: Any, tmp_path: Path) -> None:
        steps = Steps(tmp_path / "run")
        said = FORM.format("red", "so", "red")
        at = steps.turn("perceiver", said, parts={"visual": 0.5}, images=["f00"], info={"query_text": "What?"})
        for question in ("What?", "Where?"):
            steps.turn("reader", "\\boxed{red}", at, info={"query_text": question, "question": question})
        steps.turn("perceiver", said, parts={"accuracy": 0.9}, images=["f00"], info={"query_text": "What?"})
        steps.write(1)
        with browsing(chromium, write_page(tmp_path / "page.html", tmp_path / "run")) as page:
            readers = page.locator(".passes [data-role=reader]")
            assert readers.locator("h4 span").all_inner_texts() == ["reader · has the description alone"] * 2
            assert readers.locator("h4 strong").all_inner_texts() == ["", ""]
            assert "question Where?" in readers.nth(1).inner_text()
            assert page.locator(".passes").count() == 1
            assert "No second pass" not in cards(page)[0]  # none was played

    def test_what_is_not_there_is_told(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path) as page:
            fourth = page.locator(".thread").nth(3)
            assert "not kept (f00)" in fourth.inner_text()
            assert "No second pass" in fourth.inner_text()
            assert fourth.locator("pre").last.inner_text() == "no tags"
            assert page.locator(".thread").nth(2).locator("img").get_attribute("width") == "256"

    def test_a_text_that_is_looked_for_is_marked_in_its_part(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path, fragment="#browse=turns&text=as+i+read") as page:
            assert page.locator("mark").all_inner_texts() == ["as I read"] * 10 + ["as I read"] * 2
            assert page.locator("mark").first.is_visible()

    @pytest.mark.parametrize("phone", [False, True])
    def test_it_fits(self, chromium: Any, page_path: Path, phone: bool) -> None:
        with browsing(chromium, page_path, phone=phone) as page:
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            wide = page.evaluate(
                "[...document.querySelectorAll('.thread *')]"
                ".filter(e => e.getBoundingClientRect().right > innerWidth).length"
            )
            assert wide == 0

    @pytest.mark.parametrize(
        "text",
        [
            ATTACK,
            FORM.format(ATTACK, ATTACK, ATTACK),
            "<description>never closed <think>x</think> \\boxed{{",
            "<think></think><description></description>\\boxed{}",
            "before <description>a</description> between \\boxed{1}} after",
            "\\boxed{\\frac{1}{2}}",
        ],
    )
    def test_whatever_a_model_says_is_text_and_nothing_is_lost(self, chromium: Any, tmp_path: Path, text: str) -> None:
        steps = Steps(tmp_path / "run")
        one = picture(0, 84, 84)
        info = {"answer": ATTACK, "query_text": ATTACK}
        at = steps.turn(
            "perceiver", text, parts={"visual": 0.0}, images=[name_of(one), ATTACK], prompt=ATTACK, info=info
        )
        steps.turn("reader", text, at, info=info)
        steps.write(1)
        Gallery(steps.folder.pictures, pytest.fail).keep([one])
        with browsing(chromium, write_page(tmp_path / "page.html", tmp_path / "run")) as page:
            assert page.locator(".pictures img").count() == 1
            assert page.locator(".thread img").count() == 1
            said = " ".join(cards(page)[0].split())
            for word in re.findall(r"alert\(1\)|never closed|before|between|after|frac", text):
                assert word in said


def test_the_terminal_names_the_files(runs: Path) -> None:
    found = CliRunner().invoke(main, ["samples", str(runs / "vision"), "--step", "1", "--n", "0"], terminal_width=200)
    assert found.exit_code == 0, found.output
    out = "".join(found.output.split())
    for number in (0, 1):
        assert str(runs / "vision/pictures" / f"{name_of(picture(number, 84, 84))}.png") in out
    assert f"{name_of(picture(2, 400, 300))}.webp" in out
    assert "picturef00" in out
    assert "questionWhatcolour?" in out
    assert "Describeitfirst" not in out
    line = CliRunner().invoke(main, ["samples", str(runs / "vision"), "--step", "1", "--json"]).output.splitlines()[0]
    exchange: Mapping[str, Any] = json.loads(line)
    assert exchange["pictures"] == [str(runs / "vision/pictures" / f"{name_of(picture(0, 84, 84))}.png")]
    assert exchange["asked"] == "What colour?"
    assert exchange["answers"][0]["replies"][0]["role"] == "reader"
    text = CliRunner().invoke(main, ["samples", str(runs / "text"), "--json"]).output
    assert json.loads(text)["pictures"] == []
    assert json.loads(text)["about"] == {"pictures": "3", "description": "d"}
