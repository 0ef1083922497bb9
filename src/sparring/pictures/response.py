r"""The form of a response: <description>…</description><think>…</think>\boxed{…}."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.games.perception import description_of, well_formed
from sparring.verify.extract import boxed


@dataclass(frozen=True)
class Response:
    """What was read of a response. `in_form`: the whole text is in the form, nothing before, between or after."""

    description: str | None
    answer: str | None
    in_form: bool


def render_response(description: str, think: str, answer: str) -> str:
    r"""The text of a response.

    >>> render_response("top-left:red-circle", "top-left", "1")
    '<description>top-left:red-circle</description><think>top-left</think>\\boxed{1}'
    """
    return told(description) + render_reply(think, answer)


def told(description: str) -> str:
    """A description in its tags."""
    return f"<description>{description}</description>"


def reader_prompt(question: str, description: str) -> str:
    """What a reader is asked."""
    return f"{question} {told(description)}"


def render_reply(think: str, answer: str) -> str:
    """The text of a reader's reply: a response without a description."""
    return rf"<think>{think}</think>\boxed{{{answer}}}"


def parse_response(text: str) -> Response:
    """Read a response as the game does. Never raises."""
    return Response(description_of(text), boxed(text), well_formed(text))
