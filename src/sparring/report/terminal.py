"""Queries with their answers on a terminal (`sparring samples`).

Model text is text: nothing in it is read as markup, and what a terminal would obey is shown as its escape.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.report.samples import Exchange, Found, Sample

LONGEST, LONGEST_REPLY = 600, 240  # characters, where texts are not asked for in full
_SEEN = ("L", "M", "N", "P", "S", "Zs")  # Unicode: letters, marks, numbers, punctuation, symbols, spaces


def visible(text: str) -> str:
    r"""The text with every character that is not plainly shown as its escape; line ends and tabs stay.

    >>> visible("red\x1b[31m \u202eleft")
    'red\\x1b[31m \\u202eleft'
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c).startswith(_SEEN) else _escape(c) for c in text)


def draw(found: Found, console: Console, *, full: bool) -> None:
    """Print what was found, by step.

    full: texts uncut and thoughts unfolded.
    """
    step = None
    for exchange in found.exchanges:
        if exchange.step != step:
            step = exchange.step
            console.rule(Text(f"step {step}", style="bold"), align="left")
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in _rows(exchange, full):
            table.add_row(label, text)
        console.print(table)
        console.print()


def _rows(exchange: Exchange, full: bool) -> Iterator[tuple[Text, Text]]:
    if exchange.query is None:
        asked = "" if full else exchange.asked
        yield _label("question" if asked else "prompt", 0, "bold"), Text(_cut(asked or exchange.prompt, full))
    else:
        yield from _turn(exchange.query, exchange.query.role, 0, full)
    for picture in exchange.pictures:
        yield _label("picture", 0, "green"), Text(visible(picture), style="green")
    if exchange.about:
        yield Text(), Text(_facts(exchange.about), style="dim")
    for name, text in exchange.data.items():
        yield _label(name, 0, "green"), Text(_cut(text, full), style="green")
    for number, answer in enumerate(exchange.answers, 1):
        yield from _turn(answer, f"{answer.role} {number}", 1, full)
    if not exchange.answers:
        reason = f" ({exchange.problem})" if exchange.problem else ""
        yield Text(), Text(_cut(f"no answers: the query was not put to the Solver{reason}", full), style="dim")


def _turn(turn: Sample, label: str, depth: int, full: bool) -> Iterator[tuple[Text, Text]]:
    """A turn's text, what it was paid, and the replies to it below."""
    marked = _label(label, depth, "bold")
    if turn.wanted:
        marked = Text("▸ ", style="bold yellow") + marked
    if turn.thought and full:
        yield _label("thought", depth, "dim"), Text(visible(turn.thought), style="dim")
    body = Text(_cut(turn.asked or turn.text, full, LONGEST if depth < 2 else LONGEST_REPLY))
    yield marked, body if body.plain.strip() else Text("nothing said", style="dim italic")
    if turn.asked and full:
        yield _label("as written", depth, "dim"), Text(visible(turn.text), style="dim")
    if paid := _paid(turn, full):
        yield Text(), paid
    for reply in turn.replies:
        yield from _turn(reply, reply.role, depth + 1, full)


def _paid(turn: Sample, full: bool) -> Text:
    """The payoff by part, the advantage and what else is known, in a line."""
    line, said = Text(), []
    if turn.payoff is not None:
        parts = " + ".join(f"{visible(name)} {_number(value)}" for name, value in turn.parts.items())
        line.append(f"payoff {_number(turn.payoff)}", style="cyan")
        said += [f"= {parts}"] if parts else []
    elif not turn.trained:
        said.append("not paid")
    if turn.advantage is not None:
        said.append(f"· advantage {turn.advantage:+.3g}".replace("-", "−"))
    if turn.tokens is not None:
        said.append(f"· {turn.tokens} tokens")
    if turn.finish not in ("", "stop"):
        said.append("· cut off" if turn.finish == "length" else f"· {visible(turn.finish)}")
    if turn.thought and not full:
        said.append(f"· thought, {len(turn.thought)} characters")
    if turn.payoff is not None and not turn.trained:
        said.append("· not trained")
    if turn.facts:
        said.append(f"· {_facts(turn.facts)}")
    return line.append(" " + " ".join(said) if line and said else " ".join(said).removeprefix("· "), style="dim")


def _label(text: str, depth: int, style: str) -> Text:
    return Text("  " * depth + " ".join(visible(text).split()), style=style)


def _facts(facts: Mapping[str, str]) -> str:
    return _cut(", ".join(f"{name} {text}" for name, text in facts.items()), False, LONGEST_REPLY)


def _cut(text: str, full: bool, longest: int = LONGEST) -> str:
    left = len(text) - longest
    return visible(text if full or left <= 0 else f"{text[:longest]} … ({left} more characters)")


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:z.3g}".replace("-", "−")


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
