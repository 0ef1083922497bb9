"""Role prompts, one text file each (Jinja). A run may replace any of them by a file of its own."""

from importlib.resources import files
from pathlib import Path

from jinja2 import TemplateSyntaxError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import SandboxedEnvironment


def read(name: str) -> str:
    """A shipped prompt by file name, without its ending."""
    return files("sparring.prompts").joinpath(f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def from_file(path: str, setting: str, needs: tuple[str, ...] = ()) -> str:
    """A user's prompt file.

    Raises:
        ValueError: the file can't be read, is empty, or lacks a placeholder that the role can't do without.
    """
    try:
        text = Path(path).read_text(encoding="utf-8").rstrip("\n")
    except OSError as error:
        raise ValueError(f"{setting}: can't read the prompt file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting}: the prompt file {path} is no UTF-8 text: {error}") from error
    if not text.strip():
        raise ValueError(f"{setting}: the prompt file {path} is empty")
    if not needs:
        return text
    try:
        used = find_undeclared_variables(SandboxedEnvironment().parse(text))
    except TemplateSyntaxError as error:
        raise ValueError(f"{setting}: {path}, line {error.lineno} is no valid template: {error.message}") from error
    missing = [name for name in needs if name not in used]
    if missing:
        shown = ", ".join("{{ " + name + " }}" for name in missing)
        raise ValueError(f"{setting}: the prompt file {path} has no placeholder {shown}")
    return text
