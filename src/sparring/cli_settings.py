"""What the commands share: options that describe a run, and the configuration they make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sparring.settings import RunConfig

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
_OPTIONS = (
    click.argument("recipe", required=False),
    OVERRIDES,
    click.option("--preset", help="Variant of the recipe.  [default: its first]"),
    click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file of settings, over the recipe's."),
    click.option("--init", metavar="MODEL_OR_RUN", help="Start from this model folder, run or hub id (model.path)."),
    click.option(
        "--reward",
        metavar="TARGET",
        help="Reward model (folder or hub id), URL of a served one, or file.py:function (game.reward).",
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE, KEY=VALUE, --preset, --config, --init and --reward: what `described` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def described(
    *,
    recipe: str | None,
    overrides: tuple[str, ...],
    preset: str | None,
    file: Path | None,
    init: str | None,
    reward: str | None,
) -> RunConfig:
    """The configuration that a command's run options describe."""
    if recipe is not None and "=" in recipe:
        recipe, overrides = None, (recipe, *overrides)
    texts: dict[str, str | None] = {"model.path": init} if init else {}
    texts |= _reward_settings(reward) if reward else {}
    # Quoted as YAML, so that a folder called null or 1e5 stays a text.
    given = [f"{key}={json.dumps(text, ensure_ascii=False)}" for key, text in texts.items()]
    return configuration(recipe, preset, file, (*given, *overrides))


def configuration(name: str | None, preset: str | None, file: Path | None, overrides: tuple[str, ...]) -> RunConfig:
    """Recipe → YAML → overrides; a file that names its recipe needs no other."""
    from sparring.config import ConfigError, read_yaml, resolve
    from sparring.recipes import recipe

    labels = {} if file is None else {k: str(v) for k, v in read_yaml(file).items() if k in ("recipe", "preset")}
    for key, given in (("recipe", name), ("preset", preset)):
        if given is not None and labels.get(key, given) != given:
            raise ConfigError(f"{file} is of {key} {labels[key]!r}, not {given!r}: leave one of them out")
        if any(text.partition("=")[0].strip() == key for text in overrides):
            raise ConfigError(f"{key} names where the settings start from: give it as {_as_given(key)}")
    name = name or labels.get("recipe")
    if name is None:
        raise click.UsageError("name a RECIPE (`sparring recipes` lists them), or give a --config that names one")
    return resolve(recipe(name, preset or labels.get("preset")), file, overrides)


def _as_given(key: str) -> str:
    return "--preset" if key == "preset" else "the first argument"


def _reward_settings(target: str) -> dict[str, str | None]:
    """What --reward names: a served model by its URL, a function by its colon, else a model."""
    if target.startswith(("http://", "https://")):
        return {"game.reward.url": target}
    if ":" in target:
        return {"game.reward.model": None, "game.reward.function": target}
    return {"game.reward.function": None, "game.reward.model": target}
