"""The embedded picture world: small pictures, questions about them, and a tiny model that describes and answers."""

from importlib.resources import files
from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """The folder of the shipped model, for transformers' from_pretrained."""
    return Path(str(files("sparring.pictures").joinpath("model")))
