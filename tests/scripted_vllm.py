"""A server on loopback that answers as vLLM does, or by a script. What it is asked is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from scripted_http import Answering, Listening

Reply = Callable[["Handler", Any], None]
MAX_ROWS = 4


class Handler(Answering):
    """Answers by the server's script for the path, once that is used up as vLLM would."""

    server: ScriptedVllm

    def answer(self, request: Any) -> None:
        path = urlsplit(self.path).path
        with self.server.lock:
            self.server.seen.append((path, request))
            self.server.keys.append(self.headers.get("Authorization"))
            script = self.server.scripts.get(path)
            reply = script.popleft() if script else self.server.always.get(path, usual)
        reply(self, request)


class ScriptedVllm(Listening):
    """On a free port, or on a given one."""

    def __init__(self, root: str = "org/model", *, port: int = 0, lora: bool = True, device: str = "cuda") -> None:
        self.root, self.lora, self.device = root, lora, device
        self.chunked = False
        self.logprobs_mode = "processed_logprobs"
        self.label, self.adapters = "default", set[str]()
        self.weights = root
        self.scripts: dict[str, deque[Reply]] = {}
        self.always: dict[str, Reply] = {}
        self.seen: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []
        self.writing = self.most_writing = 0
        super().__init__(Handler, port)

    def script(self, path: str, *replies: Reply) -> None:
        """What the next requests to a path are answered with."""
        self.scripts[path] = deque(replies)

    def asked(self, path: str) -> list[Any]:
        """The bodies of the requests to a path."""
        return [body for at, body in self.seen if at == path]

    def restart(self) -> None:
        """As a process started anew would be."""
        self.label, self.weights = "default", self.root
        self.adapters.clear()


def usual(handler: Handler, body: Any) -> None:
    """What vLLM answers."""
    server, path = handler.server, urlsplit(handler.path).path
    answers: dict[str, Callable[[], Any]] = {
        "/health": lambda: b"",
        "/version": lambda: {"version": "0.32.0"},
        "/v1/models": lambda: {"data": models(server)},
        "/server_info": lambda: {"vllm_config": settings(server)},
        "/weight_info": lambda: {"weight_version": server.label},
        "/get_world_size": lambda: {"world_size": 2},
        "/update_weight_version": lambda: relabel(server, body),
        "/collective_rpc": lambda: reload(server, body),
        "/reset_prefix_cache": lambda: {"success": True},
        "/v1/load_lora_adapter": lambda: server.adapters.add(body["lora_name"]) or b"Success",
        "/inference/v1/generate": lambda: completions(server, body),
    }
    if path == "/v1/unload_lora_adapter":
        known = body["lora_name"] in server.adapters
        server.adapters.discard(body["lora_name"])
        handler.send(200 if known else 404, b"Success" if known else {"error": {"message": "cannot be found"}})
    elif path in answers:
        handler.send(200, answers[path]())
    elif path.endswith(("weight_transfer_engine", "weight_update", "update_weights")):
        handler.send(200, {"message": "done"})
    else:
        missing(handler, body)


def models(server: ScriptedVllm) -> list[dict[str, Any]]:
    base = {"id": "served", "root": server.root, "parent": None, "max_model_len": 64}
    return [base, *({"id": name, "root": "there", "parent": "served"} for name in sorted(server.adapters))]


def settings(server: ScriptedVllm) -> dict[str, Any]:
    return {
        "model_config": {"logprobs_mode": server.logprobs_mode},
        "lora_config": {"max_lora_rank": 8} if server.lora else None,
        "scheduler_config": {"max_num_seqs": MAX_ROWS, "enable_chunked_prefill": server.chunked},
        "device_config": {"device_type": server.device},
    }


def relabel(server: ScriptedVllm, body: Any) -> dict[str, Any]:
    server.label = body["new_version"]
    return {"success": True, "new_version": server.label}


def reload(server: ScriptedVllm, body: Any) -> dict[str, Any]:
    server.weights = body["kwargs"]["weights_path"]
    return {"results": [None]}


def completions(server: ScriptedVllm, body: Any) -> dict[str, Any]:
    """Completion j of a prompt is [its sum, its length, j, the stop id or 7]."""
    ids, sampling = body["token_ids"], body["sampling_params"]
    with server.lock:
        server.writing += 1
        server.most_writing = max(server.most_writing, server.writing)
    choices = [choice(server.label, j, [sum(ids), len(ids), j], sampling) for j in range(sampling["n"])]
    with server.lock:
        server.writing -= 1
    # In no order: the index says which is which.
    return {"model": body["model"], "choices": choices[::-1]}


def choice(label: str, index: int, ids: list[int], sampling: Any) -> dict[str, Any]:
    stops = sampling["stop_token_ids"]
    ids = [*ids, stops[0] if stops else 7]
    return {
        "index": index,
        "finish_reason": "stop" if stops else "length",
        "token_ids": ids,
        "logprobs": {"content": [{"token_id": token, "logprob": -0.5 - place} for place, token in enumerate(ids)]},
        "weight_versions": [{"version": label, "start": 0, "end": len(ids)}],
    }


def missing(handler: Handler, body: Any) -> None:
    handler.send(404, {"detail": "Not Found"})


def status(code: int, body: Any = b"no", **headers: str) -> Reply:
    return lambda handler, _: handler.send(code, body, **headers)


def hung(handler: Handler, body: Any) -> None:
    handler.server.released.wait(30)


def drops(handler: Handler, body: Any) -> None:
    handler.connection.close()


def then(*replies: Reply) -> Reply:
    """Several in a row: the last one answers."""

    def reply(handler: Handler, body: Any) -> None:
        for part in replies:
            part(handler, body)

    return reply


def restarts(handler: Handler, body: Any) -> None:
    handler.server.restart()
    drops(handler, body)
