import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sparring.display import LiveDisplay, PlainDisplay, clean, make_console, open_display, sample
from sparring.lm.base import SamplingParams
from sparring.roles import Role
from sparring.types import Payoff, Payoffs, Prompt, Turn

CHALLENGER = Role("challenger", "Ask.", SamplingParams(8))
SOLVER = Role("solver", "{{ query }}", SamplingParams(8))
METRICS = {
    "game/V": 0.43,
    "game/V_Q": 0.81,
    "game/valid_share": 0.964,
    "kl/solver": 0.01234,
    "game/dead_groups": 0.3,
    "tokens_per_second": 12345.6,
}
ODD = ["[red]x[/nosuch]", "[/]", "\x1b[2J\x07bell", "a\r\nb\tc", "\u202eevil", "\ud800 half", "日本語 🎉", ""]


def turn(role: Role, text: str, parent: Turn | None = None, **info: object) -> Turn:
    prompt = Prompt(({"role": "user", "content": f"prompt of {role.name}"},), parent, info)
    return Turn(role, prompt, (1,), (2,), np.zeros(1, np.float32), text, "stop")


def exchange(query: str, answer: str) -> tuple[list[Turn], Payoffs]:
    asked = turn(CHALLENGER, query)
    answered = turn(SOLVER, answer, asked, query_text=query)
    payoffs = {asked: Payoff(0.5, {"value": 0.5}), answered: Payoff(1.5, {"reward": 1.0, "quality": 0.5})}
    return [asked, answered], payoffs


def seconds(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


@given(st.text(max_size=300) | st.sampled_from(ODD))
@settings(max_examples=100, deadline=None)
def test_clean_text_is_one_short_printable_line(text: str) -> None:
    line = clean(text, 50)
    assert len(line) <= 50
    assert all(c.isprintable() for c in line)
    line.encode()


@pytest.mark.parametrize("text", ODD)
def test_the_live_block_shows_odd_model_text_as_text(tmp_path: Path, text: str) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    turns, payoffs = exchange(text, text)
    with LiveDisplay(console, "[b]title[/nosuch]", tmp_path) as display:
        display.said(text)
        display.started(0, 2)
        display.stepped(1, METRICS, turns, payoffs)
        display.stepped(2, METRICS, [], {})
    output = file.getvalue()
    assert "[b]title[/nosuch]" in output
    assert "\x1b[2J" not in output
    assert "\x07" not in output
    assert (clean(text) or "(empty)") in output
    assert "1.50 = reward 1.00 + quality 0.50" in output
    for shown in ("V 0.43", "V_Q 0.81", "valid 96%", "KL 0.0123", "dead groups 30%", "tokens/s 12,346"):
        assert shown in output


def plain(tmp_path: Path, step_seconds: float, steps: int, evaluations: dict[int, float]) -> list[str]:
    """The lines of a run whose clock goes on by step_seconds at each look."""
    file, clock = io.StringIO(), seconds(step_seconds)
    display = PlainDisplay(Console(file=file, width=40), "run", tmp_path, lambda: next(clock))
    display.started(0, steps)
    for step in range(1, steps + 1):
        metrics = {**METRICS, **({"eval/hard": evaluations[step]} if step in evaluations else {})}
        display.stepped(step, metrics, *exchange("reverse:abc", "cba"))
    return file.getvalue().splitlines()


def test_quick_steps_give_a_line_every_ten_steps_and_one_at_the_end(tmp_path: Path) -> None:
    lines = plain(tmp_path, 0.01, 25, {})
    assert [line.split()[1] for line in lines] == ["1/25", "11/25", "21/25", "25/25"]


def test_slow_steps_give_a_line_every_five_seconds_and_a_sample_now_and_then(tmp_path: Path) -> None:
    lines = plain(tmp_path, 2.0, 20, {})
    assert [line.split()[1] for line in lines if line.startswith("step")] == [
        f"{step}/20" for step in (1, 4, 7, 10, 13, 16, 19, 20)
    ]
    assert [line for line in lines if not line.startswith("step")] == [
        "    challenger: reverse:abc",
        "    solver: cba",
        "    paid: 1.50 = reward 1.00 + quality 0.50",
    ]
    assert lines[1].endswith("left 0:32")  # 4 steps in 8 seconds, 16 to go


def test_held_out_accuracy_is_compared_with_step_zero(tmp_path: Path) -> None:
    records = [{"step": 0, "eval/hard": 0.1}, {"step": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = plain(tmp_path, 10.0, 3, {2: 0.25})
    assert re.findall(r"hard \S+ \(\S+\)", "\n".join(lines)) == [
        "hard 10.0% (+0.0)",
        "hard 25.0% (+15.0)",
        "hard 25.0% (+15.0)",
    ]


def test_a_prompt_set_shows_its_prompt() -> None:
    answered = turn(SOLVER, "cba")
    assert sample(3, [answered], {answered: Payoff(0.0, {"reward": None})}) == [
        ("prompt", "prompt of solver"),
        ("solver", "cba"),
        ("paid", "0.00"),
    ]
    assert sample(3, [answered], {}) == []


def test_no_terminal_gives_plain_lines(tmp_path: Path) -> None:
    assert isinstance(open_display(Console(file=io.StringIO()), "run", tmp_path), PlainDisplay)
    live = open_display(Console(file=io.StringIO(), force_terminal=True), "run", tmp_path)
    assert isinstance(live, LiveDisplay) or live.console.is_dumb_terminal
    assert make_console().width >= 20
