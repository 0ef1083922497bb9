"""`sparring compare`: several models' evaluations in one table and one figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparring.evaluation.document import document
from sparring.evaluation.methods import Methods, draw, table
from sparring.files import write_json_atomic

JUDGED = {"judge": "gpt-4o", "n": None, "seed": 0}


def rate(value: float, n: int = 10) -> dict[str, Any]:
    return {"n": n, "win_rate": value, "ci95": [value - 0.1, value + 0.1]}


def keep(file: Path, name: str = "mine", value: float = 0.5, *, base: str = "start", **more: Any) -> Path:
    """An evaluation in a file."""
    body = {"overall": rate(value), "subsets": more.pop("subsets", {"koala": rate(value), "koala/a": rate(0.1)})}
    file.parent.mkdir(parents=True, exist_ok=True)
    made = document("win-rate", name, "win_rate", model=str(file), base=base, body=body, settings={**JUDGED, **more})
    write_json_atomic(file, made)
    return file


def shown(methods: Methods) -> str:
    console = Console(width=100, record=True, highlight=False)
    with console.capture() as captured:
        console.print(table(methods))
    return captured.get()


def test_runs_side_by_side(tmp_path: Path) -> None:
    keep(tmp_path / "grpo" / "evaluation.json", "arena", 0.4)
    keep(tmp_path / "grpo" / "evaluations" / "mine.json", value=0.6, subsets={"[red]x": rate(0.3)})
    keep(tmp_path / "lsp" / "evaluations" / "mine.json", value=0.7)
    write_json_atomic(tmp_path / "grpo" / "evaluations" / "mine-verdicts.json", [{"schema": 1}])
    write_json_atomic(tmp_path / "grpo" / "evaluations" / "other.json", {"instruction": "x"})
    methods = Methods.of([tmp_path / "grpo", tmp_path / "lsp"], None)
    assert (methods.name, methods.metric, methods.against) == ("mine", "win_rate", "start")
    assert methods.subsets == ["overall", "[red]x", "koala"]
    lines = shown(methods).splitlines()
    assert lines[0].strip() == "mine: win rate against start [95 % interval]"
    cells = {words[0]: words[1:] for words in (line.split() for line in lines) if words}
    assert cells["overall"] == ["60.0%", "[50.0,", "70.0]", "70.0%", "[60.0,", "80.0]"]
    assert cells["[red]x"] == ["30.0%", "[20.0,", "40.0]", "–"]
    assert cells["koala"][0] == "–"
    assert methods.to_json() == {
        "name": "mine",
        "metric": "win_rate",
        "against": "start",
        "methods": {
            "grpo": {
                "[red]x": {"n": 10, "value": 0.3, "ci95": (pytest.approx(0.2), 0.4)},
                "overall": {"n": 10, "value": 0.6, "ci95": (0.5, 0.7)},
            },
            "lsp": {
                "koala": {"n": 10, "value": 0.7, "ci95": (pytest.approx(0.6), pytest.approx(0.8))},
                "koala/a": {"n": 10, "value": 0.1, "ci95": (0.0, 0.2)},
                "overall": {"n": 10, "value": 0.7, "ci95": (pytest.approx(0.6), pytest.approx(0.8))},
            },
        },
        "differences": {},
    }
    json.dumps(methods.to_json())


def test_a_folder_of_evaluations_and_files_are_taken_too(tmp_path: Path) -> None:
    file = keep(tmp_path / "a" / "mine.json", value=0.2)
    (tmp_path / "a" / "config.json").write_text('{"model_type": "llama"}')
    other = keep(tmp_path / "b" / "mine.json", value=0.3)
    assert [label for label, _ in Methods.of([file.parent, other.parent], None).rows] == ["a", "b"]
    same = Methods.of([file, other], None)
    assert [label for label, _ in same.rows] == [str(file), str(other)]
    assert [figures["overall"].value for _, figures in same.rows] == [0.2, 0.3]


def test_which_evaluation(tmp_path: Path) -> None:
    for run in ("a", "b"):
        for name in ("gsm8k", "mine"):
            keep(tmp_path / run / f"{name}.json", name)
    keep(tmp_path / "a" / "extra.json", "extra")
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(ValueError, match=r"choose one with --name \(gsm8k, mine\)"):
        Methods.of(paths, None)
    assert Methods.of(paths, "gsm8k").name == "gsm8k"
    with pytest.raises(ValueError, match=r"b has no evaluation 'extra' \(--name\); it has: gsm8k, mine"):
        Methods.of(paths, "extra")
    only = keep(tmp_path / "c" / "last.json", "last")
    with pytest.raises(ValueError, match=r"no evaluation that all have .*a: extra, gsm8k, mine; .*last.json: last"):
        Methods.of([tmp_path / "a", only], None)


def test_what_is_no_evaluation(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="holds no evaluation: `sparring eval` makes them"):
        Methods.of([tmp_path], None)
    with pytest.raises(ValueError, match="none: neither a run, nor a folder or file of evaluations"):
        Methods.of([tmp_path / "none"], None)
    (tmp_path / "evaluation.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"evaluation\.json: can't be read"):
        Methods.of([tmp_path], None)


def test_win_rates_and_accuracies_do_not_mix(tmp_path: Path) -> None:
    body = {"overall": {"n": 1, "accuracy": 0.5, "ci95": None}, "subsets": {}}
    made = document("accuracy", "mine", "accuracy", model="m", base=None, body=body, settings={})
    write_json_atomic(tmp_path / "other.json", made)
    with pytest.raises(ValueError, match=r"mine: some are win rates and some accuracies \(accuracy, win_rate\)"):
        Methods.of([keep(tmp_path / "mine.json"), tmp_path / "other.json"], None)


def test_what_is_not_the_same_for_all_is_said(tmp_path: Path) -> None:
    files = [
        keep(tmp_path / "a.json", judge="gpt-4o"),
        keep(tmp_path / "b.json", judge="gpt-4o-mini", base="another"),
    ]
    methods = Methods.of(files, None)
    assert methods.against is None
    assert methods.differences == {"judge": ["gpt-4o", "gpt-4o-mini"], "base": ["start", "another"]}
    assert methods.note == "not the same for all: judge (gpt-4o, gpt-4o-mini); base (start, another)"
    assert "judge (gpt-4o, gpt-4o-mini)" in " ".join(shown(methods).split())
    assert Methods.of(files[:1], None).note is None
    long = Methods.of([files[0], keep(tmp_path / "c.json", prompt="one\n" * 40)], None)
    assert long.note is not None and len(long.note) < 120


def test_a_subset_called_overall_does_not_take_its_place(tmp_path: Path) -> None:
    file = keep(tmp_path / "a.json", value=0.5, subsets={"overall": rate(0.9)})
    ((_, figures),) = Methods.of([file], None).rows
    assert figures["overall"].value == 0.5


@pytest.mark.parametrize(("ending", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_figure(tmp_path: Path, ending: str, begin: bytes) -> None:
    long = {"Counting & Probability": rate(0.4), "$x$": rate(0.05)}
    files = [keep(tmp_path / f"{name}.json", subsets=long, judge=name) for name in ("a", "b", "c")]
    file = tmp_path / "new" / f"figure.{ending}"
    draw(Methods.of(files, None), file)
    assert file.read_bytes().startswith(begin)


def test_a_figure_that_can_not_be_drawn(tmp_path: Path) -> None:
    methods = Methods.of([keep(tmp_path / "a.json")], None)
    with pytest.raises(ValueError, match=r"--plot writes \.png or \.svg, not \.pdf"):
        draw(methods, tmp_path / "a.pdf")
    with pytest.raises(ValueError, match=r"--plot: .* can't be written"):
        draw(methods, tmp_path / "a.json" / "b.png")
