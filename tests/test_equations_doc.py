"""Every row of docs/equations.md names a function that exists, in the file that holds it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [line for line in (ROOT / "docs" / "equations.md").read_text("utf-8").splitlines() if line.startswith("|")]
PLACES = [re.split(r"(?<!\\)\|", row)[-2].strip() for row in ROWS if "---" not in row and "| where |" not in row]


@pytest.mark.parametrize("place", PLACES)
def test_the_place_exists(place: str) -> None:
    found = re.fullmatch(r"`(src/sparring/[\w/]+\.py):([\w.]+)`", place)
    assert found is not None, f"a row ends in `src/sparring/file.py:function`, not {place}"
    path, name = found.groups()
    thing = importlib.import_module(path.removeprefix("src/").removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        thing = getattr(thing, part)
    thing = inspect.unwrap(getattr(thing, "__func__", thing))
    assert inspect.isfunction(thing)
    source = inspect.getsourcefile(thing)
    assert source is not None and Path(source) == ROOT / path, f"{name} is defined in {source}"


def test_every_public_equation_has_a_row() -> None:
    named = {place.strip("`").split(":")[1] for place in PLACES}
    for module in ("sparring.losses", "sparring.advantages"):
        public = {
            name
            for name, thing in inspect.getmembers(importlib.import_module(module), inspect.isfunction)
            if thing.__module__ == module and not name.startswith("_") and name != "is_dead"
        }
        assert public <= named, f"{module}: no row for {sorted(public - named)}"
