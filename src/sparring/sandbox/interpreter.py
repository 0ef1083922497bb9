"""Which Python runs programs, and the folders it can't do without."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sparring.sandbox.base import SandboxError

_ASK = "import sys; print(sys.executable, sys.prefix, sys.base_prefix, sep='\\0')"


@dataclass(frozen=True)
class Interpreter:
    """A Python, the folders it needs to see (parents first), and flags it is started with."""

    executable: Path
    folders: tuple[Path, ...]
    flags: tuple[str, ...] = ()

    @classmethod
    def this(cls) -> Self:
        """The base installation of the running interpreter, without site-packages."""
        base = getattr(sys, "_base_executable", None) or sys.executable
        return cls(Path(base).resolve(), _folders(base, sys.base_prefix), ("-S",))

    @classmethod
    def at(cls, path: str | Path) -> Self:
        """A given one, of a virtual environment say, with its packages. Raises SandboxError where it doesn't run."""
        try:
            asked = subprocess.run(
                [os.fspath(path), "-c", _ASK], capture_output=True, text=True, timeout=60, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxError(
                f"the sandbox's python {path} can't be started ({error}): name a Python 3.8 or newer"
            ) from error
        executable, prefix, base = asked.stdout.strip().split("\0")
        return cls(Path(executable), _folders(executable, prefix, base))


def _folders(executable: str, *prefixes: str) -> tuple[Path, ...]:
    """Where they and their links lead; never a folder that holds a home or the whole system."""
    named = [Path(prefix) for prefix in prefixes]
    found = {folder for path in named for folder in (path, path.resolve())}
    real = Path(executable).resolve()
    if not any(real.is_relative_to(folder) for folder in found):
        found.add(real)
    for folder in found:
        if Path.home().is_relative_to(folder):
            raise SandboxError(
                f"the Python in {folder} can't be shown to a program without showing it {Path.home()} too: "
                "name another python for the sandbox"
            )
    return tuple(sorted(found, key=lambda folder: len(folder.parts)))
