"""HTTP to a vLLM server that never waits for ever: every call has a limit, and a server that goes silent is named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from time import monotonic, sleep
from typing import Any, TypeVar

import httpx

from sparring.http import Loop, address, described, headers, is_loopback, refusal
from sparring.rollout.base import EngineError, serve_command, shell_command

T = TypeVar("T")

SETTING = "rollout.url"
API_KEY = "SPARRING_ROLLOUT_API_KEY"
"""The environment variable with the server's key, where it wants one."""


class Lost(Exception):  # noqa: N818 - what is lost is the connection; an EngineError follows where it doesn't come back
    """The connection broke, or the server failed: it may be on its way up again."""


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
        self.pixels: Mapping[str, int] | None = None  # bounds of images, where prompts show some
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
        port, pixels = self.url.port or 80, self.pixels
        return shell_command(*serve_command(self.served, lora_rank=lora_rank, port=port, cpu=cpu, pixels=pixels))

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


def is_missing(response: httpx.Response) -> bool:
    """Whether the path itself is unknown there, or switched off; vLLM's own errors look otherwise."""
    switched_off = response.status_code == HTTPStatus.FORBIDDEN and "enable-scale-out" in response.text
    return switched_off or (response.status_code == HTTPStatus.NOT_FOUND and '"error"' not in response.text)
