"""Every other benchmark: the lm-evaluation-harness (optional), run as a program on a model's folder.

It is a program of its own with its own way to load models; here is its command line, and its results as our records.
Source: https://github.com/EleutherAI/lm-evaluation-harness (its command as of 0.4.9 to 0.4.13).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAME = "the lm-evaluation-harness"


@dataclass(frozen=True)
class HarnessRecord:
    """One figure of one task.

    Attributes:
        task: the harness's name of the task, or of a group of tasks.
        metric: "acc", "exact_match", "pass@1" ...
        filter: how the answer was read ("none", "strict-match", "flexible-extract" ...).
        value: the figure; a fraction in [0, 1] for accuracies.
        stderr: its standard error; None where the harness gives none.
        items: items answered; None for a group.
        shots: examples in the prompt; None where it is not given.
        version: the task's version in the harness; figures of two versions don't compare.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    items: int | None
    shots: int | None
    version: str | None


def lm_eval(
    model: str | Path,
    tasks: Sequence[str],
    output: str | Path,
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int | str = "auto",
    device: str | None = None,
    dtype: str = "auto",
    chat_template: bool = True,
    seed: int = 0,
    seconds: float | None = None,
) -> list[HarnessRecord]:
    """Run the harness's tasks on a model's folder.

    Tasks that run a model's programs are not switched on (for HumanEval there is our own, in a sandbox), nor is code
    that a model or a data set brings along.

    Args:
        model: a folder as `save_pretrained` leaves it (an exported model), with its tokenizer.
        tasks: the harness's names; `python -m lm_eval ls tasks` lists them.
        output: folder that keeps the harness's results file.
        shots: examples in the prompt; None: the task's own number.
        limit: items of each task, for a trial.
        batch_size: rows at once, or "auto".
        device: "cuda", "cpu" ...; None: the harness chooses.
        chat_template: ask as the model's chat template has it.
        seconds: how long it may take; None: as long as it takes.

    Raises:
        ValueError: it is not installed, there is no such folder, no task is given, or its results can't be read.
        RuntimeError: it failed, or took too long; the message ends with what it said.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("other benchmarks are run by the lm-evaluation-harness: pip install 'sparring[lm-eval]'")
    command = harness_command(
        model,
        tasks,
        output,
        shots=shots,
        limit=limit,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        chat_template=chat_template,
        seed=seed,
    )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("results*.json"))
    run_program(NAME, [sys.executable, "-m", "lm_eval", *command], seconds)
    written = sorted(set(folder.glob("results*.json")) - before)
    if len(written) != 1:
        raise ValueError(f"the lm-evaluation-harness left {len(written)} new results files in {folder}, not one")
    return read_results(written[0])


def harness_command(
    model: str | Path,
    tasks: Sequence[str],
    output: str | Path,
    *,
    shots: int | None,
    limit: int | None,
    batch_size: int | str,
    device: str | None,
    dtype: str,
    chat_template: bool,
    seed: int,
) -> list[str]:
    """The harness's arguments; see `lm_eval`."""
    folder = model_folder(model, NAME)
    require_tasks(tasks)
    given = {"--num_fewshot": shots, "--limit": limit, "--device": device}
    options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    return [
        *("--model", "hf"),
        *("--model_args", f"pretrained={folder},dtype={dtype}"),
        *("--tasks", ",".join(tasks)),
        *("--batch_size", str(batch_size)),
        *("--seed", str(seed)),
        *options,
        *(["--apply_chat_template"] if chat_template else []),
        *("--output_path", str(Path(output).resolve() / "results.json")),
    ]


def model_folder(model: str | Path, program: str) -> Path:
    """A model's folder as a program takes it within its arguments.

    Raises:
        ValueError: it is no model's, or has signs in its path that stand for something there.
    """
    folder = Path(model).resolve()
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model} is no model's folder: it has no config.json")
    if any(letter in str(folder) for letter in ",[](){}'\""):
        raise ValueError(f"{program} can't take a path with any of , [ ] ( ) {{ }} or quotes: {folder}")
    return folder


def require_tasks(tasks: Sequence[str]) -> None:
    """Raises ValueError where these are no names of tasks."""
    if not tasks or not all(task and not set(task) & set(", \t\n") for task in tasks):
        raise ValueError(f"tasks must be a list of the harness's task names, not {list(tasks)!r}")


def read_results(path: Path) -> list[HarnessRecord]:
    """The records of a results file of the harness.

    Raises:
        ValueError: the file is damaged or holds no results.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} can't be read as the harness's results: {error}") from error
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict) or not results:
        raise ValueError(f"{path} holds no results of the harness: it has no field 'results' with tasks")
    records = [record for task, figures in results.items() for record in _records(task, figures, content, path)]
    if not records:
        raise ValueError(f"{path}: the harness's results hold no figure")
    return records


def _records(task: str, figures: Any, content: Mapping[str, Any], path: Path) -> Iterator[HarnessRecord]:
    if not isinstance(figures, dict):
        raise ValueError(f"{path}: the results of {task} are no object")  # noqa: TRY004 - a file
    for name, value in figures.items():
        metric, comma, kind = name.partition(",")
        figure = _number(value)
        if not comma or "_stderr" in metric or figure is None:  # lmms-eval has several of them
            continue
        items = _of(content, "n-samples", task)
        shots, version = _of(content, "n-shot", task), _of(content, "versions", task)
        yield HarnessRecord(
            task,
            metric,
            kind,
            figure,
            _number(figures.get(f"{metric}_stderr,{kind}")),
            items.get("effective") if isinstance(items, dict) else None,
            shots if isinstance(shots, int) else None,
            None if version is None else str(version),
        )


def _of(content: Mapping[str, Any], table: str, task: str) -> Any:
    values = content.get(table)
    return values.get(task) if isinstance(values, dict) else None


def _number(value: Any) -> float | None:
    """A figure; None for what is none, such as "N/A"."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def run_program(program: str, command: Sequence[str], seconds: float | None) -> str:
    """Run it to its end; gives the end of what it said, which an error's message has too.

    Raises:
        RuntimeError: see `lm_eval`.
    """
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{program} took longer than {seconds:g} seconds") from error
    said = (ended.stderr or ended.stdout).strip()[-2000:]
    if ended.returncode != 0:
        raise RuntimeError(f"{program} failed (exit status {ended.returncode}): {said}")
    return said
