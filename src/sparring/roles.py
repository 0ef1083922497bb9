"""Roles: how the one policy speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from sparring.images import Picture
from sparring.lm.base import SamplingParams
from sparring.types import Message, Prompt, Turn


@dataclass(frozen=True)
class Role:
    """One part the policy plays.

    `template` is a Jinja text of the user message ({{ query }}, {{ task }} ...), `system` an optional
    system message. `weight` multiplies the role's loss: 1 for the Solver, α_Ch for the Challenger, 0 for a
    role that is sampled and never trained (graders).
    """

    name: str
    template: str
    sampling: SamplingParams
    weight: float = 1.0
    system: str | None = None

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"role {self.name!r}: weight must be 0 (never trained) or more, not {self.weight}")
        _compiled(self.template)

    def prompt(
        self,
        *,
        parent: Turn | None = None,
        info: Mapping[str, Any] | None = None,
        images: Sequence[Picture] = (),
        **fields: Any,
    ) -> Prompt:
        """Fill the template. Images come before the text.

        Raises:
            ValueError: the template names a field that the game does not give.
        """
        try:
            content = _compiled(self.template).render(**fields)
        except UndefinedError as error:
            raise ValueError(
                f"the prompt of role {self.name!r} uses a field that is not given ({error.message}); "
                f"it may use: {', '.join(sorted(fields)) or 'none'}"
            ) from error
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        shown = [{"type": "image", "image": image} for image in images]
        said = [*shown, {"type": "text", "text": content}] if shown else content
        return Prompt((*messages, {"role": "user", "content": said}), parent, dict(info or {}))


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    # Sandboxed: templates come from users' files. No autoescape: the text goes to a model, not to a browser.
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise ValueError(f"a role's prompt is not a valid template (line {error.lineno}): {error.message}") from error
