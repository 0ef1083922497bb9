"""What the scripted servers of the tests share: a server on loopback in a thread of its own, and plain answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "NO_PROXY", "no_proxy")


class Answering(BaseHTTPRequestHandler):
    """Answers each request as a subclass's `answer` says; sends bytes, or anything else as JSON."""

    def answer(self, request: Any) -> None:
        """request: its JSON; None where it has none, as a GET has."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(json.loads(data) if data else None)

    def send(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client has gone, as some tests want
            pass

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
        pass


class Listening(ThreadingHTTPServer):
    """On a port, free where none is given, until `stop`. `released` lets go of those who wait in an answer."""

    def __init__(self, handler: type[Answering], port: int = 0) -> None:
        self.daemon_threads = True
        self.lock, self.released = threading.Lock(), threading.Event()
        super().__init__(("127.0.0.1", port), handler)
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
