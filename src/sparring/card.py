"""A model's card: README.md in its folder, telling every stage it came through, fit to be published as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sparring.files import write_json_atomic, write_text_atomic
from sparring.shipped import is_shipped

Stage = Mapping[str, Any]

_SHARES = ("game/valid_share", "quality/parse_rate", "eval/")
_NAMES = {
    "game/V": "V, mean reward",
    "payoff/solver/reward": "mean reward",
    "reward/raw": "raw reward",
    "game/V_Q": "V_Q, mean quality",
    "game/valid_share": "valid queries",
    "quality/parse_rate": "grades read",
    "nll/train": "NLL, nats a token",
    "nll/held_out": "held-out NLL, nats a token",
}
_SECRET = re.compile(
    r"(.*[_-])?(keys?|tokens?|secrets?|passwords?|passwd|pw|credentials?|auth|authorization|bearer|cookies?)",
    re.IGNORECASE,
)
_HOMES = {"home": 2, "Users": 2, "root": 1}  # the parts that say whose folder it is


def write_model_card(model_folder: Path, lineage: Mapping[str, Any]) -> None:
    """Write README.md and a copy of lineage.json into an exported model's folder. Asks no hub.

    Both are fit to be published: local paths are cut to their last two parts, and what a setting's name says is secret
    is left out. The card's header has the base model and the data set where they are hub ids.
    """
    from huggingface_hub import ModelCard, ModelCardData

    record = published(lineage)
    stages = record["stages"]
    adapter = _adapter(model_folder)
    sources = [_setting(stage, name) for stage in stages for name in ("game.prompts", "data.path")]
    data_sets = [name for source in sources if (name := _hub_id(source)) and "/" in name]
    recipes = [str(stage["recipe"]) for stage in stages if stage.get("recipe")]
    start = str(stages[0].get("start"))
    data = ModelCardData(
        base_model=_hub_id(adapter.get("base_model_name_or_path")) or _hub_id(start),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(["sparring", "self-play", *recipes])),
        datasets=list(dict.fromkeys(data_sets)) or None,
    )
    text = (
        _environment()
        .get_template("model_card.md")
        .render(
            title=f"{_last_part(start)} after {', '.join(recipes)}",
            adapter=bool(adapter),
            stages=[_told(stage) for stage in stages],
        )
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    write_text_atomic(model_folder / "README.md", str(card))
    write_json_atomic(model_folder / "lineage.json", record)


def published(value: Any) -> Any:
    """A copy of plain data that tells nobody's home folder, login or key.

    >>> published({"start": "/home/ann/runs/grpo-1", "api_key": "k", "url": "http://ann:pw@host:8000/v1?t=1"})
    {'start': '…/runs/grpo-1', 'api_key': '(left out)', 'url': 'http://host:8000/v1'}
    """
    if isinstance(value, Mapping):
        return {
            name: "(left out)" if inner is not None and _is_secret(str(name), inner) else published(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [published(inner) for inner in value]
    return _shortened(value) if isinstance(value, str) else value


def _is_secret(name: str, value: Any) -> bool:
    """By its name; counts of tokens (max_tokens: 512) are numbers and no secret."""
    counted = isinstance(value, int | float) and name.lower().endswith(("token", "tokens", "key", "keys"))
    return bool(_SECRET.fullmatch(name)) and not counted


def _shortened(text: str) -> str:
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        parts = urlsplit(text)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    path = _absolute(text)
    if path is None:
        return text
    anchor, *inner = path.parts
    own = inner[_HOMES.get(inner[0], 0) :] if inner and anchor[0] != "~" else inner
    cut = anchor[0] == "~" or own != inner or len(own) > 2
    return "/".join(["…", *own[-2:]]) if cut else text


def _absolute(text: str) -> PurePath | None:
    if "\n" in text:
        return None
    if text.startswith(("/", "~")):
        return PurePosixPath(text)
    return PureWindowsPath(text) if re.match(r"[A-Za-z]:[\\/]|\\\\", text) else None


def _hub_id(name: Any) -> str | None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not isinstance(name, str) or is_shipped(name) or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _adapter(model_folder: Path) -> dict[str, Any]:
    """PEFT's settings where the folder holds an adapter alone, else {}."""
    file = model_folder / "adapter_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _last_part(start: str) -> str:
    return f"The {start} model" if is_shipped(start) else start.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _told(stage: Stage) -> dict[str, Any]:
    """What the template says of a stage."""
    known = stage.get("results") or {}
    return {
        "facts": dict(facts(stage)),
        "results": results(stage),
        "window": known.get("window", 1),
        "versions": ", ".join(f"{name} {number}" for name, number in stage.get("versions", {}).items()),
        "settings": _fenced(stage["settings"]) if "settings" in stage else "",
    }


def _fenced(settings: Any) -> str:
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # noqa: S701 - Markdown; `cell` escapes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    return environment


def _cell(text: str) -> str:
    """Text as one cell of a Markdown table."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*|\[\]])", r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;")


# --- in words ----------------------------------------------------------------------------------------


def facts(stage: Stage) -> list[tuple[str, str]]:
    """What a stage was, as (name, text), for a card or a page; what its record lacks is left out."""
    return [(name, text) for name, text in _facts(stage) if text]


def _facts(stage: Stage) -> Iterator[tuple[str, str]]:
    def read(name: str) -> str:
        return _text(_setting(stage, name))

    yield "recipe", " · ".join(str(stage[key]) for key in ("recipe", "preset") if stage.get(key))
    yield "game", ", ".join(filter(None, [_text(stage.get("game")), read("game.domain")]))
    yield "start", _text(stage.get("start"))
    reference = _text(stage.get("reference"))
    yield "reference", "its start" if reference and reference == stage.get("start") else reference
    yield "reward", _reward(stage)
    yield "steps", _steps(stage)
    yield "queries × answers", _with("N ", read("game.n_queries"), f" × G {read('game.n_answers')}")
    yield "β", _with("", read("learner.beta"), f", KL {read('learner.kl')}")
    yield "learning rate", _with("", read("learner.lr"), f", {read('learner.schedule')}")
    yield "tuning", _tuning(stage)
    yield "temperature", read("game.solver.temperature")
    yield "seed", _text(stage.get("seed"))
    # Last what not every game has: stages side by side stay in line.
    kind = _setting(stage, "game.kind")
    yield "α", "" if kind == "grpo" else read("game.alpha")
    if kind == "lsp":
        source, scale, weight = (read(f"game.quality.{name}") for name in ("source", "scale", "weight"))
        yield "quality", f"by the {source}, as {scale}, weight {weight}"
    yield "prompts", read("game.prompts")
    yield "data", read("data.path")


def results(stage: Stage) -> list[tuple[str, str]]:
    """What came of a stage, as (name, text); [] where it isn't known (an older record, a run that goes on)."""
    known = stage.get("results")
    if not isinstance(known, Mapping):
        return []
    lines = []
    for name, (first, last) in known["metrics"].items():
        show = "{:.1%}" if name.startswith(_SHARES) else "{:.3g}"
        lines.append((_metric_name(name), f"{show.format(first)} → {show.format(last)}"))
    evaluation = known.get("evaluation")
    if evaluation is not None:
        overall = evaluation["overall"]
        low, high = overall["ci95"]
        rate = f"{overall['win_rate']:.1%} (95 % interval {low:.1%} to {high:.1%}, n = {overall['n']})"
        lines.append(("win rate against its start", rate))
        for name, row in (evaluation["subsets"] or {"overall": overall}).items():
            lines.append((f"final accuracy, {name}", f"{row['base_accuracy']:.1%} → {row['accuracy']:.1%}"))
    return lines


def _setting(stage: Stage, name: str) -> Any:
    """A stage's setting by its dotted name; None where the record lacks it."""
    value: Any = stage.get("settings")
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _reward(stage: Stage) -> str:
    reward = _setting(stage, "game.reward")
    if not isinstance(reward, Mapping):
        return ""
    name = reward.get("function") or reward.get("model")
    if name is None:
        return f"the {_setting(stage, 'game.domain')} domain's verifier"
    scale = reward.get("scale", "raw")
    return f"{name}" + ("" if scale == "raw" else f", {scale}")


def _steps(stage: Stage) -> str:
    planned, taken = stage.get("steps"), stage.get("taken_at_step")
    if taken is not None:
        return f"{taken} of {planned}, from a checkpoint"
    done = stage["results"]["steps"] if isinstance(stage.get("results"), Mapping) else planned
    return _text(planned) if done == planned else f"{done} of {planned}"


def _tuning(stage: Stage) -> str:
    tuning = _setting(stage, "model.tuning")
    if tuning in (None, "full"):
        return _text(tuning)
    return f"{tuning}, rank {_setting(stage, 'model.lora.rank')}, alpha {_text(_setting(stage, 'model.lora.alpha'))}"


def _metric_name(name: str) -> str:
    group, _, rest = name.partition("/")
    groups = {"kl": f"KL, {rest}", "eval": f"held-out accuracy, {rest}"}
    return _NAMES.get(name) or groups[group]


def _with(before: str, text: str, after: str) -> str:
    return f"{before}{text}{after}" if text else ""


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
