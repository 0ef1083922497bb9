"""`sparring samples`: what is found, how it is drawn, and how little of a run is read for it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sparring.cli_report import samples
from sparring.console import Commands
from sparring.report.samples import SORTS, Found, Wanted, find, moments
from sparring.report.terminal import LONGEST, draw, visible

main = Commands(name="sparring", commands=[samples])
ATTACK = (
    "[bold]x[/bold] [link=http://evil.example]y[/link] :smile: \x1b[2J\x1b]0;title\x07\x9b31m\r\u202eevil\u200b\x00"
)


def turn(
    role: str, text: str, index: int = 0, parent: int = -1, payoff: float | None = None, **row: Any
) -> dict[str, Any]:
    return {
        "step": 1, "index": index, "parent": parent, "role": role, "model": "policy", "prompt": "How asked.",
        "text": text, "thought": None, "finish": "stop", "completion_tokens": 7, "payoff": payoff,
        "parts": None if payoff is None else json.dumps({"reward": payoff}), "advantage": None, "trained": True,
        "info": "{}", **row,
    }  # fmt: skip


def asked(text: str, *payoffs: float, query: dict[str, Any] | None = None, at: int = 0) -> list[dict[str, Any]]:
    """A query and its answers, one a payoff; their texts are the query's with a number."""
    info = json.dumps({"query": {"text": text, "problem": None, **(query or {})}})
    rows = [turn("challenger", text, at, payoff=0.25, info=info)]
    return rows + [
        turn("solver", f"{text} {number}", at + number, at, payoff) for number, payoff in enumerate(payoffs, 1)
    ]


def write(run: Path, step: int, *threads: list[dict[str, Any]]) -> None:
    rows = []
    for thread in threads:
        start = len(rows)
        rows += [{**row, "step": step, "index": row["index"] + start,
                  "parent": row["parent"] + start if row["parent"] >= 0 else -1} for row in thread]  # fmt: skip
    (run / "turns").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), run / "turns" / f"step-{step:06d}.parquet")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 10, 20, ... 90; at step s two queries and one that nobody answers."""
    folder = tmp_path / "run"
    for step in range(10, 100, 10):
        write(
            folder,
            step,
            asked(f"apple {step}", 0.0, step / 100),
            asked(f"pear {step}", 0.5, 0.5),
            asked(f"plum {step}"),
        )
    return folder


def call(*words: object) -> Result:
    return CliRunner().invoke(main, ["samples", *map(str, words)])


def told(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def lines(*words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told(*words, "--json").splitlines()]


def queries(*words: object) -> list[str]:
    return [line["query"]["text"] for line in lines(*words)]


def drawn(found: Found, width: int = 100, **how: bool) -> str:
    console = Console(width=width, highlight=False, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        draw(found, console, full=how.get("full", False))
    return capture.get()


# --- what is found -----------------------------------------------------------------------------------


def test_without_a_filter_an_early_a_middle_and_a_late_step(run: Path) -> None:
    assert queries(run) == [f"{fruit} {step}" for step in (10, 50, 90) for fruit in ("apple", "pear")]
    assert queries(run, "--n", 1) == ["apple 10", "apple 50", "apple 90"]
    assert queries(run, "--n", 0)[:3] == ["apple 10", "pear 10", "plum 10"]  # one without answers comes last


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--step", 20), ["apple 20", "pear 20", "plum 20"]),
        (("--step", "15-30", "--n", 4), ["apple 20", "pear 20", "plum 20", "apple 30"]),
        (("--text", "PEAR", "--n", 2), ["pear 10", "pear 20"]),
        (("--text", "pear"), [f"pear {step}" for step in (10, 20, 30, 40, 50)]),
        (("--text", "90 2"), ["apple 90", "pear 90"]),  # an answer's words
        (("--min-payoff", 0.6), ["apple 60", "apple 70", "apple 80", "apple 90"]),
        (("--max-payoff", 0, "--n", 1), ["apple 10"]),
        (("--min-payoff", 0, "--max-payoff", 0.05, "--n", 1), ["apple 10"]),
        (("--role", "challenger", "--max-payoff", 0.25, "--step", 90), ["apple 90", "pear 90", "plum 90"]),
        (("--role", "solver", "--step", 90), ["apple 90", "pear 90"]),
        (("--sort", "payoff", "--n", 2), ["apple 90", "apple 80"]),
        (("--sort", "payoff", "--max-payoff", 0.45, "--role", "solver", "--n", 2), ["apple 40", "apple 30"]),
        (("--sort", "spread", "--n", 3), ["apple 90", "apple 80", "apple 70"]),
        (("--sort", "spread", "--step", 50, "--n", 0), ["apple 50", "pear 50", "plum 50"]),
        (("--sort", "step", "--n", 4), ["apple 10", "pear 10", "plum 10", "apple 20"]),
    ],
)
def test_filters_and_order(run: Path, words: tuple[object, ...], found: list[str]) -> None:
    assert queries(run, *words) == found


def test_the_turns_that_were_asked_for_are_marked(run: Path) -> None:
    (line,) = lines(run, "--role", "solver", "--min-payoff", 0.9)
    assert [answer["wanted"] for answer in line["answers"]] == [False, True]
    assert not line["query"]["wanted"]
    text = told(run, "--role", "solver", "--min-payoff", 0.9)
    assert [row.split()[:3] for row in text.splitlines() if "▸" in row] == [["▸", "solver", "2"]]
    assert "▸" not in told(run, "--step", 90, "--sort", "spread")


def test_one_and_the_same_turn_must_meet_all_of_it(tmp_path: Path) -> None:
    write(tmp_path, 1, asked("a", 1.0, 0.0))
    assert call(tmp_path, "--text", "a 2", "--min-payoff", 1).exit_code == 1
    assert len(lines(tmp_path, "--text", "a 1", "--min-payoff", 1)) == 1


def test_unpaid_turns_meet_no_bound(tmp_path: Path) -> None:
    rows = asked("a")
    rows[0]["payoff"] = None
    write(tmp_path, 1, [*rows, turn("solver", "nan", 1, 0, float("nan"))])
    assert find(tmp_path, Wanted(low=-1e9), 0).exchanges == []
    assert find(tmp_path, Wanted(high=1e9), 0).exchanges == []
    for sort in SORTS:
        assert len(find(tmp_path, Wanted(), 1, sort).exchanges) == 1


def test_a_line_of_json_holds_the_whole_exchange(tmp_path: Path) -> None:
    rows = asked("Plan a day.", 0.5, query={"family": "travel"})
    rows[0] |= {"text": "Well.\n<input>Plan a day.</input>"}
    rows[1] |= {"thought": "hm", "advantage": -0.5, "trained": False, "parts": '{"reward": null, "quality": 0.5}'}
    rows.append(turn("grader", "<score>5</score>", 2, 1, finish="length"))
    write(tmp_path, 3, rows)
    (line,) = lines(tmp_path)
    assert (line["step"], line["query"]["asked"], line["query"]["parts"]) == (3, "Plan a day.", {"reward": 0.25})
    (answer,) = line["answers"]
    assert answer["parts"] == {"reward": None, "quality": 0.5}
    assert (answer["thought"], answer["advantage"], answer["trained"]) == ("hm", -0.5, False)
    assert [(reply["role"], reply["text"], reply["finish"]) for reply in answer["replies"]] == [
        ("grader", "<score>5</score>", "length")
    ]
    assert line["about"]["family"] == "travel"


def test_a_data_sets_prompt_is_shown_with_its_reference(tmp_path: Path) -> None:
    info = json.dumps({"answer": "Jupiter", "query_text": "Which planet?", "conversational": False})
    rows = [
        turn("solver", f"say {at}", at, payoff=float(at), prompt=f"Which planet? {at // 2}", info=info)
        for at in range(4)
    ]
    write(tmp_path, 1, rows)
    found = lines(tmp_path)
    assert [(line["prompt"], line["query"], len(line["answers"])) for line in found] == [
        ("Which planet? 0", None, 2),
        ("Which planet? 1", None, 2),
    ]
    assert found[0]["data"] == {"answer": "Jupiter"}
    assert len(lines(tmp_path, "--text", "planet? 1")) == 1  # the prompt is searched where nobody asked
    text = told(tmp_path)
    assert text.index("prompt") < text.index("Which planet? 0") < text.index("Jupiter") < text.index("say 0")


# --- what is read ------------------------------------------------------------------------------------


def test_only_the_row_groups_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**row, "step": step} for step in (1, 2, 3, 4) for row in asked(f"q{step}", 1.0)]
    (tmp_path / "turns").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "turns" / "step-000001.parquet", row_group_size=2)
    write(tmp_path, 9, asked("q9", 1.0))
    read: list[list[int]] = []
    real = pq.ParquetFile.read_row_groups

    def counted(self: pq.ParquetFile, groups: list[int], **how: Any) -> pa.Table:
        read.append(list(groups))
        return real(self, groups, **how)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    assert queries(tmp_path, "--step", "2-3") == ["q2", "q3"]
    assert read == [[1, 2], []]
    read.clear()
    assert queries(tmp_path, "--sort", "step", "--n", 1) == ["q1"]
    assert read == [[0, 1, 2, 3]]  # enough was found in the first file
    assert queries(tmp_path, "--n", 1) == ["q1", "q3", "q9"]


def test_files_without_statistics_are_read_all_the_same(tmp_path: Path) -> None:
    rows = [{**row, "step": step} for step in (1, 2) for row in asked(f"q{step}", 1.0)]
    (tmp_path / "turns").mkdir()
    file = tmp_path / "turns" / "step-000001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2, write_statistics=False)
    assert queries(tmp_path, "--step", 2) == ["q2"]
    assert "steps 1 to 2" in call(tmp_path, "--step", 3).stderr


def test_steps_above_six_digits_come_last(tmp_path: Path) -> None:
    for step in (1_000_000, 999_999, 5):
        write(tmp_path, step, asked(f"q{step}", 1.0))
    assert queries(tmp_path, "--sort", "step") == ["q5", "q999999", "q1000000"]


# --- what goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--step", 95), 1, "Error: --step 95: no turns were saved there; those saved are of steps 10 to 90"),
        (("--step", "91-99"), 1, "Error: --step 91-99: no turns were saved there"),
        (("--role", "sovler"), 1, "Error: --role sovler: no turn has this role; the roles are challenger, solver"),
        (("--role", "sovler", "--step", 20), 1, "the roles are challenger, solver"),
        (("--text", "durian"), 1, "Nothing matches."),
        (("--min-payoff", 3, "--json"), 1, "Nothing matches."),
        (("--step", "x"), 2, "'x' is no step: give one (12) or a range (10-20)"),
        (("--step", "-5"), 2, "'-5' is no step"),
        (("--step", "9-5"), 2, "'9-5' ends before it begins"),
        (("--min-payoff", 2, "--max-payoff", 1), 2, "--min-payoff 2 is more than --max-payoff 1"),
        (("--min-payoff", "much"), 2, "'much' is not a valid float"),
        (("--sort", "size"), 2, "'size' is not one of 'step', 'payoff', 'spread'"),
        (("--n", -1), 2, "--n"),
    ],
)
def test_mistakes_are_named(run: Path, words: tuple[object, ...], code: int, message: str) -> None:
    result = call(run, *words)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_folder_without_turns_is_named(tmp_path: Path) -> None:
    assert "holds no turns (yet)" in call(tmp_path).stderr
    assert "checkpoint.turns_every" in call(tmp_path, "--step", 3).stderr
    assert "there is no such folder" in call(tmp_path / "absent").stderr


def test_damaged_files_are_told_and_the_others_shown(run: Path) -> None:
    (run / "turns" / "step-000010.parquet").write_bytes(b"PAR1 not a table")
    pq.write_table(pa.Table.from_pylist([{"step": 50, "other": "x"}]), run / "turns" / "step-000050.parquet")
    result = call(run, "--sort", "step", "--n", 0)
    assert result.exit_code == 0
    assert "note: turns/step-000010.parquet could not be read" in result.stderr
    assert "note: turns/step-000050.parquet could not be read: no column role, text" in result.stderr
    assert "apple 20" in result.stdout
    assert call(run).exit_code == 0
    for file in (run / "turns").iterdir():
        file.write_bytes(b"")
    for words in ((), ("--step", 3), ("--text", "x")):
        assert "Error: no turns could be read: turns/step-000010.parquet" in call(run, *words).stderr


# --- how it is drawn ---------------------------------------------------------------------------------


def test_an_exchange_on_a_terminal(tmp_path: Path) -> None:
    rows = asked("skip:bead", 1.0, 0.0, query={"family": "skip"})
    rows[1] |= {
        "thought": "h" * 300,
        "advantage": -0.5,
        "parts": '{"reward": 1.0, "quality": null}',
        "finish": "length",
    }
    rows[2] |= {"payoff": None, "trained": False, "text": " "}
    rows.append(turn("grader", "fine\n<score>7</score>", 3, 1, trained=False))
    write(tmp_path, 4, rows, asked("nonsense", query={"problem": "too short"}))
    text = told(tmp_path)
    assert text.splitlines()[0].startswith("step 4 ──")
    flat = " ".join(text.split())
    for part in (
        "challenger skip:bead payoff 0.25 = reward 0.25 · 7 tokens family skip",
        "solver 1 skip:bead 1 payoff 1 = reward 1 + quality ? · advantage −0.5 · 7 tokens · cut off · thought, 300",
        "grader fine <score>7</score>",
        "solver 2 nothing said not paid · 7 tokens",
        "no answers: the query was not put to the Solver (too short)",
    ):
        assert part in flat
    assert "hhh" not in text
    assert "hhh" in told(tmp_path, "--full")


def test_long_texts_are_cut_unless_in_full(tmp_path: Path) -> None:
    rows = asked("q", 1.0)
    rows[1]["text"] = "word " * 1000
    write(tmp_path, 1, rows)
    assert f"({5000 - LONGEST} more characters)" in " ".join(told(tmp_path).split())
    assert told(tmp_path, "--full").count("word") == 1000
    assert lines(tmp_path)[0]["answers"][0]["text"] == "word " * 1000


def test_hostile_text_moves_no_terminal(tmp_path: Path) -> None:
    rows = asked(ATTACK, 1.0)
    rows[0] |= {
        "thought": ATTACK,
        "info": json.dumps({"query": {"text": ATTACK + "!", "family": ATTACK, "problem": ATTACK}}),
    }
    rows[1] |= {
        "role": ATTACK,
        "finish": ATTACK,
        "parts": json.dumps({ATTACK: 1.0}),
        "info": json.dumps({ATTACK: ATTACK}),
    }
    write(tmp_path, 1, rows, asked("none", query={"problem": ATTACK, "columns": {"answer": ATTACK}}))
    for words in ((), ("--full",), ("--json",)):
        text = told(tmp_path, *words)
        assert [c for c in text if unicodedata.category(c)[0] == "C" and c != "\n"] == []
    text = told(tmp_path, "--full")
    flat = "".join(text.split())
    for part in (
        "[bold]x[/bold]",
        "[link=http://evil.example]",
        ":smile:",
        r"\x1b[2J",
        r"\u202eevil\u200b",
        r"\x9b31m\x0d",
    ):
        assert part.replace(" ", "") in flat
    console = Console(width=80, force_terminal=True, color_system="truecolor", highlight=False)
    with console.capture() as capture:
        draw(moments(tmp_path, 0), console, full=True)
    assert "\x1b]8" not in capture.get()  # no link
    assert "\x1b[2J" not in capture.get()


@given(st.text())
def test_visible_text_is_plain(text: str) -> None:
    assert all(c in "\n\t" or unicodedata.category(c)[0] in "LMNPSZ" for c in visible(text))
    assert visible(visible(text)) == visible(text)


def test_what_is_piped_is_plain(run: Path) -> None:
    assert "\x1b" not in told(run)
    assert max(map(len, told(run, "--full").splitlines())) <= 100


def test_a_narrow_terminal_cuts_no_words_off(run: Path) -> None:
    text = drawn(find(run, Wanted(text="apple 90 2"), 1), width=30)
    assert max(map(len, text.splitlines())) <= 30
    assert "apple 90 2" in text
