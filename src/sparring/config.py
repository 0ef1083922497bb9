"""A run's settings put together: recipe function → YAML file → command-line overrides.

An unknown setting is refused with the nearest name. The resolved configuration, written to the run's folder, repeats
the run.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sparring.settings import RunConfig, Section

Root = TypeVar("Root", bound=Section)
"""The tree of settings: a run's by default, or that of `sparring sft`."""


class ConfigError(ValueError):
    """A setting is unknown or has a value it can't take."""


def resolve(start: Root, file: Path | None = None, overrides: tuple[str, ...] = ()) -> Root:
    """Recipe's configuration, then a YAML file's settings, then `key.key=value` overrides.

    Raises:
        ConfigError: an unknown setting (with the nearest known one), a value out of its range, an unreadable
            file.
    """
    settings, root = start.model_dump(mode="json"), type(start)
    if file is not None:
        _merge(settings, read_yaml(file), str(file), root)
    for override in overrides:
        _merge(settings, _parse_override(override, root), "command line", root)
    return checked(settings, root)


def validated(settings: dict[str, Any]) -> RunConfig:
    """A RunConfig from plain data. Raises ConfigError, see `checked`."""
    return checked(settings, RunConfig)


def checked(settings: dict[str, Any], root: type[Root]) -> Root:
    """A tree of settings from plain data.

    Raises:
        ConfigError: in place of pydantic's own error, one line a problem, each naming its setting; or settings of
            another command.
    """
    supervised = settings.get("recipe") == "sft"
    if supervised == (root is RunConfig):
        right = "sparring sft" if supervised else "sparring train"
        raise ConfigError(f"these are settings of `{right}`: give them to that command (--resume, --config)")
    try:
        return root.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(item, root) for item in error.errors())) from error


def describe(model: type[Section] = RunConfig, prefix: str = "") -> list[tuple[str, str, str]]:
    """Every setting as (dotted name, default, meaning), in order."""
    rows = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            rows += describe(inner, f"{prefix}{name}.")
        else:
            default = info.get_default(call_default_factory=True)  # pyright: ignore[reportCallIssue]
            rows.append((prefix + name, _shown(default), info.description or ""))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a YAML file, not yet checked.

    Raises:
        ConfigError: unreadable, not YAML, or no mapping.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read the configuration {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration {file} is no UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{file} must hold settings (name: value), not a {type(data).__name__}")
    return data


def _parse_override(text: str, root: type[Section]) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"an override reads setting=value (learner.lr=1e-5), not {text!r}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {name} is not YAML: {error}") from error
    if _takes_text(name.strip(), root):
        # A revision such as 1234567 or 12e4567 is a text, whatever YAML sees in it.
        parsed = parsed if parsed is None or isinstance(parsed, str) else value.strip()
    elif isinstance(parsed, str):
        # YAML 1.1 reads 1e-5 as text: a number without a dot.
        with suppress(ValueError):
            parsed = float(parsed)
    return _nested(name.strip(), parsed)


def _nested(name: str, value: Any) -> dict[str, Any]:
    """`a.b` and v → {a: {b: v}}."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def _takes_text(name: str, root: type[Section]) -> bool:
    """Whether a setting is a text (or a text or null)."""
    section: Any = root
    *groups, leaf = name.split(".")
    for group in groups:
        field = section.model_fields.get(group)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, Section)):
            return False
    field = section.model_fields.get(leaf)
    return field is not None and field.annotation in (str, str | None)


def _merge(into: dict[str, Any], new: dict[str, Any], source: str, root: type[Section], prefix: str = "") -> None:
    free = ("game.options", "model.template_kwargs", "game.reward.template_kwargs", "health.rules")
    for key, value in new.items():
        name = f"{prefix}{key}"
        if key not in into and not prefix.startswith(tuple(f"{group}." for group in free)):
            if isinstance(key, str) and "." in key:  # learner.lr: 1e-5 in a file
                _merge(into, _nested(key, value), source, root, prefix)
                continue
            raise ConfigError(f"{source}: there is no setting {name!r}{_nearest(name, root)}")
        if isinstance(into.get(key), dict) and isinstance(value, dict):
            _merge(into[key], value, source, root, f"{name}.")
        elif isinstance(into.get(key), dict) and name not in free:
            raise ConfigError(f"{source}: {name} is a group of settings: give {name}.<setting>")
        else:
            into[key] = value


def _nearest(name: str, root: type[Section]) -> str:
    known = [row[0] for row in describe(root)]
    leaf = name.rpartition(".")[2]
    by_leaf = [row for row in known if row.rpartition(".")[2] == leaf]
    near = by_leaf or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        leaves = {row.rpartition(".")[2]: row for row in known}
        near = [leaves[m] for m in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)]
    listing = "sparring recipes --settings" if root is RunConfig else "sparring sft --settings"
    return f"; did you mean {near[0]!r}?" if near else f"; `{listing}` lists them"


def _problem(item: Any, root: type[Section]) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"there is no setting {name!r}{_nearest(name, root)}"
    if item["type"] == "value_error":
        return f"{name}: {item['ctx']['error']}"
    given = item.get("input")
    return f"{name}: {item['msg']} (given: {given!r})"
