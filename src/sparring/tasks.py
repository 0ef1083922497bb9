"""A user's file of tasks for the Challenger: one or many, drawn per query."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from sparring.domains import Task

KEYS = ("task", "template", "name")


class TasksError(ValueError):
    """A file of tasks can't be read, or an entry of it is none."""


def load_tasks(path: Path) -> list[Task]:
    """Tasks from a YAML list of {task, template, name}, each key optional; a plain text is a task of that text.

    {} leaves the choice to the model's own judgement. `name` is the task's text where it isn't given.

    Raises:
        TasksError: unreadable, empty or no list; an entry (named by its number) with an unknown key, a value that is no
            text or a template without {}; two entries of one name.
    """
    tasks: dict[str, Task] = {}
    for number, entry in enumerate(_entries(path), 1):
        where = f"game.challenge.tasks: entry {number} of {path}"
        task = _task(entry, where)
        if task.name in tasks:
            raise TasksError(f"{where}: an entry before it is called {task.name!r} too: give each a name of its own")
        tasks[task.name] = task
    return list(tasks.values())


def _entries(path: Path) -> list[Any]:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TasksError(f"game.challenge.tasks: can't read {path}: {error}") from error
    if entries is None or entries == []:
        raise TasksError(f"game.challenge.tasks: {path} is empty: it takes a list of tasks")
    if not isinstance(entries, list):
        raise TasksError(f"game.challenge.tasks: {path} must hold a list of tasks, not a {type(entries).__name__}")
    return entries


def _task(entry: Any, where: str) -> Task:
    fields = {"task": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict):
        raise TasksError(f"{where} must be a task's text, or have the keys {', '.join(KEYS)}; {{}} for none")
    for key, value in fields.items():
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(KEYS)}"
            raise TasksError(f"{where} has the unknown key {key!r}; {known}")
        if not isinstance(value, str | None):
            raise TasksError(f"{where}: its {key} must be text, not {value!r}: put it in quotes")
    task, template, name = ((fields.get(key) or "").strip() for key in KEYS)
    if template and "{}" not in template:
        raise TasksError(f"{where}: a template has at least one {{}}, which the Challenger fills")
    return Task(task, template, name or task or Task().name)
