"""Runs as a report overlays them: those that differ in nothing but their seed are one method, drawn as one line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparring.report.drawing import COLOURS, CURVE_POINTS, DASHES, Dash, binned, running_mean
from sparring.report.run import Run

Array = npt.NDArray[np.float64]
_BETWEEN = ("-", "_", ".", " ")


@dataclass(frozen=True)
class Curve:
    """A metric over steps: `values_P` as measured (several seeds: their mean), `smooth_P` its running mean.

    low_P, high_P: the lowest and the highest seed's running mean; None for a single run.
    """

    steps_P: Array
    values_P: Array
    smooth_P: Array
    low_P: Array | None = None
    high_P: Array | None = None


@dataclass(frozen=True)
class Method:
    """Runs of one configuration, each of another seed; `colour` and `dash` are its own through the page."""

    name: str
    runs: tuple[Run, ...]
    colour: str
    dash: Dash

    def curve(self, key: str, reach: float = 0.0) -> Curve | None:
        """A metric's curve over the steps at which every run has it; None where there is none.

        reach: see running_mean.
        """
        measured = [dict(zip(*run.series(key), strict=True)) for run in self.runs]
        steps = sorted(set(measured[0]).intersection(*measured[1:]))
        if not steps:
            return None
        steps_P = np.array(steps, dtype=np.int64)
        binned_P = binned(steps_P, steps_P.astype(float), CURVE_POINTS)
        values_RP = np.stack(
            [binned(steps_P, np.array([one[step] for step in steps]), CURVE_POINTS) for one in measured]
        )
        smooth_RP = np.stack([running_mean(values_P, reach) for values_P in values_RP])
        band = (None, None) if len(self.runs) == 1 else (smooth_RP.min(axis=0), smooth_RP.max(axis=0))
        return Curve(binned_P, values_RP.mean(axis=0), smooth_RP.mean(axis=0), *band)

    @property
    def border(self) -> str:
        """The dash as CSS calls it."""
        return ("solid", "dashed", "dotted")[DASHES.index(self.dash)]

    def has(self, prefix: str) -> list[str]:
        """The metrics under a prefix that any run has a number for."""
        return list(dict.fromkeys(key for run in self.runs for key in run.keys(prefix)))


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """Group runs into methods, in the order given.

    Runs of one configuration and one seed are the same run twice and stay apart.
    """
    groups: dict[str, list[Run]] = {}
    met: dict[str, int] = {}
    for run in runs:
        exact = _described(run, {})
        again = met[exact] = met.get(exact, 0) + 1
        groups.setdefault(f"{again} {_described(run, {'seed': None})}", []).append(run)
    names = _distinct([_name(group) for group in groups.values()], list(groups.values()))
    return [
        Method(name, tuple(group), COLOURS[at % len(COLOURS)], DASHES[at // len(COLOURS) % len(DASHES)])
        for at, (name, group) in enumerate(zip(names, groups.values(), strict=True))
    ]


def _described(run: Run, changes: dict[str, None]) -> str:
    if not run.settings:  # unknown settings are nobody else's
        return str(run.path)
    return json.dumps({**run.settings, **changes}, sort_keys=True, default=str)


def _name(group: Sequence[Run]) -> str:
    """What the runs' names begin with: "sr1" of sr1-0 and sr1-1."""
    first = group[0].name
    if len(group) == 1:
        return first
    begin = os.path.commonprefix([run.name for run in group])  # noqa: RUF071 - letter by letter is what is wanted
    cut = begin if begin.endswith(_BETWEEN) else begin.rstrip("0123456789")  # of 10 and 11 the 1 is no name's
    return cut.rstrip("".join(_BETWEEN)) or first


def _distinct(names: Sequence[str], groups: Sequence[Sequence[Run]]) -> list[str]:
    """The names, but a group's first run's where two groups have one name."""
    return [name if names.count(name) == 1 else group[0].name for name, group in zip(names, groups, strict=True)]
