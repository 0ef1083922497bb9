"""Which of a prompt's instructions a response follows, strictly and loosely."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from sparring.verify.ifeval.instructions import CHECKS, RELATIONS

_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number from 0", lambda value: type(value) is int and value >= 0),
    "str": ("text", lambda value: isinstance(value, str) and bool(value.strip())),
    "Sequence[str]": (
        "a list of texts",
        lambda value: isinstance(value, list | tuple) and bool(value) and all(isinstance(v, str) for v in value),
    ),
}
_PATTERNS = ("keyword", "keywords", "forbidden_words", "section_spliter", "postscript_marker")
"""Arguments that the checks use as regular expressions."""


@dataclass(frozen=True)
class Instructions:
    """A prompt's instructions: (IFEval's name, arguments), checked."""

    pairs: tuple[tuple[str, Mapping[str, Any]], ...]

    @classmethod
    def read(cls, names: Any, arguments: Any, where: str) -> Self:
        """From a row's `instruction_id_list` and `kwargs`; arguments that are null are left out.

        Raises:
            ValueError: naming the row, the instruction and the argument.
        """
        if not isinstance(names, list | tuple) or not names:
            raise ValueError(f"{where}: its instruction_id_list must be a list of instructions, not {names!r}")
        if not isinstance(arguments, list | tuple) or len(arguments) != len(names):
            raise ValueError(f"{where}: its kwargs must be a list with one object for each of its instructions")
        return cls(tuple(_checked(name, given, where) for name, given in zip(names, arguments, strict=True)))

    @property
    def names(self) -> tuple[str, ...]:
        """IFEval's names."""
        return tuple(name for name, _ in self.pairs)


def follow(instructions: Instructions, response: str) -> list[bool]:
    """Whether each instruction is followed, strictly; an empty response follows none."""
    filled = bool(response.strip())
    return [filled and CHECKS[name](response, **arguments) for name, arguments in instructions.pairs]


def follow_loosely(instructions: Instructions, response: str) -> list[bool]:
    """Whether each is followed by the response, or by it without its first line, its last, both, or its asterisks."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    variants = [follow(instructions, text) for kept in cut for text in (kept, kept.replace("*", ""))]
    return [any(followed) for followed in zip(*variants, strict=True)]


def _checked(name: Any, arguments: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    if name not in CHECKS:
        near = difflib.get_close_matches(str(name), CHECKS, n=1)
        raise ValueError(f"{where}: unknown instruction {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: the kwargs of {name} must be an object, not {arguments!r}")  # noqa: TRY004 - a row
    given = {key: value for key, value in arguments.items() if value is not None}
    wanted = list(inspect.signature(CHECKS[name]).parameters.values())[1:]
    known = {parameter.name for parameter in wanted}
    if set(given) != known:
        raise ValueError(
            f"{where}: {name} takes the arguments {', '.join(sorted(known)) or 'none'}, but the row gives "
            f"{', '.join(sorted(given)) or 'none'}"
        )
    for parameter in wanted:
        _require(parameter.name, parameter.annotation, given[parameter.name], f"{where}: {name}")
    if name == "length_constraints:nth_paragraph_first_word" and given["nth_paragraph"] < 1:
        raise ValueError(f"{where}: {name}: nth_paragraph counts from 1, not {given['nth_paragraph']}")
    return name, given


def _require(name: str, annotation: str, value: Any, where: str) -> None:
    kind, fits = _KINDS[annotation]
    if not fits(value):
        raise ValueError(f"{where}: its {name} must be {kind}, not {value!r}")
    if name.endswith("relation") and value not in RELATIONS:
        raise ValueError(f"{where}: its {name} must be {' or '.join(map(repr, RELATIONS))}, not {value!r}")
    if name in _PATTERNS:
        for pattern in [value] if isinstance(value, str) else value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{where}: its {name} {pattern!r} is no regular expression: {error}") from error
