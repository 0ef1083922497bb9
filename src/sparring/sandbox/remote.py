"""Programs on a SandboxFusion server (POST /run_code): https://github.com/bytedance/SandboxFusion.

The server runs the same judge, as a Python program that reads its task from standard input. How far programs are apart
from each other and from the machine is the server's matter.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from sparring.http import Loop, Passing, address, described, each, headers, is_loopback, refusal, retried, retry_after
from sparring.sandbox import inside
from sparring.sandbox.base import MIB, Ending, Limits, Outcome, Program, SandboxError
from sparring.sandbox.protocol import MARKS, Written, task_of

SETTING = "the sandbox's url"
API_KEY = "SPARRING_SANDBOX_API_KEY"
"""The environment variable with the server's key, where it wants one."""

GRACE = 10.0
"""Seconds beyond a program's own that its run may take there; and, once more, that the answer may take."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, whatever the server asks for."""


class Remote:
    """Runs programs on a SandboxFusion server.

    A request that fails in passing (no connection, no answer in time, 429, 5xx, an error of the server's sandbox) is
    made again after growing random pauses, or as long as Retry-After says. The key, where the server wants one, is read
    from SPARRING_SANDBOX_API_KEY.

    Args:
        url: the server's, http://host:port.
        workers: programs at once; None: 16.
        limits: what one program may use; processes are the server's matter.
        retries: attempts after the first.
        backoff: seconds; pauses are drawn from 0 to 1, 2, 4, 8 ... times this.

    Raises:
        SandboxError: no such server answers there.
        ValueError: url is no http address, or names a user (a key belongs into the environment).
    """

    def __init__(
        self, url: str, *, workers: int | None, limits: Limits, retries: int = 5, backoff: float = 0.5
    ) -> None:
        self._url = address(url, SETTING, API_KEY)
        self._limits, self._attempts, self._backoff = limits, retries + 1, backoff
        self._files = {
            f"inside/{file.name}": b64encode(file.read_bytes()).decode()
            for file in sorted(Path(inside.__file__).parent.glob("*.py"))
        }
        self._workers, self._closed = workers or 16, False
        self._loop = Loop("sandbox")
        # The environment's proxies are for other hosts; a loopback address is this one.
        self._client = httpx.AsyncClient(
            base_url=self._url,
            headers=headers(API_KEY),
            timeout=httpx.Timeout(None),  # the whole call is timed
            limits=httpx.Limits(max_connections=self._workers),
            trust_env=not is_loopback(self._url.host),
        )
        try:
            self._prove()
        except BaseException:
            self.close()
            raise

    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        """See Sandbox. Raises SandboxError too where the server can't be reached, or is none."""
        if self._closed:
            raise SandboxError("this sandbox is closed")
        return self._loop.wait_for(self._outcomes(programs))

    def close(self) -> None:
        """See Sandbox."""
        self._closed = True
        self._loop.wait_for(self._client.aclose())

    def _prove(self) -> None:
        (outcome,) = self.run([Program("print('ready')")])
        if not outcome.passed:
            said = outcome.stderr.strip() or f"a program that only prints ended as {outcome.ending}"
            raise self._error(f"can't run the simplest program ({said[-500:]})")

    async def _outcomes(self, programs: Sequence[Program]) -> list[Outcome]:
        return await each(programs, self._outcome, at_once=self._workers)

    async def _outcome(self, program: Program) -> Outcome:
        task, start = task_of(program, self._limits), monotonic()
        request = {
            "code": "import inside; inside.main()",
            "files": self._files,
            "language": "python",
            "stdin": task.data.decode(),
            "run_timeout": self._limits.seconds + GRACE,
            "memory_limit_MB": -(-self._limits.memory // MIB),
        }
        try:
            answer = await retried(
                lambda: self._answer(request), attempts=self._attempts, backoff=self._backoff, longest=LONGEST_WAIT
            )
        except _Failed as error:
            return Outcome(Ending.ERROR, None, "", str(error), monotonic() - start)
        except Passing as error:
            raise self._error(f"{error}; {self._attempts} attempts were made") from error
        return self._read(answer, monotonic() - start).outcome(task.nonce)

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        limit = self._limits.seconds + 2 * GRACE
        try:
            async with asyncio.timeout(limit):
                response = await self._client.post("run_code", json=request)
        except TimeoutError as error:
            raise Passing(f"no answer within {limit:g} s") from error
        except httpx.TransportError as error:
            raise Passing(f"no connection ({described(error)})") from error
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS or response.status_code >= 500:
            raise Passing(refusal(response, API_KEY), retry_after(response))
        if not response.is_success:
            hint = " (is it SandboxFusion?)" if response.status_code == HTTPStatus.NOT_FOUND else ""
            raise self._error(refusal(response, API_KEY) + hint)
        try:
            answer = dict(response.json())
            ran = answer["status"] != "SandboxError"
        except (ValueError, LookupError, TypeError) as error:
            raise self._error(f"an answer that is none of SandboxFusion's: {response.text[:200]!r}") from error
        if not ran:
            raise _Failed(f"its sandbox failed: {str(answer.get('message'))[:300]}")
        return answer

    def _read(self, answer: dict[str, Any], seconds: float) -> Written:
        result = answer.get("run_result")
        if not isinstance(result, dict):
            raise self._error(f"an answer without run_result: {str(answer)[:200]!r}")
        stdout, stderr = (str(result.get(name) or "").encode() for name in ("stdout", "stderr"))
        late = result.get("status") == "TimeLimitExceeded"
        room = self._limits.output
        stopped = Ending.TIMEOUT if late else Ending.OUTPUT if max(len(stdout), len(stderr)) > room + MARKS else None
        return Written(stdout[: room + MARKS], stderr[:room], seconds, stopped)

    def _error(self, what: str) -> SandboxError:
        return SandboxError(f"the sandbox's server at {self._url}: {what}; check the url and the server's log")


class _Failed(Passing):
    """The server's own sandbox failed; at the last attempt, that is the program's outcome."""
