"""A SandboxFusion server: requests as it wants them, answers judged by the nonce alone, failures tried again."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sparring.sandbox import Ending, Limits, Program, SandboxError, open_sandbox, remote
from sparring.sandbox.remote import Remote

Answer = tuple[int, Any]
LIMITS = Limits(seconds=5, cpu_seconds=1, memory=512 * 2**20, output=2000)
TESTS = "assert add(1, 2) == 3"


class Server:
    """Answers POST /run_code with what `script` makes of the request; runs the judge itself where it gives None."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests, self.keys = folder, list[dict[str, Any]](), list[str | None]()
        self.script: Callable[[dict[str, Any]], Answer | None] = lambda request: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.keys.append(self.headers["Authorization"])
                outer.requests.append(request)
                answer = None if self.path == "/run_code" else (404, {"detail": "Not Found"})
                status, body = answer or outer.script(request) or (200, outer.ran(request))
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def ran(self, request: dict[str, Any]) -> dict[str, Any]:
        """What SandboxFusion does with a Python program, but for its isolation: for programs of this file only."""
        place = self.folder / str(len(list(self.folder.iterdir())))
        for name, content in request["files"].items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(base64.b64decode(content))
        (place / "main.py").write_text(request["code"])
        command = [sys.executable, str(place / "main.py")]
        done = subprocess.run(command, input=request["stdin"].encode(), capture_output=True, cwd=place)
        result = {"status": "Finished", "execution_time": 0.1, "return_code": done.returncode}
        result |= {"stdout": done.stdout.decode()[: 2**20], "stderr": done.stderr.decode()}
        return {"status": "Failed" if done.returncode else "Success", "message": "", "run_result": result}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def sandbox(server: Server) -> Iterator[Remote]:
    with contextlib.closing(Remote(server.url, workers=4, limits=LIMITS, retries=2, backoff=0.01)) as opened:
        server.requests.clear()
        yield opened


def answer(stdout: str, status: str = "Finished", code: int = 0) -> Answer:
    return 200, {"status": "Success", "message": "", "run_result": {"status": status, "stdout": stdout, "stderr": "e"}}


def test_the_same_judge_judges_there(sandbox: Remote, server: Server) -> None:
    programs = [
        Program("print(input())", stdin="héllo"),
        Program("def add(a, b): return a + b", tests=TESTS, entry_point="add"),
        Program("def add(a, b): return a - b", tests=TESTS, entry_point="add"),
        Program("def add(a, b): return a + b", tests=TESTS),
        Program("import os; os._exit(0)", tests=TESTS, entry_point="add"),
        Program("import os; os.kill(os.getppid(), 9)", tests=TESTS, entry_point="add"),
        Program("b'x' * 2**40", tests=TESTS),
    ]
    outcomes = sandbox.run(programs)
    expected = ["passed", "passed", "failed", "passed", "exited", "exited", "memory"]
    assert [outcome.ending for outcome in outcomes] == expected, outcomes
    assert outcomes[0].stdout == "héllo\n"
    request = server.requests[0]
    assert (request["language"], request["run_timeout"], request["memory_limit_MB"]) == ("python", 15.0, 512)
    assert "héllo" not in str(server.requests)  # all a program is goes by the judge's standard input


@pytest.mark.parametrize(
    ("given", "ending"),
    [
        (answer("up\n\npassed 0\n"), Ending.EXITED),
        (answer("up\n" + "x" * 5000), Ending.OUTPUT),
        (answer("up\n", status="TimeLimitExceeded"), Ending.TIMEOUT),
        (answer("", status="TimeLimitExceeded"), Ending.ERROR),
        (answer("", status="Error"), Ending.ERROR),
        ((200, {"status": "SandboxError", "message": "no cgroup"}), Ending.ERROR),
    ],
)
def test_nothing_but_the_judges_verdict_passes(sandbox: Remote, server: Server, given: Answer, ending: Ending) -> None:
    server.script = lambda request: given
    outcome = sandbox.run([Program("pass")])[0]
    assert outcome.ending is ending
    assert len(outcome.stdout) <= LIMITS.output + 256


@pytest.mark.parametrize(
    "failure", [(503, b"busy"), (429, b"slow down"), (200, {"status": "SandboxError", "message": "overloaded"})]
)
def test_what_fails_in_passing_is_tried_again(sandbox: Remote, server: Server, failure: Answer) -> None:
    failures = [failure, failure]
    server.script = lambda request: failures.pop() if failures else None
    assert sandbox.run([Program("pass")])[0].passed
    assert len(server.requests) == 3


def test_what_goes_on_failing_is_an_error_that_names_the_server(sandbox: Remote, server: Server) -> None:
    server.script = lambda request: (503, b"gone for good")
    with pytest.raises(SandboxError, match=rf"{server.url}.*gone for good.*3 attempts"):
        sandbox.run([Program("pass")] * 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((404, b"{}"), "is it SandboxFusion"),
        ((401, b"who?"), "SPARRING_SANDBOX_API_KEY"),
        ((200, b"no json"), "none of SandboxFusion's"),
        ((200, []), "none of SandboxFusion's"),
        ((200, {}), "none of SandboxFusion's"),
        ((200, {"status": "Success"}), "without run_result"),
    ],
)
def test_another_server_is_refused(sandbox: Remote, server: Server, given: Answer, said: str) -> None:
    server.script = lambda request: given
    with pytest.raises(SandboxError, match=said):
        sandbox.run([Program("pass")])
    assert len(server.requests) == 1


def test_a_server_that_never_answers_is_given_up(
    sandbox: Remote, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "GRACE", -2.45)
    waiting = threading.Event()
    server.script = lambda request: (waiting.wait(5), None)[1]
    with pytest.raises(SandboxError, match="no answer within"):
        sandbox.run([Program("pass")])
    waiting.set()


def test_a_server_that_is_not_there_or_can_run_nothing_is_refused_at_once(server: Server) -> None:
    server.script = lambda request: (200, {"status": "SandboxError", "message": "no cgroup"})
    with pytest.raises(SandboxError, match="no cgroup"):
        Remote(server.url, workers=1, limits=LIMITS, retries=1, backoff=0.01)
    with pytest.raises(SandboxError, match="no connection"):
        Remote("http://127.0.0.1:9", workers=1, limits=LIMITS, retries=1, backoff=0.01)


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARRING_SANDBOX_API_KEY", "k3y")
    open_sandbox(url=server.url).close()
    assert server.keys == ["Bearer k3y"]
    with pytest.raises(ValueError, match="SPARRING_SANDBOX_API_KEY"):
        open_sandbox(url="http://me:k3y@host:1")
    with pytest.raises(ValueError, match="http://host:port"):
        open_sandbox(url="host")


def test_a_closed_sandbox_says_so(sandbox: Remote) -> None:
    sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        sandbox.run([Program("pass")])
