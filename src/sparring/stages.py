"""The stages a model came through: recorded when a run starts, finished with its results (`card.py` tells them).

`lineage.json` is {"stages": [...]}, oldest first. A run that starts from the model of another carries the other's
stages before its own; a model from elsewhere is no stage, only the first one's `start`.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sparring
from sparring.runfolder import RunFolder
from sparring.shipped import is_shipped

if TYPE_CHECKING:
    from sparring.settings import RunConfig
    from sparring.settings.sft import SFTConfig

Record = Mapping[str, Any]

WINDOW = 10
"""Steps at either end of a run that its results are means over; half of a shorter run."""

_SELDOM = ("eval/", "nll/held_out")
_CHECKPOINT = re.compile(r"/checkpoints/step-(\d{6,})/model$")


def lineage(config: RunConfig | SFTConfig, game_name: str) -> dict[str, Any]:
    """The stages up to the run that this configuration starts, its own the last.

    The earlier ones are found where `model.path` is a run's folder, its model folder, the model folder of one of its
    checkpoints (that stage then says `taken_at_step`), or any folder with a copy of lineage.json.

    Args:
        game_name: the game's, as a resumed run must name it again; or what is done in place of one.

    Raises:
        ValueError: the start's lineage.json is damaged.
    """
    stage = {
        "recipe": config.recipe,
        "preset": config.preset,
        "game": game_name,
        "start": config.model.path,
        "reference": config.model.reference or config.model.path,
        "steps": config.steps,
        "seed": config.seed,
        "started": _now(),
        "versions": {
            "sparring": sparring.__version__,
            "torch": version("torch"),
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "settings": config.model_dump(mode="json"),
    }
    return {"stages": [*_earlier(config.model.path), stage]}


def finish_stage(
    lineage: Record, *, steps_done: int, metrics: Sequence[Record], evaluation: Record | None
) -> dict[str, Any]:
    """The same with the last stage's `results`.

    Args:
        steps_done: fewer than `steps` where the run's time was up.
        metrics: the run's rows of metrics.jsonl.
        evaluation: the content of evaluation.json; None where the domain has no held-out test.
    """
    results: dict[str, Any] = {"steps": steps_done, "finished": _now(), **_summary(metrics)}
    if evaluation is not None:
        tops = {name: row for name, row in evaluation["subsets"].items() if "/" not in name}
        results["evaluation"] = {**evaluation, "subsets": tops}
    *earlier, last = lineage["stages"]
    return {**lineage, "stages": [*earlier, {**last, "results": results}]}


def _earlier(path: str) -> list[dict[str, Any]]:
    if is_shipped(path) or not Path(path).is_dir():
        return []
    folder = Path(path).resolve()
    if match := _CHECKPOINT.search(folder.as_posix()):
        run = folder.parents[2]
        return _up_to(run, int(match[1])) if (run / "lineage.json").is_file() else []
    # A run's own record first: the copy in its model folder has its paths shortened.
    places = (folder.parent, folder) if folder.name == "model" else (folder,)
    found = next((place for place in places if (place / "lineage.json").is_file()), None)
    return [] if found is None else _stages(found / "lineage.json")


def _up_to(run: Path, step: int) -> list[dict[str, Any]]:
    """A run's stages as of a checkpoint: the results are those up to it."""
    *earlier, last = _stages(run / "lineage.json")
    rows = [row for row in RunFolder(run).read_metrics() if int(row["step"] or 0) <= step]
    return [*earlier, {**last, "taken_at_step": step, "results": {"steps": step, **_summary(rows)}}]


def _stages(file: Path) -> list[dict[str, Any]]:
    try:
        stages = json.loads(file.read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} can't be read ({error!r}): restore it, or remove it to start without it") from error
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError(f"{file} holds no list of stages: restore it, or remove it to start without it")
    return stages


def window(metrics: Sequence[Record]) -> int:
    """Steps at either end that `ends` is the mean over."""
    return max(1, min(WINDOW, sum(row["step"] > 0 for row in metrics) // 2))


def ends(metrics: Sequence[Record], name: str) -> tuple[float, float] | None:
    """A figure's (first, last): its means over the window at either end of the run; None where it has no number.

    What is measured seldom and on many questions (held-out accuracies, held-out likelihood) is its first and its last
    value.

    >>> ends([{"step": step, "game/V": float(step)} for step in (1, 2, 3, 4)], "game/V")
    (1.5, 3.5)
    """
    measured = _values(metrics, name)
    if not measured:
        return None
    first, last = measured[:1], measured[-1:]
    if not name.startswith(_SELDOM):
        played, size = [row for row in metrics if row["step"] > 0], window(metrics)
        # A window without the figure (no grade could be read in it, say) leaves the nearest value.
        first, last = _values(played[:size], name) or first, _values(played[-size:], name) or last
    return sum(first) / len(first), sum(last) / len(last)


def _summary(metrics: Sequence[Record]) -> dict[str, Any]:
    """{"window": steps, "metrics": {name: [first, last]}} of the figures that tell most."""
    found = {name: ends(metrics, name) for name in _main_metrics(metrics)}
    return {"window": window(metrics), "metrics": {name: list(pair) for name, pair in found.items() if pair}}


def _main_metrics(metrics: Sequence[Record]) -> list[str]:
    known = {key: None for row in metrics for key, value in row.items() if _is_number(value)}
    reward = [name for name in ("game/V", "payoff/solver/reward") if name in known][:1]
    rest = [name for name in ("reward/raw", "game/V_Q", "game/valid_share", "quality/parse_rate") if name in known]
    return [*reward, *rest, *(name for name in known if name.startswith(("kl/", "eval/", "nll/")))]


def _values(rows: Sequence[Record], name: str) -> list[float]:
    return [float(row[name]) for row in rows if _is_number(row.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
