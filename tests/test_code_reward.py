"""The reward for code: what is read from an answer, how it is put together with its row, what is paid and counted."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from real_data import real_data
from sandboxed import sandbox_or_skip
from sparring.lm.base import SamplingParams
from sparring.rewards import code as code_module
from sparring.rewards.base import Reward, RewardError, load_reward
from sparring.rewards.code import CodeReward, extract_code, program_of
from sparring.roles import Role
from sparring.sandbox import Ending, Outcome, Program, Sandbox, SandboxError
from sparring.types import Prompt, Turn

PROMPT = '''from typing import List


def half(x):
    return x / 2


def mean(xs: List[float]) -> float:
    """Mean."""
'''
CHECK = "\n\ndef check(candidate):\n    assert candidate([1, 2, 3]) == 2\n    assert candidate([1, 2]) == half(3)\n"
BODY = "    return sum(xs) / len(xs)\n"
WHOLE = "def mean(xs: List[float]) -> float:\n    return half(2 * sum(xs)) / len(xs)\n"


def fenced(code: str, language: str = "python") -> str:
    return f"Sure:\n\n```{language}\n{code}\n```\nThat is all."


class Scripted:
    """A sandbox that notes what it is given and ends as it is told."""

    def __init__(self, *endings: Ending) -> None:
        self.endings, self.programs, self.closed = endings, list[Program](), False

    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        self.programs += programs
        return [Outcome(ending, None, "", "said", 0.1) for ending, _ in zip(self.endings, programs, strict=True)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with contextlib.closing(sandbox_or_skip()) as opened:
        yield opened


# What is read from an answer.


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("    return 1\n", "    return 1\n"),
        (fenced("x = 1"), "x = 1"),
        (fenced("x = 1", "PY"), "x = 1"),
        (fenced("x = 1", ""), "x = 1"),
        (fenced("x = 1", "python title=a"), "x = 1"),
        (fenced("x = 1") + fenced("y = 2"), "y = 2"),
        (fenced("x = 1") + fenced("$ ls", "bash"), "x = 1"),
        (fenced("x = 1") + "\n```python\ny = ", "x = 1"),
        ("~~~python\nx = '''\n```\n'''\n~~~", "x = '''\n```\n'''"),
        ("````\n```\nx\n```\n````", "```\nx\n```"),
        ("1. First\n   ```python\n   def f():\n       pass\n   ```", "def f():\n    pass"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1\r"),
        ("```python\nx = 1", None),
        (fenced("$ ls", "bash"), None),
        (fenced("  \n"), None),
        ("", None),
        (" \n\t", None),
        ("Use ```x = 1``` here", "Use ```x = 1``` here"),
    ],
)
def test_the_last_closed_block_of_python_is_the_program(text: str, code: str | None) -> None:
    assert extract_code(text) == code


@given(st.text(alphabet=st.sampled_from("`~ \t\n\rpython#x\x00\ud800é"), max_size=200))
@example("```" + "a" * 100_000 + "`")
@example("`" * 100_000)
@example("```\n" * 20_000)
@example(" " * 100_000 + "```")
def test_any_answer_is_read(text: str) -> None:
    code = extract_code(text)
    assert code is None or code.strip()


@given(st.text(), st.text(), st.text())
@example("def f(", "f", "def f(\x00")
@example("", "[(", "def [(")
@example("x", "", "def ")
def test_any_code_is_put_together(code: str, entry_point: str, prompt: str) -> None:
    assert program_of(code, "pass", entry_point, prompt).source.endswith(code)


# What it is put together with.


def test_a_body_goes_on_from_the_prompt_and_a_whole_function_follows_it() -> None:
    assert program_of(BODY, CHECK, "mean", PROMPT).source == PROMPT + BODY
    assert program_of(WHOLE, CHECK, "mean", PROMPT).source == f"{PROMPT}\n\n{WHOLE}"
    assert program_of(WHOLE, CHECK, "mean", PROMPT).setup == PROMPT


@pytest.mark.parametrize(
    ("entry_point", "prompt"), [("mean", None), ("mean", "Write mean(xs)."), ("other", PROMPT), (None, PROMPT)]
)
def test_a_prompt_that_is_no_program_stays_away(entry_point: str | None, prompt: str | None) -> None:
    program = program_of(WHOLE, "pass", entry_point, prompt)
    assert (program.source, program.setup) == (WHOLE, "")


def test_check_is_called_where_the_tests_do_not() -> None:
    assert program_of(WHOLE, CHECK, "mean").tests == CHECK + "\n\ncheck(candidate)\n"
    called = CHECK + "check(mean)\n"
    assert program_of(WHOLE, called, "mean").tests == called
    assert program_of(WHOLE, CHECK).tests == CHECK


# What is paid.

ANSWERS = {
    fenced(WHOLE): 1.0,
    fenced(BODY): 1.0,
    BODY: 1.0,
    fenced("def mean(xs):\n    return 2\n"): 0.0,
    fenced("def mean(xs):\n    raise SystemExit(0)"): 0.0,
    fenced("import os\nos._exit(0)"): 0.0,
    fenced("def mean(xs):\n    while True: pass"): 0.0,
    fenced("import os\nwhile True: os.fork()"): 0.0,
    fenced("class Any(float):\n    def __eq__(self, other): return True\ndef mean(xs): return Any()"): 0.0,
    fenced("def mean(xs: broken"): 0.0,
    "I can't.": 0.0,
    "```python\n" + WHOLE: 0.0,
    "\x00": 0.0,
}


def test_what_passes_is_paid_and_nothing_else(sandbox: Sandbox) -> None:
    reward, n = CodeReward(sandbox), len(ANSWERS)
    scores = reward([PROMPT] * n, list(ANSWERS), tests=[CHECK] * n, entry_point=["mean"] * n)
    assert dict(zip(ANSWERS, scores, strict=True)) == ANSWERS
    figures = reward.drain()
    counts = {"no_code": 1, "passed": 3, "failed": 6, "exited": 1, "timeout": 1, "processes": 1}
    assert {name: round(share * n) for name, share in figures.items() if share} == counts
    assert sum(figures.values()) == pytest.approx(1)
    assert reward.drain() == {}


def test_tests_without_an_entry_point_see_the_programs_names(sandbox: Sandbox) -> None:
    tests = "box = Box()\nbox.put(3)\nassert box.items == [3]"
    source = "class Box:\n    def __init__(self): self.items = []\n    def put(self, x): self.items.append(x)\n"
    reward = CodeReward(sandbox)
    assert reward(["q", "q"], [fenced(source), fenced(source.replace("append", "index"))], [tests] * 2) == [1.0, 0.0]


def test_what_says_nothing_about_the_program_is_no_reward() -> None:
    scripted = Scripted(Ending.PASSED, Ending.ERROR, Ending.UNTESTABLE, Ending.MEMORY)
    reward = CodeReward(scripted, apart=False)
    answers = ["a", "b", "c", "d", "```bash\nx\n```"]
    assert reward(["q"] * 5, answers, tests=["t"] * 5, entry_point=["a"] * 5) == [1.0, None, None, 0.0, 0.0]
    assert not any(program.apart for program in scripted.programs)
    figures = reward.drain()
    assert (figures["no_code"], figures["error"], figures["memory"], figures["timeout"]) == (0.2, 0.2, 0.2, 0.0)
    assert set(figures) == {"no_code", *Ending}
    reward.close()
    assert scripted.closed


def test_a_sandbox_that_fails_for_all_stops_the_run() -> None:
    with pytest.raises(RewardError, match="all of 2 programs: said"):
        CodeReward(Scripted(Ending.ERROR, Ending.ERROR))(["q"] * 2, ["a", "b"], tests=["t"] * 2)


@pytest.mark.parametrize("tests", [None, [None], [" "], [["assert True"]]])
def test_a_row_without_tests_is_named(tests: list[str | None] | None) -> None:
    with pytest.raises(RewardError, match=r"column `tests`.*'the query' has none"):
        CodeReward(Scripted())(["the query"], ["x = 1"], tests=tests)


def test_answers_without_code_need_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Sandbox:
        raise SandboxError("none here")

    monkeypatch.setattr(code_module, "open_sandbox", fail)
    reward = CodeReward()
    assert reward(["q"], [""], tests=["t"]) == [0.0]
    with pytest.raises(SandboxError, match="none here"):
        reward(["q"], ["x = 1"], tests=["t"])
    reward.close()


def test_it_is_a_reward_by_name_and_takes_its_columns(sandbox: Sandbox) -> None:
    named = load_reward("sparring.rewards.code:passes_tests")
    assert named.drain() == {}
    reward = Reward(CodeReward(sandbox), "code")
    info = {"tests": CHECK, "entry_point": "mean", "task_id": 3}
    role = Role("solver", "{{ query }}", SamplingParams(8))
    turns = [
        Turn(role, Prompt(({"role": "user", "content": PROMPT},)), (1,), (2,), np.zeros(1), text, "stop", info=info)
        for text in (fenced(WHOLE), fenced("def mean(xs): pass"))
    ]
    assert reward([PROMPT, PROMPT], turns) == [1.0, 0.0]
    assert reward.drain()["passed"] == 0.5


ANYTHING = """    class Anything(list):
        def __eq__(self, other): return True
        def __lt__(self, other): return True
        def __hash__(self): return 0
        def __sub__(self, other): return 0
    return Anything()
"""


def test_humanevals_own_solutions_are_paid_and_an_answer_equal_to_anything_is_not(sandbox: Sandbox) -> None:
    path = real_data("benchmarks", "HumanEval.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()][::8]
    answers = [row["canonical_solution"] for row in rows] + [ANYTHING] * len(rows)
    columns = {name: [row[name] for row in rows] * 2 for name in ("prompt", "test", "entry_point")}
    reward = CodeReward(sandbox)
    scores = reward(columns["prompt"], answers, tests=columns["test"], entry_point=columns["entry_point"])
    assert scores == [1.0] * len(rows) + [0.0] * len(rows)
    together = CodeReward(sandbox, apart=False)
    scores = together(columns["prompt"], answers, tests=columns["test"], entry_point=columns["entry_point"])
    assert scores[: len(rows)] == [1.0] * len(rows)
    assert sum(filter(None, scores[len(rows) :])) > len(rows) / 2  # why tests run apart
