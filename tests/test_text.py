"""Natural language: what counts as a query, and how a grade is read. Both readers take whatever a model writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparring import prompts
from sparring.domains import Task
from sparring.lm.base import SamplingParams
from sparring.roles import Role
from sparring.text import EXAMPLES, TEXT, GradeReader, TemplateReader, fills

OWN = Task()
QUIZ = Task("quiz", "Question: {}\nHint: {}\nAnswer:")


def problem(text: str, task: Task = OWN, reader: TemplateReader | None = None) -> str | None:
    return (reader or TemplateReader())(text, task, True).problem


def test_the_last_pair_of_markers_is_the_query_whatever_surrounds_it() -> None:
    read = TemplateReader()
    for text in (
        "<input>What is a map?</input>",
        "Here it is:\n<INPUT>\n What is a map?\n</ Input >\nDone, and cut o",
        "<input>a first try</input> or rather <input>What is a map?</input>",
        "</input> I write between markers. <input>What is a map?</input> <input> and again",
    ):
        for complete in (True, False):
            query = read(text, OWN, complete)
            assert (query.text, query.problem) == ("What is a map?", None)


@pytest.mark.parametrize(
    ("text", "task", "want"),
    [
        ("What is a map?", OWN, "no <input> markers"),
        ("<input>What is a map?", OWN, "no <input> markers"),
        ("", OWN, "no <input> markers"),
        ("<input>It begins with <input> and ends there</input>", OWN, "markers left in"),
        ("<input> map </input>", OWN, "too short"),
        (f"<input>{'map ' * 2001}</input>", OWN, "too long"),
        ("<input>Question: {}\nHint: a town\nAnswer:</input>", QUIZ, "template not filled"),
        ("<input>Question: who?\nHint:  \nAnswer:</input>", QUIZ, "template not kept"),
        ("<input>Question: who?\nAnswer:</input>", QUIZ, "template not kept"),
        ("<input>Question: who?\nHint: a town\nAnswer: me</input>", QUIZ, "template not kept"),
        ("<input>Question: who?\nHint: a town\nAnswer:</input>", QUIZ, None),
        ("<input>Question: who?\nHint: a\ntown\nOutput: me\nAnswer:</input>", QUIZ, "answer given away"),
        ("<input>What is 2 + 3?\nAnswer: 5</input>", OWN, "answer given away"),
        ("<input>What is 2 + 3?\n  **SOLUTION:** 5</input>", OWN, "answer given away"),
        ("<input>What is 2 + 3?\n- *Hint*: count on</input>", OWN, "answer given away"),
        ("<input>1. output : five. What is 2 + 3?</input>", OWN, "answer given away"),
        ("<input>What is 2 + 3? < Response >5</response></input>", OWN, "answer given away"),
        ("<input>What is 2 + 3?\nAnswer:\n5</input>", OWN, "answer given away"),
        ("<input>What is 2 + 3?\n**Answer:**\n</input>", OWN, None),  # a place to write, nothing more
        ("<input>Give the answer: how much is 2 + 3?</input>", OWN, None),
        ("<input>Answering machines: what are they?</input>", OWN, None),
        ('<input>"which planet is  the LARGEST"</input>', OWN, "copied from the instructions"),
        ("<input>Input: Which planet is the largest?</input>", OWN, "copied from the instructions"),
        ("<input>Title: Why maps lie</input>", Task("essay", "Title: {}"), "copied from the instructions"),
        ("<input>Title: Why maps don't lie</input>", Task("essay", "Title: {}"), None),
        ("<input>Which planet is the smallest?</input>", OWN, None),
        ("<input>Nothing but this.</input>", Task("", "Nothing but this."), None),
        ("<input>Nothing but that.</input>", Task("", "Nothing but this."), "template not kept"),
    ],
)
def test_why_a_query_is_invalid(text: str, task: Task, want: str | None) -> None:
    assert problem(text, task) == want


def test_bounds_are_settable() -> None:
    reader = TemplateReader(shortest=3, longest=5)
    assert [problem(f"<input>{'m' * n}</input>", reader=reader) for n in (2, 3, 5, 6)] == [
        "too short",
        None,
        None,
        "too long",
    ]
    for bounds in ((0, 5), (6, 5)):
        with pytest.raises(ValueError, match=r"game\.challenge\.shortest"):
            TemplateReader(*bounds)


def test_the_examples_are_those_of_the_prompt() -> None:
    assert all(f'Input: "{shown}"' in prompts.read("challenger") for shown in EXAMPLES)


TEMPLATES = st.lists(st.sampled_from(["{}", "a", "b", ".*", "(", " ", "\n", "+", "ab"]), max_size=8).map("".join)
QUERIES = st.text("ab.*( \n+{}", max_size=14)


@given(TEMPLATES, QUERIES)
def test_a_template_is_kept_where_the_regular_expression_says_so(template: str, query: str) -> None:
    parts = [re.escape(part.strip()) for part in template.split("{}")]
    assert fills(template, query.strip()) == bool(re.fullmatch(r"(?s:.*?\S.*?)".join(parts), query.strip()))


@given(TEMPLATES, st.lists(st.text("ab(", min_size=1), min_size=9, max_size=9))
def test_a_filled_template_is_kept(template: str, texts: list[str]) -> None:
    first, *others = template.split("{}")
    filled = first + "".join(text + part for text, part in zip(texts, others, strict=False))
    assert fills(template, filled.strip()) == (filled.strip() == template.strip() if not others else True)


def test_long_texts_and_many_blanks_are_read_in_one_pass() -> None:
    # Each of these takes a backtracking expression longer than anyone waits.
    text = "a " * 4000
    many = Task("", "a{}" * 20 + "b")
    assert problem(f"<input>{text.strip()}</input>", many) == "template not kept"
    assert problem(f"<input>{text}b</input>", many, TemplateReader(longest=9000)) is None
    assert problem("<input>" * 20_000) == "no <input> markers"
    assert problem("<" + " " * 50_000 + "input") == "no <input> markers"
    assert problem(f"<input>{'**' * 3999}x</input>") is None
    read = GradeReader()
    for hostile in ("<score>" * 20_000, "<" + " " * 50_000, f"<calculation>{'1+' * 30_000}", "<calculation><" * 9000):
        assert read(hostile) is None
    assert read(f"<calculation>1+1+1+1+1+1+1</calculation><score>7{' ' * 50_000}points x</score>") is None


TAGS = [f"<{end}{tag}>" for tag in ("input", "calculation", "score") for end in ("", "/")]
PIECES = [*TAGS, "{}", "Answer:", "1", "+", "=", "0", "/7", "x"]
ANYTHING = st.one_of(st.text(), st.lists(st.sampled_from([*PIECES, "\n", " "]), max_size=40).map("".join))


@given(ANYTHING, ANYTHING, st.booleans())
@example("<input>\ud800 is no character</input>", "{}", True)
def test_the_reader_never_raises(text: str, template: str, complete: bool) -> None:
    query = TemplateReader()(text, Task("any", template), complete)
    assert query.answerable == (query.problem is None)
    if query.answerable:
        assert query.text in text and 8 <= len(query.text) <= 8000


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        ("Fine. <calculation>1 + 1 + 0 + 1 + 1 + 0 + 1 = 5</calculation>\n<score>5</score>", 5 / 7),
        ("<Calculation>1+1+0+1+1+0+1</Calculation><SCORE> 5/7 </SCORE>", 5 / 7),
        ("< calculation >\n1+1+0+1+1+0+1 = 5/7.\n</ calculation> < score >**5 points**</score >", 5 / 7),
        ("<calculation>**1+1+0+1+1+0+1 = 5 points**</calculation><score>5.0 out of 7</score>", 5 / 7),
        ("<calculation>0+0+0+0+0+0+0=0</calculation><score>0</score> That was my judgement.", 0.0),
        ("<calculation>1+1+1+1+1+1+1=7</calculation><score>7</score>", 1.0),
        # The last pair that is complete.
        (
            "The form is <calculation>1+1+1+1+1+1+1=7</calculation><score>7</score>. Mine: "
            "<calculation>1+0+0+0+0+0+0=1</calculation><score>1</score> <score>",
            1 / 7,
        ),
        ("<calculation>1+0+0+0+0+0+0=1</calculation><score>1</score><calculation>1+1+1+1+1+1+1", 1 / 7),
        # Missing, malformed.
        ("Fine, five points.", None),
        ("", None),
        ("<calculation>1+1+0+1+1+0+1=5</calculation>", None),
        ("<score>5</score>", None),
        ("<calculation>1+1+0+1+1+0=4</calculation><score>4</score>", None),
        ("<calculation>1+1+0+1+1+0+1+0=5</calculation><score>5</score>", None),
        ("<calculation>2+1+0+1+1+0+0=5</calculation><score>5</score>", None),
        ("<calculation>1+1+0+1+1+0+1=</calculation><score>5</score>", None),
        ("<calculation>1+1+0+1+1+0+1=5</calculation><score>five</score>", None),
        ("<calculation>1+1+0+1+1+0+1=5</calculation><score>5.5</score>", None),
        ("<calculation>1+1+0+1+1+0+1=5</calculation><score>5", None),
        # Contradictions.
        ("<calculation>1+1+0+1+1+0+1=6</calculation><score>6</score>", None),
        ("<calculation>1+1+0+1+1+0+1=6</calculation><score>5</score>", None),
        ("<calculation>1+1+0+1+1+0+1=5</calculation><score>6</score>", None),
        ("<calculation>1+1+0+1+1+0+1=5</calculation><score>5/10</score>", None),
        ("<calculation>1+1+0+1+1+0+1=5/8</calculation><score>5</score>", None),
        ("<calculation>1+1+0+1+1+0+1=5</calculation><score>5</score> or rather <score>6</score>", None),
        (f"<calculation>1+1+0+1+1+0+1=5</calculation><score>{'5' * 6000}</score>", None),
    ],
)
def test_how_a_grade_is_read(reply: str, want: float | None) -> None:
    assert GradeReader()(reply) == want


@given(
    st.lists(st.sampled_from([0, 1]), min_size=1, max_size=12),
    st.sampled_from(["+", " + ", "\n+\n"]),
    st.sampled_from(["", " = {}", "={}/{}", " = **{}**"]),
    st.sampled_from(["{}", " {} / {} ", "{} points.", "`{}`"]),
    st.integers(-3, 3),
)
def test_grades_of_any_rubric_come_back_and_contradictions_never_do(
    points: list[int], plus: str, beside: str, total: str, off: int
) -> None:
    read, said = GradeReader(len(points)), sum(points) + off
    spelled = plus.join(str(point) for point in points) + beside.format(sum(points), len(points))
    reply = f"<calculation>{spelled}</calculation> <score>{total.format(said, len(points))}</score>"
    assert read(reply) == (None if off else sum(points) / len(points))
    assert GradeReader(len(points) + 1)(reply) is None


@given(ANYTHING)
def test_the_grade_reader_never_raises_and_gives_shares(text: str) -> None:
    assert GradeReader()(text) in (None, *(points / 7 for points in range(8)))


def test_a_rubric_has_criteria() -> None:
    with pytest.raises(ValueError, match=r"game\.quality\.criteria"):
        GradeReader(0)


def test_the_domain_in_shares_worth_seven_points() -> None:
    assert TEXT.points == 7 and TEXT.refuse_copies
    grader = Role("grader", TEXT.grader, SamplingParams(8), weight=0.0)
    shown = str(grader.prompt(query="the query", answer="the answer").messages[0]["content"])
    # The form that the prompt shows is one that the reader takes, and all that it says is needed is said.
    assert TEXT.parse_grade(shown) == 3 / 7
    assert all(f"\n{criterion}. " in shown for criterion in range(1, 8))
    assert "<instruction>\nthe query\n</instruction>\n<response>\nthe answer\n</response>" in shown


@pytest.mark.parametrize(
    ("task", "kept"),
    [
        (Task(), "use your own judgement"),
        (Task("essays"), "strictly to the task."),
        (Task("", "T: {}"), "strictly to the template."),
        (Task("essays", "T: {}"), "strictly to the task and the template."),
    ],
)
def test_the_challenger_is_told_its_task_and_template(task: Task, kept: str) -> None:
    role = Role("challenger", TEXT.challenger, SamplingParams(8))
    shown = str(role.prompt(task=task.task, template=task.template).messages[0]["content"])
    assert kept in shown and task.task in shown and task.template in shown
    assert "{%" not in shown and "{{" not in shown
    # Nothing in it passes for a query, should a model repeat it.
    assert problem(shown, task) is not None


def test_a_prompt_file_that_holds_no_text(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 {{ query }}")
    for name, message in (("empty", "is empty"), ("latin", "is no UTF-8 text"), ("none", "can't read")):
        with pytest.raises(ValueError, match=rf"^game\.solver\.prompt: .*{message}"):
            prompts.from_file(str(tmp_path / f"{name}.txt"), "game.solver.prompt", ("query",))
