"""Recipes: functions that return a full run configuration.

A preset is a named variant of a recipe. `arena` runs on the shipped model in minutes; `paper` is the paper's game and
settings on a real model; the docstrings say what is the paper's and what is ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from sparring.config import ConfigError
from sparring.recipes.grpo import grpo
from sparring.recipes.lsp import lsp
from sparring.recipes.lsp_zero import lsp_zero
from sparring.recipes.vision_sr1 import vision_sr1
from sparring.settings import RunConfig

Recipe = Callable[..., RunConfig]
RECIPES: Mapping[str, Recipe] = {"lsp": lsp, "lsp-zero": lsp_zero, "grpo": grpo, "vision-sr1": vision_sr1}


def recipe(name: str, preset: str | None = None) -> RunConfig:
    """The configuration of a recipe and preset.

    Raises:
        ConfigError: no such recipe or preset, with the nearest name.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}{nearest(name, list(RECIPES))}")
    return RECIPES[name](preset) if preset else RECIPES[name]()


def nearest(name: str, known: list[str]) -> str:
    """'; did you mean ...' or the list of what there is."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"
