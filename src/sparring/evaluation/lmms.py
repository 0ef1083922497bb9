"""Other benchmarks about pictures: lmms-eval (optional), run as a program on a model's folder.

Its command line and its results file are the lm-evaluation-harness's with a few differences, which are here.
Source: https://github.com/EvolvingLMMs-Lab/lmms-eval (its command and results as of 0.3 to 0.5). It could not be
installed where this was written: what is tested is the command that is built, and results files of its form.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from sparring.evaluation.harness import HarnessRecord, model_folder, read_results, require_tasks, run_program
from sparring.lm.hub import read_config

NAME = "lmms-eval"
FAMILIES = {"qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl", "qwen2_vl": "qwen2_vl"}
"""A model's `model_type` → lmms-eval's name of who runs it."""


def lmms_eval(
    model: str | Path,
    tasks: Sequence[str],
    output: str | Path,
    *,
    model_args: Mapping[str, str | int] | None = None,
    gen_kwargs: str | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    device: str | None = None,
    seed: int = 0,
    seconds: float | None = None,
) -> list[HarnessRecord]:
    """Run lmms-eval's tasks on a model's folder.

    Args:
        model: a folder as `save_pretrained` leaves it (an exported model), with tokenizer and image processor.
        tasks: lmms-eval's names; `python -m lmms_eval --tasks list` lists them.
        output: folder that keeps the results file.
        model_args: more of the model's arguments (min_pixels, max_pixels).
        gen_kwargs: how answers are drawn ("max_new_tokens=2048"); None: the task's own way.
        shots, limit, batch_size, device, seed, seconds: see `harness.lm_eval`.

    Raises:
        ValueError: it is not installed, there is no such folder or none of a known family, no task is given, or it left
            no results.
        RuntimeError: it failed, or took too long; the message ends with what it said.
    """
    if find_spec("lmms_eval") is None:
        raise ValueError(
            "these benchmarks are run by lmms-eval: pip install git+https://github.com/EvolvingLMMs-Lab/lmms-eval"
        )
    given = {"shots": shots, "limit": limit, "batch_size": batch_size, "device": device, "seed": seed}
    command = lmms_command(model, tasks, output, model_args=model_args or {}, gen_kwargs=gen_kwargs, **given)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.rglob("*_results.json"))
    said = run_program(NAME, [sys.executable, "-m", "lmms_eval", *command], seconds)
    written = sorted(set(folder.rglob("*_results.json")) - before)
    if len(written) != 1:  # it ends well after an error too
        raise ValueError(f"{NAME} left {len(written)} new results files in {folder}, not one: {said[-2000:]}")
    return read_results(written[0])


def lmms_command(
    model: str | Path,
    tasks: Sequence[str],
    output: str | Path,
    *,
    model_args: Mapping[str, str | int],
    gen_kwargs: str | None,
    shots: int | None,
    limit: int | None,
    batch_size: int,
    device: str | None,
    seed: int,
) -> list[str]:
    """lmms-eval's arguments; see `lmms_eval`."""
    folder = model_folder(model, NAME)
    require_tasks(tasks)
    family = str(read_config(folder).get("model_type"))
    if family not in FAMILIES:
        raise ValueError(f"{model} is of type {family}; {NAME} is started for {', '.join(FAMILIES)}")
    arguments = {"pretrained": str(folder), **model_args}
    where = Path(output).resolve()
    if set(str(where)) & set(",="):
        raise ValueError(f"{NAME} can't take an output folder with a comma or = in its path: {where}")
    given = {"--num_fewshot": shots, "--limit": limit, "--device": device, "--gen_kwargs": gen_kwargs}
    options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    return [
        *("--model", FAMILIES[family]),
        *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
        *("--tasks", ",".join(tasks)),
        *("--batch_size", str(batch_size)),
        *("--seed", str(seed)),
        *options,
        *("--output_path", str(where)),
    ]
