"""The embedded arena: a toy language, its verifier and rubric, and a tiny model that plays every role."""

from importlib.resources import files
from pathlib import Path

from sparring.arena.language import TASKS

__all__ = ["TASKS", "model_path"]


def model_path() -> Path:
    """The folder of the shipped model, for transformers' from_pretrained."""
    return Path(str(files("sparring.arena").joinpath("model")))
