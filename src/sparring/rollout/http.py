"""HTTP to a vLLM server that never waits for ever: every call has a limit, and a server that goes silent is named."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ipaddress import ip_address
from threading import Thread
from time import monotonic, sleep, time
from typing import Any, TypeVar
from weakref import finalize

import httpx

from sparring.rollout.base import EngineError, serve_command, shell_command

T = TypeVar("T")

SETTING = "rollout.url"
API_KEY = "SPARRING_ROLLOUT_API_KEY"
"""The environment variable with the server's key, where it wants one."""


class Lost(Exception):  # noqa: N818 - what is lost is the connection; an EngineError follows where it doesn't come back
    """The connection broke, or the server failed: it may be on its way up again."""


class Loop:
    """An event loop that runs in a thread of its own until this object goes.

    What its clients keep stays bound to a loop that runs, and a caller whose own loop is running already, as in a
    notebook, is no special case.
    """

    def __init__(self, name: str) -> None:
        # A loop factory, or Runner would make its loop the calling thread's current one.
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = runner.get_loop()
        Thread(target=_serve, args=(runner,), name=name, daemon=True).start()
        finalize(self, self._loop.call_soon_threadsafe, self._loop.stop).atexit = False

    def wait_for(self, awaitable: Awaitable[T]) -> T:
        """The result, or the exception; an interrupted wait cancels the work."""
        future = asyncio.run_coroutine_threadsafe(_await(awaitable), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # does something only if the wait was interrupted


class Api:
    """Calls to one server. All may be made from any thread.

    Args:
        url: the server's, http://host:port.
        limit: seconds that a call may take.
        silence: seconds within which a sign of life is answered while a call is under way.
        connections: requests under way at once.

    Raises:
        ValueError: url is no http address, or names a user (a key belongs into the environment).
    """

    def __init__(self, url: str, *, limit: float, silence: float, connections: int) -> None:
        self.url = address(url, SETTING, API_KEY)
        self.limit, self._silence = limit, silence
        self.served = "MODEL"  # for the command in an error, until the server has said what it serves
        self._loop = Loop("rollout")
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers(API_KEY),
            # Limits are ours, on whole calls. No connection is kept: vLLM drops one after an error without saying so.
            timeout=httpx.Timeout(None),
            limits=httpx.Limits(max_connections=connections + 2, max_keepalive_connections=0),
            trust_env=not is_loopback(self.url.host),
        )

    def get(self, path: str, *, limit: float | None = None) -> Any:
        """The JSON at a path. Raises EngineError or Lost."""
        return self._loop.wait_for(self._json("GET", path, None, limit or self._silence))

    def post(self, path: str, body: Any = None, *, doing: str | None = None) -> Any:
        """The answer's JSON (None where it has none) to a change of the server's state. Raises EngineError or Lost."""
        doing = doing or f"answering /{path}"
        return self.run(lambda: self._json("POST", path, body, self.limit), doing, sign="health")

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], doing: str, *, sign: str) -> T:
        """The work's result, while the server is asked for a sign of life (GET /sign) every few seconds.

        Raises EngineError where it takes more than the limit or the server is silent, and Lost where it is gone.
        """
        return self._loop.wait_for(self._watched(work(), doing, sign))

    def alive(self, limit: float) -> bool:
        """Whether /health is answered, and well, within these seconds. Raises Lost where nothing is."""
        return self._loop.wait_for(self._sign("health", limit)).is_success

    def reach(self, limit: float) -> None:
        """Wait until the server is healthy, for so many seconds at most. Raises EngineError."""
        end = monotonic() + limit
        while True:
            try:
                if self.alive(min(5.0, limit)):
                    return
                last = "it says that it is not healthy"
            except (Lost, TimeoutError) as error:
                last = str(error) or "no answer"
            if monotonic() >= end:
                raise self.error(f"can't be reached, and that for {limit:g} s ({last})")
            sleep(min(0.5, limit / 10))

    async def ask(self, path: str, body: Any) -> httpx.Response:
        """One POST as it is answered; for work that `run` watches. Raises Lost."""
        try:
            return await self._client.post(path, json=body)
        except httpx.TransportError as error:
            raise Lost(f"the connection broke ({described(error)})") from error

    def error(self, what: str) -> EngineError:
        """An error that names the server."""
        return EngineError(f"the rollout server at {self.url}: {what}; check {SETTING} and the server's log")

    def start_command(self, *, lora_rank: int | None = None, cpu: bool = False) -> str:
        """How this server must be started."""
        return shell_command(*serve_command(self.served, lora_rank=lora_rank, port=self.url.port or 80, cpu=cpu))

    def close(self) -> None:
        """Close the connections."""
        self._loop.wait_for(self._client.aclose())

    async def _json(self, method: str, path: str, body: Any, limit: float) -> Any:
        try:
            async with asyncio.timeout(limit):
                response = await self._client.request(method, path, json=body)
        except TimeoutError as error:
            raise self.error(f"no answer to /{path} within {limit:g} s") from error
        except httpx.TransportError as error:
            raise Lost(f"the connection broke ({described(error)})") from error
        if is_missing(response):
            raise self.error(f"has no /{path}; start it as\n  {self.start_command()}\n")
        if not response.is_success:
            raise self.error(f"/{path} was refused, {refusal(response, API_KEY)}")
        try:
            return response.json()
        except ValueError:  # some answers are a plain line or empty
            return None

    async def _watched(self, work: Coroutine[Any, Any, T], doing: str, sign: str) -> T:
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(self._watch(sign, doing))
        try:
            await asyncio.wait((task, watch), timeout=self.limit, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if watch.done():
                watch.result()  # raises
            raise self.error(f"not done {doing} within {self.limit:g} s")
        finally:  # a request that is cancelled is aborted by the server
            task.cancel()
            watch.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def _watch(self, sign: str, doing: str) -> None:
        while True:
            await asyncio.sleep(min(5.0, self._silence / 4))
            try:
                response = await self._sign(sign, self._silence)
            except TimeoutError as error:
                raise self.error(f"no sign of life for {self._silence:g} s while {doing}; is it hung?") from error
            if response.status_code >= 500:
                raise Lost(f"it failed ({refusal(response, API_KEY)})")

    async def _sign(self, path: str, limit: float) -> httpx.Response:
        try:
            async with asyncio.timeout(limit):
                return await self._client.get(path)
        except httpx.TransportError as error:
            raise Lost(f"no connection ({described(error)})") from error


def address(url: str, setting: str, key: str) -> httpx.URL:
    """The server's root. Raises ValueError, naming the setting and the key's variable."""
    try:
        root = httpx.URL(url.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL as error:
        raise ValueError(f"{setting} is no address ({error}); it reads http://host:port") from error
    if root.userinfo:
        raise ValueError(f"{setting} names a user; put the server's key into the environment as {key}")
    if root.scheme not in {"http", "https"} or not root.host:
        raise ValueError(f"{setting} reads http://host:port, not {url!r}")
    return root


def headers(variable: str) -> dict[str, str]:
    """The authorisation of the key in an environment variable; none where that is empty."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{variable} holds characters that no key has")
    return {"Authorization": f"Bearer {key}"} if key else {}


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, so that the environment's proxies are not for it."""
    try:
        ip = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return ip.is_loopback or ip.is_unspecified  # 0.0.0.0 is what vLLM's log calls itself


def is_missing(response: httpx.Response) -> bool:
    """Whether the path itself is unknown there, or switched off; vLLM's own errors look otherwise."""
    switched_off = response.status_code == HTTPStatus.FORBIDDEN and "enable-scale-out" in response.text
    return switched_off or (response.status_code == HTTPStatus.NOT_FOUND and '"error"' not in response.text)


def refusal(response: httpx.Response, key: str) -> str:
    """The status and the begin of what was said."""
    told = f": {response.text[:300]}" if response.text else ""
    hint = f" (its key is read from {key})" if response.status_code in {401, 403} else ""
    return f"status {response.status_code}{hint}{told}"


def retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, by Retry-After as a number or a date; 0 where it says nothing readable."""
    told = response.headers.get("Retry-After", "")
    for read in (float, lambda date: parsedate_to_datetime(date).timestamp() - time()):
        try:
            return max(0.0, read(told))
        except (ValueError, OverflowError):
            continue
    return 0.0


def described(error: Exception) -> str:
    """An exception in words, also where it has none of its own."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _serve(runner: asyncio.Runner) -> None:
    with runner:
        runner.get_loop().run_forever()


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable
