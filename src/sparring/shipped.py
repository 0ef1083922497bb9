"""The models that the package brings, by the names that `model.path` has for them."""

from __future__ import annotations

from pathlib import Path

from sparring import arena, pictures

_FOLDERS = {"arena": arena.model_path, "pictures": pictures.model_path}


def is_shipped(path: object) -> bool:
    """Whether this names a shipped model, even where a folder of that name lies about."""
    return path in _FOLDERS


def shipped_folder(name: str) -> Path:
    """The folder of a shipped model, for transformers' from_pretrained."""
    return _FOLDERS[name]()
