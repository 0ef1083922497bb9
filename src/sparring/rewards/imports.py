"""A user's own object by name: `package.module:name` or `file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4


def load_object(target: str, setting: str) -> Any:
    """Import `package.module:name` (from the working directory too) or `path/to/file.py:name`.

    Raises:
        ValueError: no such module, file or name, or it can't be imported; the message names the setting.
    """
    source, colon, name = target.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(f"{setting} takes package.module:name or file.py:name, not {target!r}")
    if source.endswith(".py") and not Path(source).is_file():
        raise ValueError(f"{setting}: there is no file {source}")
    try:
        module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and f"{source}.".startswith(f"{error.name}."):
            raise ValueError(f"{setting}: no module {source!r} can be imported ({error})") from error
        raise ValueError(f"{setting}: {source} can't be imported ({type(error).__name__}: {error})") from error
    if not hasattr(module, name):
        public = ", ".join(sorted(n for n in vars(module) if not n.startswith("_")))
        raise ValueError(f"{setting}: {source} has no {name!r}; it has: {public}")
    return getattr(module, name)


def _import_file(path: Path) -> ModuleType:
    # Dataclasses look their module up in sys.modules; a name of its own keeps the file from hiding another module.
    name = f"sparring_file_{uuid4().hex}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(source: str) -> ModuleType:
    # As `python -m` does: a console script's path begins with its own folder instead.
    folder = str(Path.cwd())
    if not {"", folder} & set(sys.path):
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    return importlib.import_module(source)
