"""A chat-completions server on loopback that answers by a script, and keeps what it was asked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from scripted_http import Answering, Listening

Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(Answering):
    """Answers chat completions by the server's script; once that is used up, by its `usual`."""

    server: ChatServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def answer(self, request: Any) -> None:
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers)))
            self.server.requests.append(request)
            reply = self.server.script.pop(0) if self.server.script else self.server.usual
        reply(self, request)


class ChatServer(Listening):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        self.usual: Reply = prefers_more_words
        self.script: list[Reply] = []
        self.requests: list[dict[str, Any]] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        super().__init__(Handler)

    def asked(self) -> list[str]:
        """The user messages, in the order they came."""
        return [request["messages"][-1]["content"] for request in self.requests]


def weighted(**probabilities: float) -> dict[str, Any]:
    """A completion whose one token had these probabilities; 0 is -inf, which JSON has no number for."""
    tokens = [{"token": name, "logprob": math.log(p) if p else -9999.0} for name, p in probabilities.items()]
    text = max(probabilities, key=lambda name: probabilities[name])
    return completion(text, {"content": [{"token": text, "logprob": 0.0, "top_logprobs": tokens}]})


def completion(text: str | None, logprobs: Any = None) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logprobs}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}


def prefers_more_words(handler: Handler, request: dict[str, Any]) -> None:
    """p(M) is the second answer's share of both answers' words."""
    first, second = (len(words.split()) for words in answers_of(request))
    handler.send(200, weighted(M=second / (first + second), m=first / (first + second), x=0.0))


def answers_of(request: dict[str, Any]) -> list[str]:
    """The two answers in a request by the shipped template."""
    return re.findall(r"<answer of=\S+>\n(.*?)\n</answer>", request["messages"][-1]["content"], re.DOTALL)


def status(code: int, body: Any = b"no", **headers: str) -> Reply:
    return lambda handler, request: handler.send(code, body, **headers)


def answers(body: Any) -> Reply:
    return status(200, body)


def slow(handler: Handler, request: dict[str, Any]) -> None:
    """Nothing until the server is released."""
    handler.server.released.wait(60)
    handler.server.usual(handler, request)


def drops(handler: Handler, request: dict[str, Any]) -> None:
    handler.connection.close()
