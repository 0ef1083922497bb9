"""What a judge is shown: messages with the placeholders {instruction}, {output_1} and {output_2}.

A template's file is one user message, or several between AlpacaEval's marks: <|im_start|>system ... <|im_end|>.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from sparring import prompts
from sparring.evaluation.judges.base import JudgeError, Pair
from sparring.types import Message

SETTING = "--judge-prompt"
SHIPPED = ("weighted", "ranked")

ALPACA_EVAL = {
    "alpaca_eval_clf": "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
    "alpaca_eval": "alpaca_eval_gpt4/alpaca_eval.txt",
}
"""AlpacaEval's own templates by name, read from the installed package: AlpacaEval 2's judge, to be read by the style
weighted, and AlpacaEval 1's, by ranked."""

_PLACEHOLDER = re.compile(r"\{(instruction|output_1|output_2)\}")
_OPEN, _CLOSE = "<|im_start|>", "<|im_end|>"
_MESSAGE = re.compile(rf"{re.escape(_OPEN)}(system|user|assistant)[ \t]*\n(.*?){re.escape(_CLOSE)}\s*", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """Messages with placeholders, as (role, text)."""

    messages: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str, source: str) -> Template:
        """A template's text; source names it in errors.

        Raises:
            JudgeError: a placeholder is missing, or marks don't pair up.
        """
        text = text.strip()
        messages = (("user", text),)
        if text.startswith(_OPEN):
            messages = tuple((role, content.strip()) for role, content in _MESSAGE.findall(text))
            if _MESSAGE.sub("", text):
                raise JudgeError(f"{SETTING}: {source}: each message reads {_OPEN}ROLE, a new line, text, {_CLOSE}")
        there = {name for _, content in messages for name in _PLACEHOLDER.findall(content)}
        missing = [f"{{{name}}}" for name in ("instruction", "output_1", "output_2") if name not in there]
        if missing:
            raise JudgeError(f"{SETTING}: {source} has no placeholder {', '.join(missing)}")
        return cls(messages)

    @property
    def digest(self) -> str:
        """Names the template's content."""
        return sha256(json.dumps(self.messages).encode()).hexdigest()

    def fill(self, pair: Pair) -> list[Message]:
        """The messages for a pair. What stands in its texts is never taken for a placeholder or a mark."""
        fields = {"instruction": pair.instruction, "output_1": pair.first, "output_2": pair.second}
        return [
            {"role": role, "content": _PLACEHOLDER.sub(lambda found: fields[found[1]], text)}
            for role, text in self.messages
        ]


def open_template(name: str) -> Template:
    """A shipped template (weighted, ranked), one of AlpacaEval's (alpaca_eval_clf, alpaca_eval), or a file's.

    Raises:
        JudgeError: the template is broken, or AlpacaEval is not installed.
        ValueError: the file can't be read.
    """
    if name in SHIPPED:
        file = files("sparring.evaluation.judges").joinpath(f"prompts/{name}.txt")
        return Template.parse(file.read_text(encoding="utf-8"), name)
    path = str(_alpaca_eval(name)) if name in ALPACA_EVAL else name
    return Template.parse(prompts.from_file(path, SETTING), path)


def _alpaca_eval(name: str) -> Path:
    """Where the installed package has a template. The package itself is not imported."""
    spec = find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        raise JudgeError(
            f"{SETTING}: {name} is read from the package alpaca_eval, which is not installed: "
            f"pip install --no-deps alpaca_eval, or give the file ({ALPACA_EVAL[name]}) itself"
        )
    return Path(spec.submodule_search_locations[0]) / "evaluators_configs" / ALPACA_EVAL[name]
