"""Conversations out of the rows of a data set, in whichever of the usual forms a row has.

messages       [{"role": "user", "content": …}, …]: OpenAI's form, content a text or a list of parts
conversations  [{"from": "human", "value": …}, …]: ShareGPT's, with `system` and `images` beside it
prompt and completion: texts or messages (the columns' names are settings)
instruction, input, output, with `system` and `history`: Alpaca's
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.data_images import MARKER
from sparring.settings.sft import SFTDataConfig
from sparring.types import Message

OpenImage = Callable[[Any], Any]
"""An image as a data set has it (path, bytes, where these lie, PIL) → what the renderer takes."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
}


class BadRowError(ValueError):
    """A row that can't be learned from; the message says why."""


def read_conversation(
    record: Any, settings: SFTDataConfig, open_image: OpenImage | None, folder: Path | None = None
) -> tuple[Message, ...]:
    """The messages of one row, the assistant's among them.

    Args:
        open_image: None where the model reads text only.
        folder: what relative paths of images count from.

    Raises:
        BadRowError: the row has no form that is known, or nothing to learn from.
    """
    if not isinstance(record, dict):
        raise BadRowError("it is no object with columns")
    # Where rows of several forms make one table, the columns of the others are null.
    given = {name: value for name, value in record.items() if value is not None}
    messages = [_message(message) for message in _turns(given, settings)]
    messages = _with_system(messages, given)
    messages = _with_images(messages, _images(given), open_image, folder)
    _require_answers(messages)
    return tuple(messages)


def _turns(given: Mapping[str, Any], settings: SFTDataConfig) -> list[Any]:
    prompt, completion = settings.prompt, settings.completion
    if "messages" in given:
        return _list(given, "messages")
    if "conversations" in given:
        return _list(given, "conversations")
    if prompt in given and completion in given:
        return [*_said("user", given, prompt), *_said("assistant", given, completion)]
    if "instruction" in given and "output" in given:
        return [*_history(given), *_instruction(given), *_said("assistant", given, "output")]
    raise BadRowError(
        f"it has neither messages, nor conversations, nor {prompt} and {completion}, nor instruction and output; it "
        f"has: {', '.join(map(str, given)) or 'nothing'}"
    )


def _list(given: Mapping[str, Any], name: str) -> list[Any]:
    value = given[name]
    if not isinstance(value, list) or not value:
        raise BadRowError(f"its {name} must be a list of messages")
    return value


def _said(role: str, given: Mapping[str, Any], name: str) -> list[Any]:
    """A column as messages: a text is one of this role."""
    value = given[name]
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _list(given, name)


def _instruction(given: Mapping[str, Any]) -> list[Any]:
    asked, more = given["instruction"], given.get("input", "")
    if not isinstance(asked, str) or not isinstance(more, str):
        raise BadRowError("its instruction and input must be text")
    return [{"role": "user", "content": f"{asked}\n\n{more.strip()}" if more.strip() else asked}]


def _history(given: Mapping[str, Any]) -> Iterator[Any]:
    history = given.get("history", [])
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRowError("its history must be a list of pairs of question and answer")
        yield {"role": "user", "content": pair[0]}
        yield {"role": "assistant", "content": pair[1]}


def _message(value: Any) -> dict[str, Any]:
    """A message in the chat form, whether it was {"role", "content"} or {"from", "value"}."""
    if not isinstance(value, dict):
        raise BadRowError("a message is no object")
    # A table gives every message every key, and chat templates ask whether a key is there.
    message = {name: inner for name, inner in value.items() if inner is not None}
    if "from" in message:
        speaker = message.pop("from")
        if not isinstance(speaker, str) or speaker not in _SPEAKERS:
            raise BadRowError(f"a message is from {speaker!r}, which is none of {', '.join(_SPEAKERS)}")
        message = {"role": _SPEAKERS[speaker], "content": message.pop("value", ""), **message}
    if not isinstance(message.get("role"), str):
        raise BadRowError("a message has no role")
    message.setdefault("content", "")
    if not isinstance(message["content"], str | list):
        raise BadRowError(f"the content of a message must be text or a list of parts, not {message['content']!r:.60}")
    return message


def _with_system(messages: list[dict[str, Any]], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    system = given.get("system", "")
    if not isinstance(system, str):
        raise BadRowError("its system must be text")
    if not system.strip() or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _require_answers(messages: Sequence[Message]) -> None:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise BadRowError("it has no message of the assistant: there is nothing to learn from")
    if messages[0]["role"] == "assistant":
        raise BadRowError("it begins with the assistant, who was asked nothing")
    for message in messages:
        if message["role"] in {"user", "assistant"} and not _has_content(message):
            raise BadRowError(f"a message of the {message['role']} is empty")


def _has_content(message: Message) -> bool:
    content: Any = message["content"]
    return bool(content.strip() if isinstance(content, str) else content) or "tool_calls" in message


# --- images ------------------------------------------------------------------------------------------


def _images(given: Mapping[str, Any]) -> list[Any]:
    value = given.get("images", given.get("image", []))
    return value if isinstance(value, list) else [value]


def _with_images(
    messages: list[dict[str, Any]], images: list[Any], open_image: OpenImage | None, folder: Path | None
) -> list[dict[str, Any]]:
    """Contents as plain text, or where there are images as lists of parts with the images opened."""
    parts = [list(_parts(message["content"], marked=bool(images))) for message in messages]
    waiting = [part for inner in parts for part in inner if part == {"type": "image"}]
    if images and not waiting:
        # Data without markers: what is asked first is about the images.
        first = next((at for at, message in enumerate(messages) if message["role"] == "user"), 0)
        parts[first] = [{"type": "image"} for _ in images] + parts[first]
    elif len(waiting) != len(images):
        raise BadRowError(f"its texts have {len(waiting)} places for images, and it has {len(images)} images")
    left = iter(images)
    return [
        {**message, "content": _content(message, inner, left, open_image, folder)}
        for message, inner in zip(messages, parts, strict=True)
    ]


def _parts(content: str | list[Any], *, marked: bool) -> Iterator[dict[str, Any]]:
    """Texts and images in order; an image that the row holds elsewhere is {"type": "image"}."""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            texts = part["text"].split(MARKER) if marked else [part["text"]]
            for at, text in enumerate(texts):
                if at:
                    yield {"type": "image"}
                if text:
                    yield {"type": "text", "text": text}
        elif isinstance(part, dict) and part.get("type") in ("image", "image_url"):
            held = next((part[name] for name in ("image", "image_url", "url", "path") if part.get(name)), None)
            held = held.get("url", held) if isinstance(held, dict) else held
            yield {"type": "image"} if held is None else {"type": "image", "image": held}
        else:
            raise BadRowError(f"a part of a message is neither text nor an image: {part!r:.60}")


def _content(
    message: Mapping[str, Any],
    parts: Sequence[dict[str, Any]],
    left: Iterator[Any],
    open_image: OpenImage | None,
    folder: Path | None,
) -> str | list[dict[str, Any]]:
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    if open_image is None:
        raise BadRowError("it has images, and the model reads text only")
    if message["role"] == "assistant":
        raise BadRowError("an answer has an image in it")
    opened: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "image":
            image = part["image"] if "image" in part else next(left)
            opened.append({"type": "image", "image": _open(image, open_image, folder)})
        else:
            opened.append(part)
    return opened


def _open(image: Any, open_image: OpenImage, folder: Path | None) -> Any:
    """An image of the `datasets` library is {"bytes": …, "path": …}."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        if folder is None:
            raise BadRowError("its image is a path, and a data set of the hub must hold the images themselves")
        image = folder / image.removeprefix("file://")
    try:
        return open_image(image)
    except (ValueError, OSError) as error:
        raise BadRowError(f"an image can't be read: {error}") from error
