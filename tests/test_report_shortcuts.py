"""Accuracy against the Language Shortcut Rate on the page, from evaluation documents of kind lsr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report_runs import Page, panels_of, told, words, write_metrics
from sparring.evaluation.document import document
from sparring.evaluation.perception import Perception, Seen
from sparring.report.methods import methods_of
from sparring.report.page import page_html, write_report
from sparring.report.results import tiles
from sparring.report.run import read_run
from sparring.report.seen import read_looked
from sparring.report.shortcuts import SHORTCUTS, evaluated

FIDELITY = {
    "all": {"precision": 0.9, "recall": 0.8},
    "asked": {"precision": 1.0, "recall": 0.95},
    "unasked": {"precision": None, "recall": 0.7},
}


def seen(n: int, right: int, enough: int, shortcuts: int, unread: int = 0) -> list[Seen]:
    """n items: so many right, so many with a description that suffices, so many right without it."""
    flags = [(at < right, shortcuts <= at < shortcuts + enough) for at in range(n)]
    return [
        Seen(
            f"i{at}", ("count" if at % 2 else "colour",), "t", "d", good, None if at >= n - unread else told, told, "r"
        )
        for at, (good, told) in enumerate(flags)
    ]


def record(
    model: str, items: list[Seen], *, name: str = "lsr", temperature: float = 0.0, **more: Any
) -> dict[str, Any]:
    """A document as `sparring eval lsr` writes it."""
    figures = Perception.of(items)
    assert figures is not None
    settings = {
        "grader": "the program",
        "temperature": temperature,
        "seed": 0,
        "n": len(items),
        **more.pop("settings", {}),
    }
    body = {"overall": figures.to_json(), "subsets": {}, **more}
    return document("lsr", name, "lsr", model=model, base=None, body=body, settings=settings)


def make_run(folder: Path, *documents: dict[str, Any], seed: int = 0, game: str = "sr1") -> Path:
    rows = [
        {
            "step": step,
            "payoff/perceiver": 1.5,
            "payoff/perceiver/accuracy": 0.8,
            "payoff/perceiver/visual": 0.7,
            "vision/described": 1.0,
            "vision/boxed": 0.9,
            "vision/leaked": 0.4,
            "vision/description_length": 80.0 + step,
            "vision/reader/all": 0.6,
            "vision/reader/count": 0.5,
        }
        for step in (1, 2, 3)
    ]
    write_metrics(folder, rows, f"seed: {seed}\ngame:\n  kind: vision\n  of: {game}\n")
    (folder / "evaluations").mkdir(exist_ok=True)
    for number, one in enumerate(documents):
        (folder / "evaluations" / f"lsr-{number}.json").write_text(json.dumps(one))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two methods, one of two seeds, with the start's evaluation in each folder."""
    base = record("/models/start", seen(100, 80, 70, 14), fidelity=FIDELITY)
    warm = record("org/cold-start", seen(100, 84, 75, 12))
    found: list[Path] = []
    for name, game, seed, items in (
        ("sr1-0", "sr1", 0, seen(100, 97, 97, 1)),
        ("sr1-1", "sr1", 1, seen(100, 95, 95, 3)),
        ("answer-only", "ao", 0, seen(100, 92, 85, 10)),
    ):
        folder = tmp_path / "runs" / name
        own = record(f"runs/{name}", items, fidelity=FIDELITY)
        hot = record(str(folder / "model"), seen(100, 90, 90, 5), name="lsr-t1", temperature=1.0)
        found.append(make_run(folder, base, own, hot, warm, seed=seed, game=game))
    return found


class TestReading:
    def test_a_document_as_it_is_written(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "sr1", record("sr1", seen(10, 8, 6, 2, unread=1), fidelity=FIDELITY))
        one = read_looked(run / "evaluations" / "lsr-0.json", run)
        assert one.own
        assert one.unread == 1
        assert one.figures["lsr"].n == 9
        assert one.figures["accuracy"].value == 0.8
        assert one.figures["accuracy"].n == 10
        assert one.figures["lsr"].value == pytest.approx(2 / 9)
        assert one.figures["reader/sufficient"].value == 1.0
        assert one.fidelity["asked", "recall"] == 0.95
        assert ("unasked", "precision") not in one.fidelity

    @pytest.mark.parametrize(
        ("model", "own"),
        [
            ("runs/sr1", True),
            ("sr1", True),
            ("./runs/sr1/", True),
            ("runs/sr1/model", True),
            ("other/sr1", False),
            ("sr", False),
            ("model", False),
            ("", False),
            ("/runs/sr1", False),
        ],
    )
    def test_whose_a_document_is(self, tmp_path: Path, model: str, own: bool) -> None:
        run = make_run(tmp_path / "runs" / "sr1", record(model, seen(4, 2, 2, 0)))
        assert read_looked(run / "evaluations" / "lsr-0.json", run).own is own

    def test_it_is_none_of_the_other_evaluations(self, runs: list[Path]) -> None:
        run = read_run(runs[0])
        assert run.documents == {}
        assert [one.document.model for one in run.looked if not one.own] == ["/models/start", "org/cold-start"]

    def test_a_damaged_one_is_a_note(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "sr1", record("sr1", seen(4, 2, 2, 0)))
        for at, text in enumerate(
            ('{"schema": 1, "kind": "lsr", "metric": "lsr", "overall": {}}', '{"schema": 1, "kind"')
        ):
            (run / "evaluations" / f"bad-{at}.json").write_text(text)
        found = read_run(run)
        assert len(found.looked) == 1
        assert sum("could not be read" in note for note in found.notes) == 2

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "ci95", "n", "all"]), inner)
            ),
            max_leaves=6,
        )
    )
    def test_whatever_stands_beside_the_rate_is_read_or_left(self, tmp_path_factory: Any, value: Any) -> None:
        run = tmp_path_factory.getbasetemp() / "fuzzed"
        run.mkdir(exist_ok=True)
        one = record("fuzzed", seen(4, 2, 2, 0)) | {"fidelity": value}
        one["overall"] |= {"accuracy": value, "reader": value, "described": {"value": 0.5, "ci95": value, "n": value}}
        (run / "x.json").write_text(json.dumps(one))
        figures = read_looked(run / "x.json", run).figures
        assert figures["described"].value == 0.5
        assert figures["lsr"].n == 4


class TestPoints:
    def test_others_first_then_methods_seeds_as_their_mean_with_the_range(self, runs: list[Path]) -> None:
        greedy, hot = evaluated(methods_of([read_run(run) for run in runs]))
        assert [(point.name, len(point.documents)) for point in greedy.points] == [
            ("start", 1),
            ("org/cold-start", 1),
            ("sr1", 2),
            ("answer-only", 1),
        ]
        assert greedy.points[2].figures["lsr"].value == pytest.approx(0.02)
        assert greedy.points[2].figures["lsr"].ci95 == pytest.approx((0.01, 0.03))
        assert greedy.points[2].figures["accuracy"].ci95 == pytest.approx((0.95, 0.97))
        alone = greedy.points[3].figures["lsr"].ci95
        assert alone is not None
        assert alone[0] < 0.1 < alone[1]
        assert alone != (0.1, 0.1)  # Wilson's
        assert (greedy.called, hot.called) == ("greedy", "temperature 1")
        assert [point.name for point in hot.points] == ["sr1", "answer-only"]
        assert greedy.note is None

    def test_a_model_evaluated_twice_is_its_mean(self, tmp_path: Path) -> None:
        other = [record("/m/start", seen(100, 80, 70, rate), settings={"seed": rate}) for rate in (10, 14)]
        run = make_run(tmp_path / "sr1", record("sr1", seen(100, 90, 90, 1)), *other)
        (one,) = evaluated(methods_of([read_run(run)]))
        assert one.points[0].figures["lsr"].value == pytest.approx(0.12)
        assert one.note is not None
        assert "seed" in one.note


class TestPage:
    def test_figure_and_table_of_several(self, runs: list[Path]) -> None:
        html = page_html(runs)
        page = told(html)
        assert Page(html)
        assert page.index(SHORTCUTS) < page.index("Looking and reading")
        for name in (
            "Accuracy against LSR, greedy",
            "Accuracy against LSR, temperature 1",
            "2 seeds",
            "org/cold-start",
        ):
            assert name in page
        assert "2 methods side by side: language shortcuts from 2.0 % (sr1) to 10.0 % (answer-only)" in page
        assert "start 100 80.0 % 71.1 – 86.7 14.0 %" in page
        assert "sr1 2 seeds 100 96.0 % 95.0 – 97.0 2.0 % 1.0 – 3.0" in page
        assert "faithful descriptions all: precision / recall asked: precision / recall" in page
        assert "100.0 % / 95.0 % — / 70.0 %" in page
        assert "payoff, perceiver" in page
        assert "V, mean reward" not in page
        titles = [panel.title for panel in panels_of(*runs)]
        assert "What the perceiver is paid: visual" in titles
        assert "Descriptions and boxes: holds the answer" in titles

    def test_one_run(self, runs: list[Path]) -> None:
        page = told(page_html(runs[:1]))
        assert "97.0 % of the answers are right, 1.0 % by a language shortcut (95 % interval 0.2 to 5.4)" in page
        assert "Shortcut rate (LSR) 1.0 % accuracy 97.0 %, n = 100" in page
        assert [tile.label for tile in tiles(read_run(runs[0]))][:2] == [
            "Shortcut rate (LSR)",
            "Shortcut rate (LSR), lsr-t1",
        ]
        assert "mean reward" not in page.partition("Not measured, so not drawn:")[2][:120]
        titles = [panel.title for panel in panels_of(runs[0])]
        assert titles[:2] == ["Accuracy against LSR, greedy", "Accuracy against LSR, temperature 1"]
        assert "Answers right from the description alone" in titles

    def test_unread_verdicts_are_told(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "sr1", record("sr1", seen(10, 8, 6, 2, unread=3)))
        assert "3 descriptions have no verdict that could be read" in words(page_html([run]))

    def test_a_figure_is_a_file_too(self, runs: list[Path], tmp_path: Path) -> None:
        write_report(runs, tmp_path / "all.html")
        assert {"accuracy-against-lsr.png", "accuracy-against-lsr-t1.svg"} <= {
            f.name for f in (tmp_path / "figures").iterdir()
        }

    def test_names_are_text(self, tmp_path: Path) -> None:
        evil = "<script>alert(1)</script>$x$_"
        run = make_run(tmp_path / "sr1", record(evil, seen(4, 2, 2, 0), fidelity={evil: {"precision": 0.5}}))
        html = page_html([run])
        assert "<script>alert" not in html
        assert "alert(1)" in words(html)

    def test_a_run_without_them_has_no_such_section(self, tmp_path: Path) -> None:
        assert SHORTCUTS not in page_html([write_metrics(tmp_path / "lsp", [{"step": 1, "game/V": 0.5}])])
