"""A user's file of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.domains import Task
from sparring.tasks import TasksError, load_tasks


def written(folder: Path, text: str) -> Path:
    file = folder / "tasks.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_tasks_of_every_form(tmp_path: Path) -> None:
    text = """
- pure mathematics
- {task: "Essays from a title", template: "Title: {}", name: essays}
- task: |
    Letters
  template: |
    To: {}
    About: {}
- {}
- {template: "Say {}", name: say}
"""
    assert load_tasks(written(tmp_path, text)) == [
        Task("pure mathematics", "", "pure mathematics"),
        Task("Essays from a title", "Title: {}", "essays"),
        Task("Letters", "To: {}\nAbout: {}", "Letters"),
        Task("", "", "own judgement"),
        Task("", "Say {}", "say"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[]", "is empty"),
        ("{task: maths}", "must hold a list of tasks, not a dict"),
        ("maths", "must hold a list of tasks, not a str"),
        ("- [a", "can't read"),
        ("- maths\n- 7", "entry 2 of .* must be a task's text, or have the keys task, template, name"),
        ("-", "entry 1 of .* must be a task's text"),
        ("- {task: maths, templat: '{}'}", "unknown key 'templat'; did you mean 'template'"),
        ("- {7: maths}", "unknown key 7; it takes task, template, name"),
        ("- {task: 7}", "its task must be text, not 7"),
        ("- {task: maths, template: 'Solve this'}", r"a template has at least one \{\}"),
        ("- maths\n- {task: maths, template: 'Solve {}'}", "entry 2 of .*called 'maths' too"),
        ("- {}\n- {}", "called 'own judgement' too"),
    ],
)
def test_what_a_file_of_tasks_must_not_hold(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TasksError, match=rf"^game\.challenge\.tasks: .*{message}"):
        load_tasks(written(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TasksError, match=r"game\.challenge\.tasks: can't read .*nowhere\.yaml"):
        load_tasks(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"- caf\xe9")
    with pytest.raises(TasksError, match="can't read"):
        load_tasks(tmp_path / "latin.yaml")


@given(st.text())
def test_any_text_gives_tasks_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("tasks") / "tasks.yaml"
    file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    try:
        tasks = load_tasks(file)
    except TasksError as error:
        assert str(error).startswith("game.challenge.tasks: ")
    else:
        assert tasks and all(isinstance(task, Task) for task in tasks)
