"""The report of several runs: which are one method, what is drawn of each, and what they have in common."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from report_runs import panels_of, told, turn_rows, words, write_metrics, write_turns
from sparring.evaluation.document import document
from sparring.report.drawing import COLOURS
from sparring.report.evaluations import shared
from sparring.report.methods import Method, methods_of
from sparring.report.page import page_html, write_report
from sparring.report.run import read_run, read_runs
from sparring.report.tasks import by_task


def run(folder: Path, seed: int, values: list[float], **more: Any) -> Path:
    """A run with a seed, V over steps, and settings of its own."""
    config = json.dumps({"recipe": "lsp", "seed": seed, "learner": {"beta": more.pop("beta", 0.1)}})
    rows = [{"step": step, "game/V": value, **more} for step, value in enumerate(values, 1)]
    return write_metrics(folder, rows, config)


def evaluated(folder: Path, name: str, value: float, metric: str = "win_rate", **subsets: float) -> None:
    """An evaluation of a run, with intervals of ± 0.1."""

    def figure(rate: float) -> dict[str, Any]:
        return {"n": 40, metric: rate, "ci95": [rate - 0.1, rate + 0.1]}

    body = {"overall": figure(value), "subsets": {name: figure(rate) for name, rate in subsets.items()}}
    kind = "win-rate" if metric == "win_rate" else "accuracy"
    made = document(kind, name, metric, model=folder.name, base="start", body=body, settings={})
    (folder / "evaluations").mkdir(exist_ok=True)
    (folder / "evaluations" / f"{name}.json").write_text(json.dumps(made))


def methods(*folders: Path) -> list[Method]:
    return methods_of(read_runs(folders))


def test_runs_that_differ_only_in_their_seed_are_one_method(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "lsp-0", 0, [0.1]),
        run(tmp_path / "steep-1", 1, [0.1], beta=0.5),
        run(tmp_path / "lsp-1", 1, [0.1]),
        run(tmp_path / "again", 1, [0.1]),
        write_metrics(tmp_path / "bare-1", [{"step": 1}], ""),
        write_metrics(tmp_path / "bare-2", [{"step": 1}], ""),
    ]
    found = methods(*folders)
    assert [[one.name for one in method.runs] for method in found] == [
        ["lsp-0", "lsp-1"], ["steep-1"], ["again"], ["bare-1"], ["bare-2"],
    ]  # fmt: skip
    assert [method.name for method in found] == ["lsp", "steep-1", "again", "bare-1", "bare-2"]
    assert [method.colour for method in found] == list(COLOURS[:5])


def test_names_tell_runs_and_methods_apart(tmp_path: Path) -> None:
    paths = [run(tmp_path / side / "lsp", 0, [0.1], beta=at) for at, side in enumerate(("a", "b"))]
    assert [one.name for one in read_runs(paths)] == ["a/lsp", "b/lsp"]
    assert [one.name for one in read_runs([paths[0], paths[0]])] == ["lsp"]
    deep = [run(tmp_path / side / "x" / "lsp", 0, [0.1]) for side in ("a", "b")]
    assert [one.name for one in read_runs(deep)] == [str(path.resolve()) for path in deep]
    pairs = [run(tmp_path / f"arm-{seed}{kind}", seed, [0.1], beta=kind) for kind in (3, 4) for seed in (0, 1)]
    assert [method.name for method in methods(*pairs)] == ["arm-03", "arm-04"], "both begin with arm"
    with pytest.raises(ValueError, match="at least one run"):
        read_runs([])


@pytest.mark.parametrize(
    ("names", "method"),
    [(("sr1-0", "sr1-1"), "sr1"), (("lsp-10", "lsp-11"), "lsp"), (("run8", "run9"), "run"), (("1", "2"), "1")],
)
def test_a_methods_name_is_what_its_runs_share_less_their_numbers(
    tmp_path: Path, names: tuple[str, ...], method: str
) -> None:
    found = methods(*[run(tmp_path / name, seed, [0.1]) for seed, name in enumerate(names)])
    assert [one.name for one in found] == [method]


def test_more_methods_than_colours_differ_by_their_dashes(tmp_path: Path) -> None:
    found = methods(*[run(tmp_path / f"r{at}", 0, [0.1], beta=at) for at in range(10)])
    assert len({(method.colour, method.dash) for method in found}) == 10
    assert [method.border for method in found] == ["solid"] * 8 + ["dashed"] * 2


def test_a_methods_curve_is_its_seeds_mean_with_the_lowest_and_the_highest(tmp_path: Path) -> None:
    (method,) = methods(run(tmp_path / "a0", 0, [0.2, 0.4, 0.9]), run(tmp_path / "a1", 1, [0.4, 0.2]))
    curve = method.curve("game/V")
    assert curve is not None and curve.low_P is not None and curve.high_P is not None
    assert curve.steps_P.tolist() == [1, 2], "only where every run has been"
    assert curve.values_P.tolist() == pytest.approx([0.3, 0.3])
    assert curve.low_P.tolist() == pytest.approx([0.2, 0.2])
    assert curve.high_P.tolist() == pytest.approx([0.4, 0.4])
    assert method.curve("game/none") is None


def test_several_methods_have_a_panel_for_each_role_and_one_colour_each(tmp_path: Path) -> None:
    two = {"kl/solver": 0.1, "kl/challenger": 0.2}
    folders = [run(tmp_path / "a", 0, [0.1, 0.2], **two), run(tmp_path / "b", 0, [0.3, 0.4], beta=1, **two)]
    found = {panel.name: panel for panel in panels_of(*folders)}
    assert {"value", "kl-solver", "kl-challenger"} <= set(found)
    for panel in found.values():
        colours = [to_hex(line.get_color()) for line in panel.figure.axes[0].lines if len(line.get_xdata()) == 2]
        assert colours[:2] == list(COLOURS[:2])
    solver = found["kl-solver"]
    assert solver.title == "KL to the reference, nats: solver"
    assert ">b</text>" not in solver.svg(), "the page's own key names the methods"
    assert b"<!-- b -->" in solver.files()["svg"]
    assert ">b</text>" not in solver.svg()


def test_one_method_of_several_seeds_keeps_roles_in_one_panel(tmp_path: Path) -> None:
    two = {"kl/solver": 0.1, "kl/challenger": 0.2}
    folders = [run(tmp_path / f"a{seed}", seed, [0.1, 0.2], **two) for seed in (0, 1)]
    (panel,) = [panel for panel in panels_of(*folders) if panel.section.startswith("Health")]
    assert panel.name == "kl"
    assert [text.get_text() for text in panel.figure.legends[0].get_texts()] == ["solver", "challenger"]


def test_a_family_has_one_colour_in_every_methods_panel(tmp_path: Path) -> None:
    families = [f"f{at}" for at in range(10)]
    big = {f"game/share/{name}": 0.3 if name in ("f8", "f9") else 0.05 for name in families}
    folders = [
        run(tmp_path / "a", 0, [0.1, 0.2], **big),
        run(tmp_path / "b", 0, [0.1], beta=1, **{"game/share/f9": 1.0}),
    ]
    found = [panel for panel in panels_of(*folders) if panel.name.startswith("tasks-")]
    assert [panel.name for panel in found] == ["tasks-a", "tasks-b"]
    assert not any(panel.keyed for panel in found), "each has a legend of its own"
    for panel in found:
        shown = {text.get_text(): to_hex(patch.get_facecolor()) for text, patch in zip(
            panel.figure.legends[0].get_texts(), panel.figure.legends[0].get_patches(), strict=True
        )}  # fmt: skip
        assert shown["f9"] == COLOURS[6]
        assert "other" in shown and len(shown) == 8


# --- evaluations -------------------------------------------------------------------------------------


def test_what_methods_have_in_common_is_drawn_seeds_by_their_mean(tmp_path: Path) -> None:
    a0, a1 = run(tmp_path / "a0", 0, [0.1]), run(tmp_path / "a1", 1, [0.1])
    b, c = run(tmp_path / "b", 0, [0.1], beta=1), run(tmp_path / "c", 0, [0.1], beta=2)
    evaluated(a0, "koala", 0.6, easy=0.7)
    evaluated(a1, "koala", 0.8, easy=0.8, hard=0.3)
    evaluated(b, "koala", 0.4, hard=0.2)
    evaluated(c, "lonely", 0.4)
    notes: list[str] = []
    (koala,) = shared(methods(a0, a1, b, c), notes)
    (first, mine), (second, theirs) = koala.rows
    assert (first, second, notes) == ("a", "b", [])
    assert mine["overall"].value == pytest.approx(0.7)
    assert mine["overall"].ci95 == (0.6, 0.8)
    assert "hard" not in mine, "one seed has no such subset"
    assert theirs["overall"].ci95 == pytest.approx((0.3, 0.5))
    html = page_html([a0, a1, b, c])
    assert "3 methods side by side: win rates from 40.0 % (b) to 70.0 % (a), against their base" in words(html)
    assert "Whiskers: 95 % intervals; of several seeds, the lowest and the highest" in words(html)
    assert "lonely" not in html


def test_bars_are_as_long_as_the_rates(tmp_path: Path) -> None:
    from sparring.report.bars import method_bars

    a, b = run(tmp_path / "a", 0, [0.1]), run(tmp_path / "b", 0, [0.1], beta=1)
    evaluated(a, "koala", 0.6, easy=0.7)
    evaluated(b, "koala", 0.4, easy=0.2)
    (koala,) = shared(methods(a, b), [])
    panel = method_bars(koala)
    widths = [round(bar.get_width(), 3) for bar in panel.figure.axes[0].patches]
    assert widths == [0.6, 0.7, 0.4, 0.2]
    assert panel.title == "koala: win rate against start"
    assert [tick.get_text() for tick in panel.figure.axes[0].get_yticklabels()] == ["overall", "easy"]


def test_figures_that_can_not_be_compared_are_said(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", 0, [0.1]), run(tmp_path / "b", 0, [0.1], beta=1)
    evaluated(a, "mine", 0.6)
    evaluated(b, "mine", 0.4, "accuracy")
    (b / "evaluations" / "torn.json").write_text('{"schema": 1, ')
    text = words(page_html([a, b]))
    assert "Not drawn: mine: some are win rates and some accuracies (accuracy, win_rate)." in text
    assert "b: torn.json could not be read" in text
    assert "2 runs side by side; no evaluation that they have in common" in text


def test_one_runs_other_evaluations_are_drawn_and_lead_where_nothing_else_does(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", 0, [0.1])
    evaluated(folder, "koala", 0.7, easy=0.7)
    evaluated(folder, "gsm8k", 0.4, "accuracy")
    html = page_html([folder])
    text = words(html)
    assert "The trained model beats its base: win rate 70.0 % (95 % interval 60.0 to 80.0) on koala" in text
    assert "gsm8k, accuracy40.0 %n = 40" in text
    assert "<h3>koala: win rate against start</h3>" in html
    assert "<h3>gsm8k: accuracy</h3>" in html


# --- the page ----------------------------------------------------------------------------------------


def test_the_table_tells_methods_and_their_runs(tmp_path: Path) -> None:
    a0, a1 = run(tmp_path / "a0", 3, [0.2, 0.4]), run(tmp_path / "a1", 4, [0.2, 0.8, 0.8, 0.8])
    b = run(tmp_path / "b", 3, [0.5], beta=1)
    html = page_html([a0, a1, b])
    rows = [told(row) for row in html.split("</thead>")[1].split("</tr>")[:4]]
    assert rows[0] == "a 2 seeds 2 – 4 0.35 → 0.6 — — well"
    assert rows[1].startswith("a0 3 2 0.2 → 0.4")
    assert rows[2].startswith("a1 4 4 0.5 → 0.8")
    assert rows[3].startswith("b 3 1 0.5 → 0.5")


def test_settings_that_differ_are_told_and_every_configuration_is_there(tmp_path: Path) -> None:
    a0, a1 = run(tmp_path / "a0", 3, [0.2]), run(tmp_path / "a1", 4, [0.2])
    b = run(tmp_path / "b", 3, [0.5], beta=1)
    (b / "config.yaml").write_text('{"recipe": "lsp", "seed": 3, "learner": {"beta": 1, "targets": ["q", "k"]}}')
    html = page_html([a0, a1, b])
    table = html.split("The settings in which the methods differ.")[1].split("</table>")[0]
    rows = [told(row) for row in table.split("<tbody>")[1].split("</tr>")]
    assert rows[:3] == ["seed 3, 4 3", "learner.beta 0.1 1", 'learner.targets — ["q", "k"]']
    assert html.count("(config.yaml repeats the run)") == 3


def test_where_the_page_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = run(tmp_path / "a", 0, [0.1]), run(tmp_path / "b", 0, [0.1], beta=1)
    own = tmp_path / "own"
    (own / "figures").mkdir(parents=True)
    (own / "figures" / "holiday.png").write_bytes(b"mine")
    (a / "figures").mkdir()
    (a / "figures" / "stale.svg").write_bytes(b"ours")
    (a / "figures" / ".written.json").write_text('["stale.svg", "../kept.txt"]')
    (a / "kept.txt").write_text("kept")
    monkeypatch.chdir(own)
    assert write_report([a, b]).resolve() == own / "report.html"
    assert sorted(file.name for file in (own / "figures").glob("[!.]*")) == ["holiday.png", "value.png", "value.svg"]
    assert write_report([a]) == a / "report.html"
    assert sorted(file.name for file in (a / "figures").glob("[!.]*")) == ["value.png", "value.svg"]
    assert (a / "kept.txt").is_file()
    assert write_report([a], own) == own / "report.html"
    assert write_report([a], own / "sub" / "page.html").read_text().startswith("<!doctype html>")
    assert (own / "sub" / "figures" / "value.svg").exists()


# --- task by task ------------------------------------------------------------------------------------


def test_the_curriculum_by_task(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "a", [{"step": 1, "game/V": 0.5}, {"step": 2, "game/V": 0.5}])
    write_turns(folder / "turns", 1, turn_rows(1))
    (folder / "turns" / "step-000002.parquet").write_bytes(b"PAR1 not a table")
    figures = by_task(folder)
    assert figures == {
        1: {
            "tasks/valid/reverse": 1.0, "tasks/level/reverse": 4.0, "tasks/V/reverse": 0.5,
            "tasks/valid/sort": 1.0, "tasks/level/sort": 4.0, "tasks/V/sort": 0.5,
            "tasks/valid/nonsense": 0.0,
        },
    }  # fmt: skip
    rows = {row["step"]: row for row in read_run(folder).rows}
    assert rows[1]["tasks/V/sort"] == 0.5
    names = [panel.name for panel in panels_of(folder)]
    assert [name for name in names if name.startswith("by-task")] == ["by-task-level", "by-task-v", "by-task-valid"]


def test_queries_of_one_task_have_no_such_figures(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "a", [{"step": 1, "game/V": 0.5}])
    write_turns(folder / "turns", 1, turn_rows(1, "sort:abc")[:3])
    rows = [row for row in turn_rows(1) if row["text"].startswith("sort") or row["parent"] > 0]
    write_turns(folder / "turns", 1, rows)
    assert by_task(folder) == {}


def test_long_series_are_binned(tmp_path: Path) -> None:
    (method,) = methods(run(tmp_path / "a", 0, list(np.linspace(0, 1, 4001))))
    curve = method.curve("game/V")
    assert curve is not None
    assert len(curve.steps_P) == 400
    assert curve.values_P[0] == pytest.approx(np.linspace(0, 1, 4001)[:10].mean())
