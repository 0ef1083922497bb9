"""The report of realistic, partial and damaged run folders."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.evaluation.comparison import Outcome, compare
from sparring.report.figures import panels
from sparring.report.page import write_report
from sparring.report.run import read_run

FAMILIES = ("skip", "reverse", "sort", "flip", "unique", "trail", "sum", "chain")
VOID = {"meta", "br", "use", "path", "link", "img"}
ATTACK = "<script>alert('x')</script><img src=http://evil.example/x.png>"


class Page(HTMLParser):
    """Collects a page and checks that its tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def metrics_row(step: int, steps: int, rng: np.random.Generator) -> dict[str, Any]:
    progress = step / steps
    shares = rng.dirichlet(8 * np.roll(np.linspace(0.3, 1.7, len(FAMILIES)), int(6 * progress)))
    noise = rng.normal(size=8)
    play, payoffs, update = 0.35 + 0.1 * progress, 0.06, 0.4 + 0.02 * abs(noise[0])
    return {
        "step": step,
        "game/V": float(np.clip(0.35 + 0.2 * progress + 0.07 * noise[0], 0, 1)),
        "game/V_Q": 4.8 + 0.9 * progress + 0.2 * noise[1],
        "game/valid_share": float(np.clip(0.86 + 0.1 * progress + 0.05 * noise[2], 0, 1)),
        "game/dead_groups": float(np.clip(0.4 - 0.2 * progress + 0.1 * noise[3], 0, 1)),
        "game/distinct_queries": float(np.clip(0.98 - 0.1 * progress, 0, 1)),
        "game/query_length": 9 + 3 * progress + 0.4 * noise[4],
        "length/solver": 7 + 2 * progress + 0.3 * noise[5],
        "game/level": 4 + 3 * progress + 0.4 * noise[6],
        **{f"game/share/{family}": float(share) for family, share in zip(FAMILIES, shares, strict=True)},
        "reward/solver": 0.4,
        "kl/challenger": 0.3 * progress + 0.02 * abs(noise[7]),
        "kl/solver": 0.15 * progress,
        "entropy/challenger": 1.9 - 0.5 * progress,
        "entropy/solver": 0.6 - 0.3 * progress,
        "loss": float("nan") if step == 3 else 0.1,
        "seconds/play": play,
        "seconds/payoffs": payoffs,
        "seconds/update": update,
        "seconds/step": play + payoffs + update,
        "tokens_per_second": 5400.0,
    }


def turn_rows(step: int, text: str | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def add(role: str, content: str, parent: int, payoff: float | None, parts: dict[str, float | None]) -> int:
        rows.append(
            {
                "step": step,
                "index": len(rows),
                "parent": parent,
                "role": role,
                "prompt": "Write one query." if parent < 0 else "Answer: " + rows[parent]["text"],
                "text": content,
                "finish": "stop",
                "prompt_tokens": 11,
                "completion_tokens": len(content),
                "payoff": payoff,
                "parts": json.dumps(parts),
                "advantage": None if payoff is None else payoff - 0.5,
                "trained": parent < 0 or payoff is not None,
                "info": json.dumps({"query": {"family": "reverse", "level": 4, "problem": None}}),
            }
        )
        return len(rows) - 1

    for query in (text or "reverse:bead", "sort:tkcab", "nonsense: abc"):
        at = add("challenger", query, -1, -0.4, {"reward": -0.75, "quality": 0.35})
        if not query.startswith("nonsense"):
            for answer, reward in (("daeb", 1.0), ("dabe", 0.0), ("daeb", 1.0), ("daeb", None), ("da", 0.0)):
                add("solver", answer, at, reward, {"reward": reward, "quality": 5.0})
    return rows


def write_turns(folder: Path, step: int, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"step-{step:06d}.parquet")


def make_run(folder: Path, steps: int = 60, attack: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = [json.dumps({"step": 0, "eval/easy": 0.62, "eval/hard": 0.21})]
    for step in range(1, steps + 1):
        row = metrics_row(step, steps, rng)
        if step % (steps // 6) == 0:
            row |= {"eval/easy": 0.62 + 0.2 * step / steps, "eval/hard": 0.21 + 0.4 * step / steps}
        lines.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    outcomes = [
        Outcome(
            f"{split}/{family}/{item}",
            (split, family),
            float(rng.random() < base),
            float(rng.random() < base + up),
        )
        for split, base, up in (("easy", 0.6, 0.15), ("hard", 0.2, 0.4))
        for family in FAMILIES
        for item in range(40)
    ]
    (folder / "evaluation.json").write_text(json.dumps(compare(outcomes).to_json()))
    (folder / "config.yaml").write_text(f"recipe: lsp\nn_queries: 8\nseed: 3\ntask: {json.dumps(attack or 'words')}\n")
    (folder / "lineage.json").write_text(json.dumps({"base": {"sha256": "ab12"}, "stages": [{"recipe": "lsp"}]}))
    for step in (1, steps // 2, steps):
        write_turns(folder / "turns", step, turn_rows(step, attack))
    return folder


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    page = write_report(make_run(tmp_path_factory.mktemp("runs") / "lsp-3", attack=ATTACK))
    return page, page.read_text(encoding="utf-8")


def test_page_is_whole_and_says_the_result(attacked: tuple[Path, str]) -> None:
    path, html = attacked
    page = Page(html)
    evaluation = json.loads((path.parent / "evaluation.json").read_text())
    text = " ".join(page.text.split())
    assert f"beats its base: win rate {100 * evaluation['overall']['win_rate']:.1f} %" in text
    assert f"interval {100 * evaluation['overall']['ci95'][0]:.1f} to" in text
    assert "Early: step 1" in text
    assert "Middle: step 30" in text
    assert "Late: step 60" in text
    assert "n_queries: 8" in text
    assert "base.sha256" in text
    assert "Stage 1 this run" in text
    assert "and 1 more" in text
    assert "not trained" in text
    assert "family reverse, level 4" in text
    assert "problem" not in text
    assert "What is missing here" not in text
    rows = [tag for tag, _ in page.tags].count("tr")
    assert rows == 1 + 1 + 2 + 2 * len(FAMILIES)
    figures = [tag for tag, _ in page.tags].count("figure")
    assert figures == [tag for tag, _ in page.tags].count("svg") == 13


def test_page_loads_nothing_and_escapes_model_text(attacked: tuple[Path, str]) -> None:
    _, html = attacked
    page = Page(html)
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "style"):
                assert not re.search(r"https?:|//|javascript:", value or ""), (name, value)
            assert not name.startswith("on")
    assert "@import" not in html
    assert "url(http" not in html
    assert ATTACK in page.text
    assert "&lt;script&gt;" in html


def test_svg_ids_are_unique_and_colours_follow_the_page(attacked: tuple[Path, str]) -> None:
    _, html = attacked
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:url\(#|href="#)([^")]+)', html):
        assert reference in ids
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    for drawing in drawings:
        assert "var(--muted)" in drawing
        assert not re.findall(r"#[0-9a-f]{6}", drawing), "a colour that does not follow the theme"


def test_pngs_are_there_and_not_blank(attacked: tuple[Path, str]) -> None:
    path, _ = attacked
    files = sorted((path.parent / "figures").glob("*"))
    assert {"accuracy.png", "value.png", "win-rates.png", "tasks.png", "kl.png", "seconds.png"} <= {
        f.name for f in files
    }
    for file in files:
        image = matplotlib.image.imread(file)
        assert image.shape[1] > 800
        assert image[..., :3].std() > 0.02, file.name
        heading = image[: image.shape[0] // 12, : image.shape[1] // 4, :3]
        assert heading.min() < 0.4, f"{file.name} has no title"


def test_metrics_alone_make_a_page_and_say_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "running"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "game/V": 0.5}\n{"step": 2, "game/V": 0.6}\n{"step": 3, "ga')
    text = " ".join(Page(write_report(run).read_text()).text.split())
    assert "Recorded up to step 2; not evaluated against the base yet." in text
    assert "1 line(s) without a readable step" in text
    for name in ("config.yaml", "evaluation.json", "lineage.json"):
        assert f"{name} is not there" in text
    assert "No turns have been recorded" in text
    assert "KL by role" in text
    assert [file.name for file in (run / "figures").iterdir()] == ["value.png"]


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
    ],
)
def test_damaged_parts_are_said(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    text = Page(write_report(tmp_path).read_text()).text
    assert "What is missing here" in text
    if name in ("evaluation.json", "lineage.json"):
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
    text = " ".join(Page(write_report(tmp_path).read_text()).text.split())
    assert sentence in text


def test_damaged_turns_are_said_and_the_others_shown(tmp_path: Path) -> None:
    write_turns(tmp_path / "turns", 1, turn_rows(1))
    (tmp_path / "turns" / "step-000009.parquet").write_bytes(b"PAR1 not a table")
    write_turns(tmp_path / "turns", 5, [{"step": 5, "other": "x"}])
    text = Page(write_report(tmp_path).read_text()).text
    assert "step-000009.parquet could not be read" in text
    assert "step-000005.parquet could not be read: no column role, text" in text
    assert "Early: step 1" in text


def test_not_a_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="is no run folder"):
        write_report(tmp_path / "absent")


def test_a_game_on_a_data_set_is_grouped_by_prompt(tmp_path: Path) -> None:
    rows = [
        {
            "step": 4,
            "index": i,
            "parent": -1,
            "role": "solver",
            "prompt": f"sum:{i // 3}",
            "text": f"answer {i}",
        }
        for i in range(6)
    ]
    write_turns(tmp_path / "turns", 4, rows)
    page = Page(write_report(tmp_path).read_text())
    assert (
        page.text.index("sum:0") < page.text.index("answer 2") < page.text.index("sum:1") < page.text.index("answer 3")
    )
    assert page.text.count("Early: step 4") == 1


def test_several_steps_in_one_file_still_give_early_and_late(tmp_path: Path) -> None:
    write_turns(tmp_path / "turns", 1, [row for step in (1, 2, 3, 4) for row in turn_rows(step)])
    text = Page(write_report(tmp_path).read_text()).text
    assert "Early: step 1" in text
    assert "Middle: step 3" in text
    assert "Late: step 4" in text


def test_odd_names_and_long_runs_are_drawn(tmp_path: Path) -> None:
    names = ["$x$", "_hidden", "数学", "a<b>&c", "x" * 90, *(f"task {i}" for i in range(6))]
    rows = [
        {"step": step, "game/V": step % 7 / 7, **{f"game/share/{name}": 1 / len(names) for name in names}}
        for step in range(1, 6001)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    html = write_report(tmp_path).read_text()
    page = Page(html)
    assert "$x$" in page.text
    assert "a<b>&c" in page.text
    assert "other" in page.text
    assert len(html) < 400_000


def test_control_characters_of_model_text_are_shown(tmp_path: Path) -> None:
    rows = turn_rows(1, "a\x00b\x1b[31mred\u202eevil")
    write_turns(tmp_path / "turns", 1, rows)
    html = write_report(tmp_path).read_text()
    assert "\x00" not in html
    assert "\u202e" not in html
    assert "a\\x00b\\x1b[31mred\\x202eevil" in html


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "game/V": 0.5, "kl/solver": 0.1}\n')
    write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "game/V": 0.5}\n')
    assert "Recorded up to step 7" in write_report(tmp_path).read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["figures", "metrics.jsonl", "report.html"]
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["value.png"]


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


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "config.yaml").write_text("game:\n  domain: text\n")


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
    text = " ".join(Page(write_report(tmp_path).read_text()).text.split())
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
    text = " ".join(Page(write_report(tmp_path).read_text()).text.split())
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
    html = write_report(tmp_path).read_text()
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
    write_metrics(tmp_path, text_metrics(3))
    (tmp_path / "lineage.json").write_text(json.dumps({"stages": stages}))
    text = Page(write_report(tmp_path).read_text()).text
    assert "lineage.json could not be read: a stage is damaged" in text


LONG = "First line.\n\n    indented\n" + "words that go on " * 20


def talk(**row: Any) -> dict[str, Any]:
    return {
        "step": 1, "index": 0, "parent": -1, "prompt": "p", "thought": None, "finish": "stop", "payoff": None,
        "parts": None, "advantage": None, "trained": True, "completion_tokens": 9, "info": "{}", **row,
    }  # fmt: skip


def test_long_turns_keep_their_lines_and_thoughts_are_folded(tmp_path: Path) -> None:
    query = {"task": {"task": LONG, "name": "planning"}, "query": {"text": "Plan a day.", "problem": None}}
    known = {"query_text": "Plan a day.", "family": "travel"}
    parts = json.dumps({"reward": 0.5, "quality": 5.0})
    rows = [
        talk(role="challenger", text="Well.\n<input>Plan a day.</input>", thought="hmm", info=json.dumps(query)),
        talk(index=1, parent=0, role="solver", text=LONG, thought=f"Let me\n{ATTACK}", payoff=5.5, parts=parts,
             info=json.dumps(known)),
        talk(index=2, parent=0, role="solver", text="", thought="never ends", finish="length",
             info=json.dumps({**known, "too_long": True})),
        talk(index=3, parent=1, role="grader", text="1+1=2\n<score>5</score>", finish="length", trained=False),
    ]  # fmt: skip
    write_turns(tmp_path / "turns", 1, rows)
    html = write_report(tmp_path).read_text()
    page = Page(html)
    assert f"<pre>{LONG}</pre>" in html
    assert '<div class="thread prose">' in html
    assert "<pre>Plan a day.</pre>" in html
    assert "as written, with what stands around the query" in page.text
    assert "<summary>thought, 3 characters</summary>" in html
    assert ATTACK in page.text
    assert "nothing said" in page.text
    assert "<summary>grader, cut off</summary>" in html
    assert "1+1=2\n" in page.text
    for chip in ("payoff 5.5", "reward 0.5", "quality 5", "task planning", "too_long True", "cut off"):
        assert f"<span>{chip}</span>" in html or f'<span class="total">{chip}</span>' in html, chip
    assert "family travel" not in page.text  # of every answer alike
    folded = [attributes for tag, attributes in page.tags if tag == "details" and "open" not in attributes]
    assert len(folded) == 3 + 1 + 1 + 1  # thoughts, as written, grader, versions


def test_what_a_prompts_row_knows_is_said_once(tmp_path: Path) -> None:
    info = json.dumps({"output": "The planet is Jupiter.", "query_text": "Which?", "conversational": False})
    rows = [talk(index=at, role="solver", prompt="Which?", text=f"answer {at}", info=info) for at in range(3)]
    write_turns(tmp_path / "turns", 1, rows)
    html = write_report(tmp_path).read_text()
    assert html.count("output The planet is Jupiter.") == 1
    assert '<div class="thread">' in html
    assert "as written" not in html


def test_steps_without_an_invalid_query_count_too(tmp_path: Path) -> None:
    write_metrics(tmp_path, text_metrics(6))
    (panel,) = [panel for panel in panels(read_run(tmp_path)) if panel.name == "problems"]
    (band,) = panel.figure.axes[0].collections
    heights = {float(x): float(y) for x, y in band.get_paths()[0].vertices if y > 0}
    assert heights == {1.0: 0.25, 3.0: 0.25, 5.0: 0.25}
    assert {x for x, y in band.get_paths()[0].vertices if y == 0} >= {2.0, 4.0, 6.0}


def test_what_was_not_measured_is_not_in_a_legend(tmp_path: Path) -> None:
    rows = [{"step": step, "game/query_length": 3.0} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (panel,) = panels(read_run(tmp_path))
    assert [text.get_text() for text in panel.figure.legends[0].get_texts()] == ["query"]
