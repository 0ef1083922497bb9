"""Paths in a configuration: made absolute before a run starts, so that it resumes from any working directory."""

from __future__ import annotations

from pathlib import Path

from sparring.data_records import matching
from sparring.settings import RoleConfig, RunConfig
from sparring.shipped import is_shipped


def anchored(config: RunConfig) -> RunConfig:
    """The same configuration with every local path absolute. Hub ids, shipped models and module targets stay."""
    model, game = config.model, config.game
    model = model.model_copy(
        update={
            "path": _folder(model.path),
            "reference": _folder(model.reference),
            "remote_code": _folder(model.remote_code),
            "chat_template": _file(model.chat_template),
        }
    )
    game = game.model_copy(
        update={
            "custom": _target(game.custom),
            "reward": game.reward.model_copy(
                update={"function": _target(game.reward.function), "model": _folder(game.reward.model)}
            ),
            "prompts": _file(_folder(game.prompts)),
            "challenge": game.challenge.model_copy(update={"tasks": _file(game.challenge.tasks)}),
            **{name: _role(getattr(game, name)) for name in ("challenger", "solver", "grader", "reader")},
        }
    )
    exchange = config.rollout.folder
    rollout = config.rollout.model_copy(update={"folder": exchange and str(Path(exchange).absolute())})
    return config.model_copy(update={"model": model, "game": game, "rollout": rollout})


def _role(role: RoleConfig) -> RoleConfig:
    return role.model_copy(update={"prompt": _file(role.prompt)})


def _folder(path: str | None) -> str | None:
    return path if path is None or is_shipped(path) or not Path(path).is_dir() else str(Path(path).absolute())


def _file(path: str | None) -> str | None:
    """A file, or a pattern that names some."""
    there = path is not None and (Path(path).is_file() or matching(path))
    return str(Path(path).absolute()) if path is not None and there else path


def _target(target: str | None) -> str | None:
    source, _, name = (target or "").rpartition(":")
    return f"{Path(source).absolute()}:{name}" if source.endswith(".py") else target
