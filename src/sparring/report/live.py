"""The report on loopback while a run trains: `sparring report RUN --live`.

The page is made anew where the run's files changed since; an open one asks for the version and loads itself anew,
keeping its place and filters. Nothing but that page is served, to nobody but who asks for this address by its name.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import html
import ipaddress
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

Say = Callable[[str], None]
Make = Callable[[Sequence[Path]], str]

REST = 5
"""A page that takes a second of a processor is made every five seconds at most: the trainer needs it more."""

_FOLDERS = ("turns", "evaluations")  # beside the files of the run's own folder, what a page is made of
_POLICY = re.compile(r'(<meta http-equiv="Content-Security-Policy" content=")([^"]*)(">)')
_SCRIPT = (Path(__file__).parent / "live.js").read_text(encoding="utf-8")
_SCRIPT_HASH = "'sha256-" + base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode() + "'"
_FAILED = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'">
<title>Sparring report</title>
</head>
<body><main><h1>No page yet</h1><p>{problem}</p><p>It is tried again.</p></main></body>
</html>
"""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(runs: Sequence[Path], *, host: str, port: int, every: float, say: Say) -> None:
    """Serve the page of some runs until Ctrl-C.

    Args:
        port: 0: any that is free.
        every: seconds between two looks of an open page.
        say: told where the page is, and of errors while making it.

    Raises:
        ValueError: a run is no folder, or nothing can be served at this address.
    """
    with open_server(runs, host=host, port=port, every=every, say=say) as server:
        if not _is_loopback(host):
            say(f"warning: whoever reaches {host} can read these runs; there is no password")
        say(f"{server.address}   (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped; `sparring report` writes the page to a file")


def open_server(
    runs: Sequence[Path], *, host: str, port: int, every: float, say: Say, make: Make | None = None
) -> Server:
    """The server, listening; see `serve`.

    make: what makes the page; None: `sparring.report.page.page_html`.
    """
    for run in runs:
        if not run.is_dir():
            raise ValueError(f"{run} is no run folder: there is no such folder")
    if make is None:
        from sparring.report.page import page_html

        make = page_html
    page = LivePage(runs, make, every, say)
    try:
        return Server(page, host, port)
    except OSError as error:
        raise ValueError(_refusal(host, port, error)) from error


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use: give another with --port, or --port 0 for any that is free"
    if error.errno == errno.EACCES:
        return f"port {port} is not for everybody: give one above 1023 with --port, or --port 0 for any that is free"
    return f"--host {host}: nothing can be served there ({error.strerror or error})"


@dataclass
class LivePage:
    """The page of some runs, made anew where their files changed.

    Args:
        make: makes it; whatever it raises is shown, and it is asked again.
    """

    runs: Sequence[Path]
    make: Make
    every: float
    say: Say
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _version: str = ""  # of the page below; empty: it could not be made, and is old at once
    _page: str = ""
    _problem: str | None = None
    _rested: float = 0.0  # until then no open page is told of another version

    def current(self) -> str:
        """The page as of now, with the script that follows the run."""
        with self._lock:  # a page is made once, whoever asks meanwhile
            version = fingerprint(self.runs)  # before it is made: what is written meanwhile makes it old
            if version != self._version:
                self._make(version)
            page = self._page or _FAILED.format(problem=html.escape(self._problem or ""))
            return followed(page, self.news() | {"version": self._version, "every": self.every})

    def news(self) -> dict[str, Any]:
        """What an open page wants to know: the version it should be of, and how the runs stand."""
        now = time.time()
        return {
            "version": self._version if time.monotonic() < self._rested else fingerprint(self.runs),
            "ended": all(map(_has_ended, self.runs)),
            "quiet": round(max(0.0, now - max(_changed(self.runs), default=now))),
            "problem": self._problem,
        }

    def _make(self, version: str) -> None:
        began = time.thread_time()
        try:
            self._page = self.make(self.runs)
        except Exception as error:  # noqa: BLE001 - the next look may find the run whole
            problem = f"{error}" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            if problem != self._problem:
                self.say(f"the page could not be made: {problem}; it is tried again")
            self._version, self._problem = "", problem
        else:
            if self._problem is not None:
                self.say("the page could be made again")
            self._version, self._problem = version, None
        self._rested = time.monotonic() + REST * (time.thread_time() - began)


def fingerprint(runs: Sequence[Path]) -> str:
    """Another one where a file that a page is made of was written, came or went."""
    known = hashlib.sha256()
    for run in runs:
        for name, found in sorted((str(file), found) for file, found in _files(run)):
            known.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return known.hexdigest()[:16]


def _changed(runs: Sequence[Path]) -> Iterator[float]:
    return (found.st_mtime for run in runs for _, found in _files(run))


def _files(run: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The files that a page is made of; not what it leaves behind itself, weights or half-written files."""
    for folder in (run, *(run / name for name in _FOLDERS)):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file() and entry.name[0] != "." and entry.name != "report.html":
                        yield entry.path, entry.stat()
        except OSError:  # not there yet, or gone while we look
            continue


def _has_ended(run: Path) -> bool:
    try:
        return "results" in json.loads((run / "lineage.json").read_text(encoding="utf-8"))["stages"][-1]
    except (OSError, ValueError, LookupError, TypeError):  # none, or a damaged one: the page says so
        return False


def followed(page: str, live: dict[str, Any]) -> str:
    """A page with the script that follows its run, and the leave to run it and to ask this server.

    live: what the script begins with.
    """
    content = html.escape(json.dumps(live))
    # A function: what is put in may hold backslashes.
    page = _POLICY.sub(lambda found: found[1] + _allowing(found[2]) + found[3], page, count=1)
    page = page.replace("</head>", f'<meta name="sparring-live" content="{content}">\n</head>', 1)
    body, end, rest = page.rpartition("</body>")
    return f"{body}<script>{_SCRIPT}</script>{end}{rest}"


def _allowing(policy: str) -> str:
    """A content security policy that lets our script run and ask us."""
    rules = {name: values for name, *values in map(str.split, policy.split(";")) if name}
    rules["script-src"] = [*(value for value in rules.get("script-src", []) if value != "'none'"), _SCRIPT_HASH]
    rules["connect-src"] = ["'self'"]
    return "; ".join(" ".join([name, *values]) for name, values in rules.items())


class Server(ThreadingHTTPServer):
    """Serves a page at `/` and its version at `/version`."""

    daemon_threads = True  # Ctrl-C waits for nobody who still reads
    allow_reuse_address = os.name != "nt"  # there, it would take another's port

    def __init__(self, page: LivePage, host: str, port: int) -> None:
        self.page, self.host = page, host
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of our own name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def address(self) -> str:
        """The page's address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def knows(self, named: str | None) -> bool:
        """Whether a Host header names this server.

        A page of somebody else's can let its own name lead here, and would then read ours as its own: only names that
        nobody else has are ours.
        """
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(\d+))?", named or "")
        if found is None or int(found[2] or 80) != self.server_port:
            return False
        host = found[1].strip("[]").lower()
        if host in {"localhost", self.host.lower()}:
            return True
        # An address is nobody's name. Where others may read, they may ask by ours, too.
        open_to_all = not _is_loopback(self.host)
        return _is_loopback(host) or (open_to_all and (_is_address(host) or host == socket.gethostname().lower()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader who goes away says nothing to us; anything else is told, and the next one is served."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            self.page.say(f"a request could not be answered: {type(error).__name__}: {error}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = 30  # seconds in which a request must be whole
    server_version, sys_version = "sparring", ""

    def do_GET(self) -> None:
        if not self.server.knows(self.headers.get("Host")):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, f"This server is {self.server.address}\n")
        elif self.path == "/":
            self._send(HTTPStatus.OK, self.server.page.current(), "text/html")
        elif self.path == "/version":
            self._send(HTTPStatus.OK, json.dumps(self.server.page.news()), "application/json")
        else:
            self._send(HTTPStatus.NOT_FOUND, "There is only the page itself, at /\n")

    def _refuse(self) -> None:
        self.close_connection = True  # what it sends us stays unread
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "This server only answers GET\n", Allow="GET")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _send(self, status: HTTPStatus, text: str, kind: str = "text/plain", **more: str) -> None:
        content = text.encode("utf-8", errors="replace")
        self.send_response(status)
        sized = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        for name, value in (_HEADERS | sized | more).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the class above has it
        """Nothing: an open page asks every few seconds."""
