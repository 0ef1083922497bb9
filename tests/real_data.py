"""Real data for trying, which is never part of the repository: where it is, or why a test can't have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_data(*parts: str) -> Path:
    """A file below the folder that SPARRING_DATA names. Absent it skips, or fails where SPARRING_REQUIRE_DATA is 1."""
    path = Path(os.environ.get("SPARRING_DATA", "")).joinpath(*parts)
    if not path.is_file():
        assert os.environ.get("SPARRING_REQUIRE_DATA") != "1", f"SPARRING_DATA: there is no {path}"
        pytest.skip(f"SPARRING_DATA names no folder with {'/'.join(parts)}")
    return path
