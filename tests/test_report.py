"""The report of realistic, partial and damaged run folders."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from report_runs import Page, make_run, panels_of, turn_rows, words, write_metrics, write_turns
from sparring.evaluation.comparison import Outcome, compare
from sparring.report.page import page_html, write_report

ATTACK = "<script>alert('x')</script><img src=http://evil.example/x.png>"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    page = write_report([make_run(tmp_path_factory.mktemp("runs") / "lsp-3", attack=ATTACK)])
    return page, page.read_text(encoding="utf-8")


def test_page_is_whole_and_says_the_result(attacked: tuple[Path, str]) -> None:
    path, html = attacked
    page = Page(html)
    evaluation = json.loads((path.parent / "evaluation.json").read_text())
    text = " ".join(page.text.split())
    assert f"beats its base: win rate {100 * evaluation['overall']['win_rate']:.1f} %" in text
    assert f"interval {100 * evaluation['overall']['ci95'][0]:.1f} to" in text
    assert "n_queries: 8" in text
    assert "base.sha256" in text
    assert "Stage 1 this run" in text
    assert "Every turn" in text
    assert "What is missing here" not in text
    assert text.count("easy") > 1
    figures = [tag for tag, _ in page.tags].count("figure")
    assert figures == [tag for tag, _ in page.tags].count("svg") == len(panels_of(path.parent))
    for title in (
        "Win rate by family", "Held-out accuracy", "V: mean reward", "V_Q: mean quality", "Level of the queries",
        "Valid queries", "Queries by family", "KL to the reference, nats", "Entropy, nats a token", "Length, tokens",
        "Distinct queries", "Seconds a step, by phase", "Tokens a second",
    ):  # fmt: skip
        assert f"<h3>{title}</h3>" in html, title


def test_page_loads_nothing_and_escapes_what_others_wrote(attacked: tuple[Path, str]) -> None:
    _, html = attacked
    page = Page(html)
    assert not {"img", "iframe", "link", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "style"):
                assert not re.search(r"https?:|//|javascript:", value or ""), (name, value)
            assert not name.startswith("on")
    assert "@import" not in html
    assert "url(http" not in html
    assert "<img src=http" not in html
    assert "task: &#34;&lt;script&gt;" in html


def test_the_policy_allows_the_browsers_script_alone(attacked: tuple[Path, str]) -> None:
    _, html = attacked
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1
    assert policy == (f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'")


def test_a_runs_name_is_text(tmp_path: Path) -> None:
    name = "<b onclick=x>&quot;"
    for folder in (tmp_path / name, tmp_path / "other"):
        write_metrics(folder, [{"step": step, "game/V": 0.5} for step in (1, 2)])
    for html in (page_html([tmp_path / name]), page_html([tmp_path / name, tmp_path / "other"])):
        page = Page(html)
        assert "<b onclick" not in html
        assert not any("onclick" in attributes for _, attributes in page.tags)
        assert name in page.text


def test_svg_ids_are_unique_and_colours_follow_the_page(attacked: tuple[Path, str]) -> None:
    _, html = attacked
    html = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:url\(#|href="#)([^")]+)', html):
        assert reference in ids
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    for drawing in drawings:
        assert "var(--muted)" in drawing
        assert not re.findall(r"#[0-9a-f]{6}", drawing), "a colour that does not follow the theme"


def test_files_are_there_and_not_blank(attacked: tuple[Path, str]) -> None:
    path, _ = attacked
    files = sorted((path.parent / "figures").glob("*.png"))
    names = {file.stem for file in files}
    assert {"accuracy", "value", "win-rates", "tasks", "kl", "seconds"} <= names
    assert {file.stem for file in (path.parent / "figures").glob("*.svg")} == names
    for file in files:
        image = matplotlib.image.imread(file)
        assert image.shape[1] > 800
        assert image[..., :3].std() > 0.02, file.name
        heading = image[: image.shape[0] // 12, : image.shape[1] // 4, :3]
        assert heading.min() < 0.4, f"{file.name} has no title"


def test_svg_files_need_nothing_else(attacked: tuple[Path, str]) -> None:
    path, _ = attacked
    for file in (path.parent / "figures").glob("*.svg"):
        text = file.read_text()
        assert text.startswith("<?xml")
        assert "var(--" not in text
        assert "<text" not in text, "a font that another machine may lack"
        assert not re.search(r'href="(?!#)', text)
    value = (path.parent / "figures" / "value.svg").read_text()
    assert "<!-- V: mean reward -->" in value, "no title"
    assert "#2a78d6" in value


def test_metrics_alone_make_a_page_and_say_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "running"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "game/V": 0.5}\n{"step": 2, "game/V": 0.6}\n{"step": 3, "ga')
    text = words(write_report([run]).read_text())
    assert "Recorded up to step 2; not evaluated against the base yet." in text
    assert "1 line(s) without a readable step" in text
    for name in ("config.yaml", "evaluation.json", "lineage.json"):
        assert f"{name} is not there" in text
    assert "No turns have been recorded" in text
    assert "KL by role" in text
    assert sorted(file.name for file in (run / "figures").glob("[!.]*")) == ["value.png", "value.svg"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", ""),
        ("metrics.jsonl", '[1]\n"a"\n{"step": "x"}\n{"step": true}\n'),
        (
            "metrics.jsonl",
            '{"step": 1, "game/V": "high", "kl/solver": null, "game/share/a": null, "seconds/play": NaN}\n',
        ),
        (
            "metrics.jsonl",
            '{"step": 1, "seconds/update": "x"}\n{"step": 2, "seconds/update": 1, "lr": 1e999}\n',
        ),
        ("evaluation.json", "{"),
        ("evaluation.json", '{"schema": 9}'),
        ("lineage.json", "[]"),
        ("config.yaml", ""),
        ("config.yaml", "a: [1"),
        ("config.yaml", "- a list"),
        ("config.yaml", "when: 2026-99-99"),
        ("metrics.jsonl", '{"step": 1, "game/V": 1' + "0" * 400 + "}"),
        ("metrics.jsonl", '{"step": 1' + "0" * 400 + ', "game/V": 1}'),
        ("metrics.jsonl", "[" * 100_000),
        ("lineage.json", "[" * 100_000),
    ],
)
def test_damaged_parts_are_said(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    text = Page(page_html([tmp_path])).text
    assert "What is missing here" in text
    if name in ("evaluation.json", "lineage.json") or (name == "config.yaml" and content):
        assert f"{name} could not be read" in text


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([(0, 1)] * 30 + [(1, 1)] * 10, "The trained model beats its base: win rate 87.5 %"),
        ([(1, 0)] * 30 + [(1, 1)] * 10, "The trained model loses to its base: win rate 12.5 %"),
        (
            [(1, 0), (0, 1)] * 10,
            "No clear difference between the trained model and its base: win rate 50.0 %",
        ),
        ([(1, 1)] * 5, "No difference seen: all 5 items are ties"),
    ],
)
def test_headline_says_no_more_than_the_interval(tmp_path: Path, pairs: list[tuple[int, int]], sentence: str) -> None:
    outcomes = [Outcome(str(number), (), base, own) for number, (base, own) in enumerate(pairs)]
    (tmp_path / "evaluation.json").write_text(json.dumps(compare(outcomes).to_json()))
    text = words(page_html([tmp_path]))
    assert sentence in text


def test_not_a_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        write_report([tmp_path])
    with pytest.raises(ValueError, match="is no run folder"):
        write_report([tmp_path / "absent"])


def test_odd_names_and_long_runs_are_drawn(tmp_path: Path) -> None:
    names = ["$x$", "_hidden", "数学", "a<b>&c", "x" * 90, *(f"task {i}" for i in range(6))]
    rows = [
        {"step": step, "game/V": step % 7 / 7, **{f"game/share/{name}": 1 / len(names) for name in names}}
        for step in range(1, 6001)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    html = write_report([tmp_path]).read_text()
    page = Page(html)
    assert "$x$" in page.text
    assert "a<b>&c" in page.text
    assert "other" in page.text
    assert len(html) < 400_000


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "game/V": 0.5, "kl/solver": 0.1}\n')
    write_report([tmp_path])
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "game/V": 0.5}\n')
    assert "Recorded up to step 7" in write_report([tmp_path]).read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["figures", "metrics.jsonl", "report.html"]
    assert sorted(file.name for file in (tmp_path / "figures").glob("[!.]*")) == ["value.png", "value.svg"]


# --- natural language, stages ------------------------------------------------------------------------


def text_metrics(steps: int, **figures: float) -> list[dict[str, Any]]:
    """A run in natural language: nothing held out; one query in four invalid at odd steps."""
    return [
        {
            "step": step,
            "game/V": step / 10,
            "game/V_Q": 5.0,
            "game/valid_share": 1.0 - 0.25 * (step % 2),
            **({"game/problem/too_short": 0.25} if step % 2 else {}),
            "quality/parse_rate": 0.9,
            "kl/solver": 0.01 * step,
            "kl/challenger": 0.02,
            "length/solver": 100.0 + step,
            "length/challenger": 30.0,
            "game/query_length": 30.0,
            "truncated/solver": 0.25,
            "truncated/challenger": 0.0,
            "seconds/play": 0.1,
            "seconds/step": 0.1,
            **figures,
        }
        for step in range(1, steps + 1)
    ]


def stage(recipe: str, **more: Any) -> dict[str, Any]:
    """A stage's record, as far as a page tells it."""
    return {
        "recipe": recipe,
        "preset": "paper",
        "game": recipe,
        "start": "/home/ann/models/base",
        "reference": "/home/ann/models/base",
        "steps": 40,
        "settings": {
            "model": {"tuning": "full"},
            "game": {"domain": "text", "reward": {"function": "score.py:reward", "model": None, "scale": "raw"}},
            "learner": {"lr": 3e-6, "beta": 0.05, "kl": "k3", "schedule": "constant"},
        },
        **more,
    }


def results_of(**metrics: list[float]) -> dict[str, Any]:
    return {"steps": 40, "window": 10, "metrics": {name.replace("__", "/"): pair for name, pair in metrics.items()}}


def test_a_domain_without_held_out_test_is_not_missing_one(tmp_path: Path) -> None:
    write_metrics(tmp_path, text_metrics(40))
    (tmp_path / "lineage.json").write_text(json.dumps({"stages": [stage("lsp", results=results_of())]}))
    write_turns(tmp_path / "turns", 1, turn_rows(1))
    text = words(page_html([tmp_path]))
    assert "40 steps of training: mean reward 0.55 → 3.55; no held-out test in this domain." in text
    assert "a reward that rises is no proof" in text
    for tile in (
        "V, mean reward3.550.55 at the start", "V_Q, mean quality55 at the start",
        "Valid queries87.5 %87.5 % at the start", "Grades read90.0 %90.0 % at the start",
        "KL, Solver0.3550.055 at the start", "KL, Challenger0.020.02 at the start",
        "Answer, tokens136106 at the start",
    ):  # fmt: skip
        assert tile in text, tile
    assert "What is missing here" not in text
    for panel in ("Grades that could be read", "Invalid queries by reason", "Cut off at max_new_tokens", "V_Q"):
        assert panel in text
    assert "Raw reward" not in text


def test_such_a_run_before_its_end_is_recorded_up_to_a_step(tmp_path: Path) -> None:
    write_metrics(tmp_path, text_metrics(7, **{"reward/raw": -2.5}))
    (tmp_path / "lineage.json").write_text(json.dumps({"stages": [stage("lsp")]}))
    text = words(page_html([tmp_path]))
    assert "Recorded up to step 7; not evaluated against the base yet." in text
    assert "evaluation.json is not there (yet)" in text
    assert "Raw reward−2.5−2.5 at the start" in text


def test_the_stages_are_told_in_order_and_the_present_one_is_marked(tmp_path: Path) -> None:
    evaluated = {"overall": {"win_rate": 0.625, "ci95": [0.5, 0.75], "n": 40}, "subsets": {}}
    evaluated["overall"] |= {"base_accuracy": 0.25, "accuracy": 0.5}
    stages = [
        {"recipe": "grpo", "preset": "paper", "start": "arena", "steps": 300},  # an older record
        stage("lsp", results={**results_of(game__V=[0.25, 0.5], kl__solver=[0.0, 0.125]), "evaluation": evaluated}),
        stage("lsp-zero", start="/home/ann/runs/lsp"),
    ]
    write_metrics(tmp_path, text_metrics(3))
    (tmp_path / "lineage.json").write_text(json.dumps({"stages": stages, "note": {"by": "hand"}}))
    html = page_html([tmp_path])
    page = Page(html)
    assert "stage 3 of 3" in page.text
    cards = html.split('<li class="card')[1:]
    assert ["this run" in card for card in cards] == [False, False, True]
    assert [card.startswith(" present") for card in cards] == [False, False, True]
    told = [Page(f'<ol><li class="card{card.split("</li>")[0]}</li></ol>').text for card in cards]
    assert "recipegrpo · paper" in told[0]
    assert "reference" not in told[0]
    for line in (
        "recipelsp · paper", "start…/models/base", "referenceits start", "rewardscore.py:reward", "steps40",
        "learning rate3e-06, constant", "β0.05, KL k3", "tuningfull", "V, mean reward0.25 → 0.5",
        "KL, solver0 → 0.125", "win rate against its start62.5% (95 % interval 50.0% to 75.0%, n = 40)",
        "final accuracy, overall25.0% → 50.0%",
    ):  # fmt: skip
        assert line in told[1], line
    assert "start…/runs/lsp" in told[2]
    assert "note.by" in page.text
    assert "/home/ann" not in page.text


@pytest.mark.parametrize("stages", [3, ["x"], [{"results": {"metrics": 3}}], [{"results": {}}], {"a": 1}])
def test_a_damaged_stage_is_said(tmp_path: Path, stages: Any) -> None:
    write_metrics(tmp_path, [{"step": 1, "game/V": 0.5}])
    (tmp_path / "lineage.json").write_text(json.dumps({"stages": stages}))
    text = Page(page_html([tmp_path])).text
    assert "lineage.json could not be read: a stage is damaged" in text


def test_steps_without_an_invalid_query_count_too(tmp_path: Path) -> None:
    write_metrics(tmp_path, text_metrics(6))
    (panel,) = [panel for panel in panels_of(tmp_path) if panel.name == "problems"]
    (band,) = panel.figure.axes[0].collections
    heights = {float(x): float(y) for x, y in band.get_paths()[0].vertices if y > 0}
    assert heights == {1.0: 0.25, 3.0: 0.25, 5.0: 0.25}
    assert {x for x, y in band.get_paths()[0].vertices if y == 0} >= {2.0, 4.0, 6.0}


def test_what_was_not_measured_is_not_in_a_legend(tmp_path: Path) -> None:
    rows = [{"step": step, "kl/solver": 0.1, "kl/challenger": None} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (panel,) = panels_of(tmp_path)
    assert not panel.figure.legends
    rows = [{"step": step, "eval/easy": 0.1, "eval/hard": None} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (panel,) = panels_of(tmp_path)
    assert not panel.figure.legends


def test_only_figures_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/easy": 0.5}\n{"step": 1, "eval/easy": 0.6}\n')
    mine = tmp_path / "figures" / "my-plot.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    write_report([tmp_path])
    assert (tmp_path / "figures/accuracy.svg").is_file()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kl/solver": 0.6}\n')
    write_report([tmp_path])
    assert mine.read_bytes() == b"mine"
    assert not (tmp_path / "figures/accuracy.svg").exists()
