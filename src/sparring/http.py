"""What every HTTP client here shares: an event loop, address and key checked, attempts with pauses, errors in words."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from threading import Thread
from time import time
from typing import TypeVar
from weakref import finalize

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

S = TypeVar("S")
T = TypeVar("T")


class Passing(Exception):  # noqa: N818 - no error yet: the next attempt may do
    """What may be gone at the next attempt; wait is what the server asked for, in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


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


async def retried(work: Callable[[], Awaitable[T]], *, attempts: int, backoff: float, longest: float) -> T:
    """The work's result; where it raises Passing it is done again, up to so many attempts in all.

    Pauses are drawn from 0 to 1, 2, 4, 8 ... times backoff, or last as long as the server asked; none more than
    `longest` seconds. Raises the last Passing.
    """
    pause = wait_random_exponential(multiplier=backoff, max=longest)

    async def attempt() -> T:  # tenacity awaits only what it sees to be a coroutine function
        return await work()

    def wait(state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.wait if isinstance(failure, Passing) else 0.0
        return min(longest, max(asked, pause(state)))

    trying = AsyncRetrying(
        stop=stop_after_attempt(attempts), wait=wait, retry=retry_if_exception_type(Passing), reraise=True
    )
    return await trying(attempt)


async def each(items: Sequence[S], work: Callable[[S], Awaitable[T]], *, at_once: int) -> list[T]:
    """The work's result for every item, in their order; so many are under way at once. Where one fails, all end."""
    free = asyncio.Semaphore(at_once)

    async def one(item: S) -> T:
        async with free:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:  # where one has failed, the others are not left behind
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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


def refusal(response: httpx.Response, key: str) -> str:
    """The status and the begin of what was said, without the key should that be in it; key: its variable, or ""."""
    told = f": {hide(response.text, key)[:300]}" if response.text else ""
    hint = f" (its key is read from {key})" if key and response.status_code in {401, 403} else ""
    return f"status {response.status_code}{hint}{told}"


def hide(text: str, variable: str) -> str:
    """A server's text, with the key in an environment variable blanked."""
    key = os.environ.get(variable, "").strip()
    return text.replace(key, f"[{variable}]") if key else text


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
