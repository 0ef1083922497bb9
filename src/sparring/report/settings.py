"""Settings on the page: what runs differ in, and nested values as lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sparring.report.methods import Method


def differences(methods: Sequence[Method]) -> list[tuple[str, list[str]]]:
    """(setting, a text for each method) of the settings that are not the same for all; "—" where one lacks it.

    A method's seeds are listed; its other settings are the same in all of its runs.
    """
    flat = [dict(lines(method.runs[0].settings)) for method in methods]
    for each, method in zip(flat, methods, strict=True):
        seeds = [str(run.settings["seed"]) for run in method.runs if "seed" in run.settings]
        if seeds:
            each["seed"] = ", ".join(seeds)
    names = dict.fromkeys(name for each in flat for name in each)
    rows = [(name, [each.get(name, "—") for each in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def lines(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, value) lines; a list's entries are numbered from 1."""
    if isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        value = {str(place): inner for place, inner in enumerate(value, 1)}
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in lines(inner, f"{path}.{key}".lstrip("."))]
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))]
