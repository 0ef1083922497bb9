"""The report's sample browser in headless Chromium, and what it is made of."""

import base64
import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromium import chromium_fixture, opened  # noqa: F401
from sparring.evaluation.alpaca_eval.verdicts import is_switched
from sparring.report.browser import browser
from sparring.report.drawing import VARIABLES
from sparring.report.packing import Blocks, packed
from sparring.report.turns import read_turns
from sparring.report.verdicts import read_judged
from sparring.runfolder import RunFolder

ATTACK = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> ]]> {{ 7 }} \u2028 \u202eevil\u202c \x1b[31m <!--"
)
DARK = (
    "--page: #12151a; --card: #1a1e25; --ink: #e7eaef; --muted: #9aa3b1; --grid: #323843; --c1: #5a9bf0; "
    "--c2: #f0834f; --c3: #35bd8c; --c4: #9c86f0; --c5: #e0aa32; --c6: #e578a8; --c7: #6fb64f; --c8: #7c8697;"
)
STYLE = """
:root {{ color-scheme: light dark; --page: #f4f5f7; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 15px system-ui; overflow-wrap: anywhere; }}
main {{ max-width: 1240px; margin: 0 auto; padding: 16px 12px; }}
.card {{ background: var(--card); border: 1px solid var(--grid); border-radius: 10px; padding: 14px 16px; }}
.caption {{ color: var(--muted); font-size: 13px; }}
pre {{ white-space: pre-wrap; margin: 0; }}
.chips {{ display: flex; flex-wrap: wrap; gap: 4px 6px; font-size: 12px; }}
.chips span {{ border: 1px solid var(--grid); border-radius: 6px; padding: 0 6px; color: var(--muted); }}
"""


def write_page(path: Path, *runs: Path) -> Path:
    """The fragment alone in a page as strict as the report's."""
    fragment = browser([(run.name, run) for run in runs])
    style = STYLE.format(light=" ".join(f"{name}: {colour};" for colour, name in VARIABLES.items()), dark=DARK)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src '{fragment.script_hash}'"
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>t</title><style>{style}</style>'
    )
    html = f'<!doctype html><html lang="en"><head>{head}</head><body><main>{fragment.html}</main></body></html>'
    path.write_text(html, encoding="utf-8")
    return path


class Steps:
    """Turns of steps, written as runs write them."""

    def __init__(self, run: Path) -> None:
        self.folder = RunFolder(run)
        self.rows: list[dict[str, Any]] = []

    def turn(self, role: str, text: str, parent: int = -1, **more: Any) -> int:
        """Add a turn; its index."""
        parts = more.pop("parts", {})
        known = [value for value in parts.values() if value is not None]
        row = {
            "index": len(self.rows),
            "parent": parent,
            "role": role,
            "model": "policy",
            "prompt": "prompt",
            "text": text,
            "thought": None,
            "finish": "stop",
            "prompt_tokens": 9,
            "completion_tokens": len(text),
            "payoff": sum(known) if known else None,
            "parts": json.dumps(parts) if parts else None,
            "advantage": None,
            "trained": True,
            "info": "{}",
        }
        more["info"] = json.dumps(more.get("info", {}))
        self.rows.append(row | more)
        return len(self.rows) - 1

    def query(
        self, text: str, *, said: str | None = None, task: str = "general", parts: Any = None, **query: Any
    ) -> int:
        """A Challenger's turn."""
        about = {"text": text, "problem": None, "reserved": False, "family": None, "level": None, "columns": {}} | query
        info = {"task": {"task": "", "template": "", "name": task}, "query": about}
        return self.turn("challenger", said or text, parts=parts or {"value": -0.5}, info=info, prompt="Ask something.")

    def write(self, step: int) -> None:
        """The step ends."""
        self.folder.turns.mkdir(parents=True, exist_ok=True)
        self.folder.write_turns(step, self.rows)
        self.rows = []


def make_lsp(run: Path) -> Path:
    """Six steps: a thread with everything, a dead group, an invalid and a reserved query each."""
    steps = Steps(run)
    for step in range(1, 7):
        at = steps.query(
            f"Why is the sky blue at step {step}?",
            said=f"Here it is: <input>Why is the sky blue at step {step}?</input>",
            parts={"value": -0.25 * step, "quality": 0.75},
            columns={"answer": "Rayleigh scattering"},
        )
        dead = steps.query("How many legs has a spider?", level=2.0, family="counting")
        steps.query("", problem="no <input> markers", said=f"I would ask nothing {step}", parts={"invalid": -1.5})
        steps.query("A question of the tests", reserved=True)
        for number, (text, reward) in enumerate(
            (("Short waves scatter", 1.0), ("Because of the sea", 0.0), ("Süßes ÉTÉ", 0.5))
        ):
            answer = steps.turn(
                "solver",
                f"{text}, {step}",
                at,
                thought=f"Let me think about wave {step}.{number}" if number == 0 else None,
                parts={"reward": reward, "quality": None if number == 2 else 0.75},
                advantage=reward - 0.5,
                finish="length" if number == 1 else "stop",
                info={"answer": "Rayleigh scattering", "query_text": "q", "family": None, "draft": number},
            )
            steps.turn("grader", "<score>5</score>", answer, model="reference", trained=False, prompt="Judge " * 50)
        for _ in range(3):
            steps.turn("solver", "Eight", dead, parts={"reward": 1.0}, advantage=0.0, trained=False)
        steps.write(step)
    return run


def make_grpo(run: Path) -> Path:
    """Three steps of a data set, two prompts each."""
    steps = Steps(run)
    for step in (1, 2, 3):
        for number in (1, 2):
            info = {
                "answer": str(number * step),
                "tests": "assert True\nassert 1",
                "query_text": "q",
                "conversational": False,
            }
            for reward in (1.0, 0.0, None):
                steps.turn(
                    "solver",
                    f"The answer to {number} is {reward}",
                    parts={"reward": reward},
                    prompt=f"What is {number} times {step}?",
                    info=info,
                )
        steps.write(step)
    return run


def make_judged(run: Path) -> Path:
    """Five pairs in both orders, and AlpacaEval's three in one."""
    folder = run / "evaluations"
    folder.mkdir(parents=True)
    verdicts = (("win", 0.9, 0.8), ("tie", 0.5, 0.5), ("loss", 0.1, 0.2), ("flip", 0.9, 0.3), ("unparsed", None, 0.6))
    rows = [
        {
            "instruction": f"Instruction {name}",
            "subset": "koala" if number % 2 else "vicuna",
            "model_output": f"ours {name}",
            "base_output": f"theirs {name}",
            "model_first": first,
            "model_second": second,
            "said": [f"first said {name}", "m"],
        }
        for number, (name, first, second) in enumerate(verdicts)
    ]
    (folder / "win-rate-mine-verdicts.json").write_text(json.dumps(rows))
    overall = {"n": 4, "win_rate": 0.5, "ci95": [0.4, 0.6]}
    document = {"schema": 1, "kind": "win-rate", "name": "win-rate-mine", "metric": "win_rate", "model": "runs/lsp"}
    document |= {"base": "meta/llama", "overall": overall, "settings": {"judge": "gpt-9"}}
    (folder / "win-rate-mine.json").write_text(json.dumps(document))
    annotations = [
        {
            "instruction": f"Alpaca {value}",
            "output_1": "old",
            "output_2": "new",
            "preference": value,
            "dataset": "koala",
        }
        for value in (1.9, 1.2, None, 0)
    ]
    (folder / "alpaca_eval-annotations.json").write_text(json.dumps(annotations))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_judged(make_lsp(folder / "lsp"))
    make_grpo(folder / "grpo")
    return folder


@pytest.fixture(scope="module")
def page_path(runs: Path) -> Path:
    return write_page(runs / "page.html", runs / "lsp", runs / "grpo")


@contextmanager
def browsing(chromium: Any, path: Path, **how: Any) -> Iterator[Any]:
    with opened(chromium, path, **how) as page:
        page.wait_for_selector("[data-ready]")
        yield page


def told(page: Any) -> str:
    return page.locator(".told:visible").inner_text()


def cards(page: Any) -> list[str]:
    return page.locator(".view:visible .thread").all_inner_texts()


def wait_told(page: Any, start: str) -> None:
    page.wait_for_function(
        "start => document.querySelector('.view:not([hidden]) .told').innerText.startsWith(start)", arg=start
    )


@pytest.mark.browser
class TestTurns:
    def test_everything_is_shown_in_the_order_of_play(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path) as page:
            assert told(page) == "30 of 30 threads."
            first = page.locator(".thread").first
            assert "Step 1 · lsp" in first.inner_text()
            assert page.locator(".view:visible .thread").count() == 10
            page.get_by_role("button", name="Next").first.click()
            page.wait_for_function("() => document.querySelector('.pages input').value === '2'")
            page.locator(".pages input").nth(1).fill("3")
            page.locator(".pages input").nth(1).press("Enter")
            page.wait_for_function("() => document.querySelector('.pages [data-go=\"1\"]').disabled")
            assert "Step 6" in cards(page)[-1]
            assert "page=3" in page.url

    def test_a_thread_has_all_its_parts(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path) as page:
            thread = page.locator(".thread").first
            answers = thread.locator(".answers > .turn")
            assert answers.count() == 3
            assert thread.locator(".reference pre").all_inner_texts() == ["Rayleigh scattering"]
            query = thread.locator(".turn").first
            assert query.locator("> pre").inner_text() == "Why is the sky blue at step 1?"
            assert "payoff 0.5" in query.inner_text()
            chips = answers.nth(0).locator("> .chips span").all_inner_texts()
            assert chips == ["reward 1", "quality 0.75", "▲ advantage +0.5", "22 tokens", "draft 0"]
            assert "payoff 1.75" in answers.nth(0).inner_text()
            thought = answers.nth(0).locator("details").first
            assert not thought.locator("pre").is_visible()
            thought.locator("summary").click()
            assert thought.locator("pre").inner_text() == "Let me think about wave 1.0"
            assert "cut off" in answers.nth(1).locator("> .chips").inner_text()
            assert "quality —" in answers.nth(2).locator("> .chips").inner_text()
            answers.nth(1).get_by_text("grader", exact=True).first.click()
            assert "<score>5</score>" in answers.nth(1).inner_text()
            folds = query.locator("details")
            folds.nth(0).locator("summary").click()
            assert folds.nth(0).locator("pre").inner_text().startswith("Here it is: <input>")

    def test_dead_invalid_and_reserved_say_so(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path) as page:
            shown = cards(page)
            assert "dead group" in shown[1]
            assert shown[1].count("not trained") == 3
            assert "invalid: no <input> markers" in shown[2]
            assert "I would ask nothing 1" in shown[2]
            assert "reserved for the tests" in shown[3]

    def test_a_data_sets_prompt_has_its_answers_and_reference(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path, fragment="#browse=turns&run=grpo&from=3") as page:
            assert told(page).startswith("2 of 30 threads")
            thread = page.locator(".thread").first
            assert thread.locator(".prompt pre").inner_text() == "What is 1 times 3?"
            assert thread.locator(".reference h4").all_inner_texts() == ["reference: answer", "reference: tests"]
            assert thread.locator(".reference pre").all_inner_texts() == ["3", "assert True\nassert 1"]
            assert thread.locator(".answers h4 strong").all_inner_texts() == ["payoff 1", "payoff 0", "not paid"]

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"from": "2", "to": "3"}, "12 of 30 threads."),
            ({"state": "dead"}, "6 of 30 threads."),
            ({"state": "problem:no <input> markers"}, "6 of 30 threads."),
            ({"state": "answered", "run": "grpo"}, "6 of 30 threads."),
            ({"state": "cut"}, "6 of 30 threads."),
            ({"role": "grader"}, "6 of 30 threads; 18 turns of 96 match."),
            ({"role": "challenger", "most": "-1"}, "6 of 30 threads; 6 turns of 96 match."),
            ({"measure": "part:quality", "least": "0.7", "role": "solver"}, "6 of 30 threads; 12 turns of 96 match."),
            ({"measure": "part:reward", "least": "0.5", "most": "0.5"}, "6 of 30 threads; 6 turns of 96 match."),
            ({"text": "WAVE"}, "6 of 30 threads; 6 turns of 96 match."),
            ({"text": "süsses"}, "0 of 30 threads; 0 turns of 96 match."),
            ({"text": "SÜßES été"}, "6 of 30 threads; 6 turns of 96 match."),
            ({"text": "rayleigh"}, "6 of 30 threads; 42 turns of 96 match."),
            ({"text": "sky", "role": "solver"}, "0 of 30 threads; 0 turns of 96 match."),
            ({"text": "step 4", "from": "2", "role": "challenger"}, "1 of 30 threads; 1 turn of 96 match."),
            ({"text": ".*"}, "0 of 30 threads; 0 turns of 96 match."),
        ],
    )
    def test_filters(self, page: Any, fields: dict[str, str], expected: str) -> None:
        page.get_by_role("button", name="Reset").click()
        wait_told(page, "30 of 30 threads.")
        for name, value in fields.items():
            field = page.locator(f".view:visible [name={name}]")
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)
        wait_told(page, expected)

    def test_what_is_looked_for_is_marked_and_unfolded(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path, fragment="#browse=turns&text=think+about") as page:
            assert page.locator("mark").all_inner_texts() == ["think about"] * 6
            assert page.locator("mark").first.is_visible()
            assert page.locator(".turn.hit").count() == 6

    def test_order(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path, fragment="#browse=turns&sort=last") as page:
            assert "Step 6" in cards(page)[0]
            page.locator("[name=role]").select_option("challenger")
            page.locator("[name=sort]").first.select_option("low")
            wait_told(page, "24 of 30")
            page.wait_for_function("() => document.querySelector('.thread').innerText.includes('payoff −1.5')")
            page.locator("[name=role]").select_option("")
            page.locator("[name=sort]").first.select_option("spread")
            wait_told(page, "30 of 30")
            page.wait_for_function("() => document.querySelector('.thread').innerText.includes('sky blue')")
            assert page.locator("[name=sort] option:checked").first.inner_text() == "widest spread of payoff"

    def test_the_address_keeps_the_filters(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path) as page:
            assert page.url == page_path.as_uri()
            page.locator("[name=text]").first.fill("wave")
            wait_told(page, "6 of 30")
            page.locator("[name=to]").fill("2")
            wait_told(page, "2 of 30")
            address = page.url
            page.reload()
            page.wait_for_selector("[data-ready]")
            assert told(page).startswith("2 of 30 threads")
            assert page.url == address
            page.get_by_role("button", name="Reset").click()
            wait_told(page, "30 of 30")
            assert page.url.endswith("#browse=turns")

    def test_by_keyboard(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path) as page:
            page.get_by_label("Text").first.focus()
            page.keyboard.type("spider")
            wait_told(page, "6 of 30")
            page.keyboard.press("Enter")  # does not leave the page
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.name") == "run"
            unnamed = page.locator("input:not([type=hidden]), select").evaluate_all(
                "all => all.filter(e => !e.labels.length).length"
            )
            assert unnamed == 0


@pytest.fixture(scope="class")
def page(chromium: Any, page_path: Path) -> Iterator[Any]:
    with browsing(chromium, page_path) as found:
        yield found


@pytest.mark.browser
class TestJudged:
    def test_verdicts_of_both_orders(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path) as page:
            page.get_by_role("button", name="Judged answers").click()
            assert told(page) == "9 of 9 judged pairs."
            page.get_by_label("Text").locator("visible=true").fill("instruction win")
            wait_told(page, "1 of 9")
            card = page.locator(".view:visible .thread")
            assert card.locator("dt").all_inner_texts() == ["trained shown first", "base shown first"]
            assert card.locator("dd strong").all_inner_texts() == ["trained is better (0.9)", "trained is better (0.8)"]
            assert "first said win" in card.inner_text()
            assert "verdict of gpt-9" in card.inner_text()
            assert card.locator(".won").inner_text().split() == ["trained:", "runs/lsp", "won", "ours", "win"]
            assert "base: meta/llama" in card.inner_text()

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ("outcome=win", ["Alpaca 1.9", "Instruction win", "Instruction flip"]),
            ("outcome=loss", ["Alpaca 1.2", "Instruction loss"]),
            ("outcome=tie", ["Alpaca 0", "Instruction tie"]),
            ("outcome=flipped", ["Instruction flip"]),
            ("outcome=unparsed", ["Alpaca None", "Instruction unparsed"]),
            ("evaluation=win-rate-mine&subset=koala", ["Instruction tie", "Instruction flip"]),
            ("text=OURS+loss", ["Instruction loss"]),
            ("run=grpo", []),
            (
                "evaluation=win-rate-mine&sort=low",
                [f"Instruction {n}" for n in ("loss", "tie", "flip", "win", "unparsed")],
            ),
        ],
    )
    def test_filters(self, chromium: Any, page_path: Path, fields: str, expected: list[str]) -> None:
        with browsing(chromium, page_path, fragment=f"#browse=judged&{fields}") as page:
            assert told(page) == f"{len(expected)} of 9 judged pairs."
            assert page.locator(".view:visible .thread .prompt pre").all_inner_texts() == expected

    def test_one_order_is_shown_as_it_was_asked(self, chromium: Any, page_path: Path) -> None:
        with browsing(chromium, page_path, fragment="#browse=judged&text=Alpaca+1.9") as page:
            first = "trained shown first" if is_switched("Alpaca 1.9") else "base shown first"
            assert page.locator(".view:visible dt").all_inner_texts() == [first]
            assert page.locator(".view:visible dd").all_inner_texts() == ["trained is better (0.9)"]


@pytest.mark.browser
def test_hostile_texts_are_inert(chromium: Any, tmp_path: Path) -> None:
    steps = Steps(tmp_path / "evil")
    long = "x" * 60_000 + " needle " + "é" * 40_000
    for attack in (ATTACK, long, "\u05d0\u05d1\u05d2 right to left 123", "👨\u200d👩\u200d👧 zero\u200bwidth"):
        at = steps.query(attack, task=attack[:200], problem=None, columns={"answer": attack})
        info = {"answer": attack, "query_text": attack, "lone": "\ud800 half"}
        answer = steps.turn("solver", attack, at, thought=attack, parts={attack[:60]: 1.0}, info=info)
        steps.turn("grader", attack, answer, model="reference", trained=False)
    steps.query("", problem=ATTACK, said=ATTACK)
    steps.write(1)
    with browsing(chromium, write_page(tmp_path / "page.html", tmp_path / "evil")) as page:
        assert page.locator(".thread").count() == 5
        assert page.locator("img").count() == 0
        answer = page.locator(".thread").first.locator(".answers > .turn")
        assert answer.locator("> pre").text_content() == ATTACK.replace("\u2028", "\\x2028").replace(
            "\u202e", "\\x202e"
        ).replace("\u202c", "\\x202c").replace("\x1b", "\\x1b")
        assert "\\xd800 half" in page.locator(".thread").first.text_content()
        assert (
            page.locator(".thread").nth(3).locator(".answers pre").nth(1).text_content()
            == "👨\u200d👩\u200d👧 zero\\x200bwidth"
        )
        pre = page.locator(".thread").nth(1).locator(".answers > .turn > div > pre")
        assert len(pre.text_content()) < 5000
        page.locator(".thread").nth(1).locator(".answers > .turn > div > .more").click()
        assert pre.text_content() == long
        page.locator("[name=text]").fill("NEEDLE")
        wait_told(page, "1 of 5")
        mark = page.locator(".answers > .turn > div > pre mark").first
        assert mark.inner_text() == "needle"
        seen = "mark => { const [m, p] = [mark, mark.parentElement].map(e => e.getBoundingClientRect());"
        assert mark.evaluate(f"{seen} return m.top >= p.top && m.bottom <= p.bottom; }}")


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", ["turns", "judged"])
def test_a_phone_does_not_scroll_sideways(chromium: Any, runs: Path, tmp_path: Path, dark: bool, view: str) -> None:
    word = "W" * 300
    steps = Steps(tmp_path / word[:60])
    at = steps.query(word, columns={"answer": word}, task=word)
    steps.turn("solver", word, at, thought=word, parts={word[:80]: 1.0}, info={"answer": word, word: word})
    steps.write(1)
    path = write_page(tmp_path / "page.html", tmp_path / word[:60], runs / "lsp", runs / "grpo")
    with browsing(chromium, path, dark=dark, phone=True, fragment=f"#browse={view}") as page:
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        colours = "[getComputedStyle(document.querySelector('.browser select')).backgroundColor,"
        colours += "getComputedStyle(document.querySelector('.view:not([hidden]) pre')).color]"
        ground, ink = page.evaluate(colours)
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark
        assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 500) == dark


@pytest.mark.browser
def test_print_hides_the_controls(chromium: Any, page_path: Path) -> None:
    with browsing(chromium, page_path) as page:
        page.emulate_media(media="print")
        assert not page.locator("form").first.is_visible()
        assert page.locator(".thread").first.is_visible()


def test_without_turns_one_sentence_and_no_script(tmp_path: Path) -> None:
    html = browser([("empty", tmp_path)]).html
    assert "No turns have been recorded (yet)." in html
    assert "<script" not in html
    assert "<form" not in html


def test_without_scripts_it_is_said(runs: Path) -> None:
    html = browser([("lsp", runs / "lsp")]).html
    assert "<noscript>" in html
    assert '<div class="app" hidden>' in html


def test_only_its_script_is_run(runs: Path) -> None:
    fragment = browser([("lsp", runs / "lsp")])
    scripts = re.findall(r"<script(.*?)>(.*?)</script>", fragment.html, re.DOTALL)
    run = [body for attributes, body in scripts if not attributes]
    digest = base64.b64encode(hashlib.sha256(run[0].encode()).digest()).decode()
    assert fragment.script_hash == f"sha256-{digest}"
    assert len(run) == 1
    assert {attributes.split()[0] for attributes, _ in scripts if attributes} == {'type="application/gzip;base64"'}
    assert "innerHTML" not in run[0]
    assert not re.search(r"https?://", fragment.html)


def test_a_damaged_file_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    run = make_judged(make_lsp(tmp_path / "run"))
    (run / "turns" / "step-000002.parquet").write_bytes(b"PAR1 but no more")
    pq.write_table(pa.table({"step": [3]}), run / "turns" / "step-000003.parquet")
    (run / "evaluations" / "win-rate-mine-verdicts.json").write_text('[{"instruction": 3}]')
    (run / "evaluations" / "cut-annotations.json").write_text("[{")
    fragment = browser([("run", run)])
    for name in ("step-000002.parquet", "step-000003.parquet", "win-rate-mine-verdicts.json", "cut-annotations.json"):
        assert f"{name} could not be read" in fragment.html
    assert "4 files could not be read" in fragment.html
    assert len(read_turns([("run", run)])) == 16
    assert len(read_judged([("run", run)])) == 4


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_too_much_is_thinned_evenly_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    steps = Steps(tmp_path / "run")
    for step in range(1, 11):
        for _ in range(20):
            at = steps.query(f"{rng.random()}")
            for _ in range(3):
                steps.turn("solver", rng.randbytes(200).hex(), at, parts={"reward": rng.random()})
        steps.write(step)
    runs = [("run", tmp_path / "run")]
    whole = read_turns(runs)
    assert (len(whole), whole.left_out) == (200, 0)
    half = read_turns(runs, largest=whole.blocks.size // 2)
    assert half.blocks.size <= whole.blocks.size // 2
    assert 85 <= len(half) <= 97
    assert half.left_out == 200 - len(half)
    assert len(half.turns["role"]) == 4 * len(half)
    kept = [half.threads["step"].count(step) for step in range(1, 11)]
    assert max(kept) - min(kept) <= 1
    monkeypatch.setattr("sparring.report.browser.read_turns", lambda runs: half)
    html = " ".join(browser(runs).html.split())
    assert f"This page holds {len(half)} of 200 threads, whole and taken evenly from all steps" in html


def test_blocks_hold_whole_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.report.packing.BLOCK", 10)
    blocks = Blocks("a", "b")
    for item in range(4):
        blocks.begin()
        blocks.add("a", "shared", f"item {item}")
        blocks.add("b", "")
    blocks.close()
    contents = [unpacked(block) for block in blocks.packed]
    assert blocks.starts == list(range(4))
    assert contents[1] == {"texts": ["", "shared", "item 1"], "a": [1, 2], "b": [0]}
    assert blocks.size == sum(map(len, blocks.packed))


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec=None))))
def test_any_text_comes_back(texts: list[str]) -> None:
    # Two halves of a pair that stand side by side become the character: in JSON they are the same.
    assert unpacked(packed(texts)) == json.loads(json.dumps(texts))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "parent": st.sampled_from([None, -1, 0, 1, 2, 9]),
                "index": st.sampled_from([0, 1, 2]),
                "info": st.sampled_from(
                    [
                        None,
                        "{",
                        "[]",
                        "3",
                        '{"query": 3}',
                        '{"query": {"problem": 1}, "task": "t"}',
                        '{"a": [NaN], "query_text": ""}',
                    ]
                ),
                "payoff": st.sampled_from([None, 1.0, float("nan"), float("inf")]),
                "parts": st.sampled_from([None, "x", '{"reward": "much", "x": null}', '{"reward": 1}']),
            }
        )
    )
)
def test_odd_rows_never_raise(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    run = tmp_path_factory.mktemp("odd")
    (run / "turns").mkdir()
    rows = [{"step": 1, "role": "r", "text": "t"} | row for row in rows] or [{"step": 1, "role": "r", "text": "t"}]
    pq.write_table(pa.Table.from_pylist(rows), run / "turns" / "step-000001.parquet")
    found = read_turns([("odd", run)])
    assert found.notes == []
    assert unpacked(found.head())["turns"]["role"] == [0] * len(found.turns["role"])
