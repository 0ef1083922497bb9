"""Preference reward from a vLLM server: `vllm serve MODEL --runner pooling`.

Conversations are written by the reward model's own chat template here and sent as ids to /classify, so that nothing is
encoded twice; use_activation=false asks for the logit, as `PreferenceModel` gives it (vLLM's default is its sigmoid).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from time import time
from typing import Any, Self

import httpx
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential
from transformers import PreTrainedTokenizerBase

from sparring.rewards.base import RewardError
from sparring.rewards.preference import Conversation, Ids, Reader, bound

API_KEY = "SPARRING_REWARD_API_KEY"
"""The environment variable with the server's key, where it wants one."""

ROWS = 16
"""Conversations of one request: the server batches over requests, and a failed one costs no more than these."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, whatever the server asks for."""


class RewardServerError(RewardError):
    """The reward's server can't be reached, serves something else, or answers with no scores."""


class _Passing(Exception):  # noqa: N818 - never leaves this file
    """What may be gone at the next attempt; wait is what the server asked for, in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class ServedPreference:
    """A reward model behind a vLLM server: the scores of `PreferenceModel`, None for an over-long conversation.

    Async, so call it through `Reward`. A request that fails in passing (no connection, no answer in time, 429, 5xx)
    is tried again after growing random pauses, or as long as Retry-After says. The key, where the server wants one, is
    read from the environment variable SPARRING_REWARD_API_KEY.

    Args:
        url: the server's, http://host:port.
        tokenizer: the reward model's, with its chat template.
        model: the name it is served under, or the folder or hub id it is served from, of which the last part must
            agree (a server has its own paths); None: the first one served.
        pad_token_id: the reward model's config.pad_token_id. transformers reads the score at the last other token, vLLM
            at the last of all: ids of this kind at the end are not sent. None: nothing is left out.
        timeout: seconds an attempt may take.
        retries: attempts after the first.
        concurrency: requests under way at once.
        max_tokens: a longer conversation is not scored; None: the server's max_model_len.
        template_kwargs: passed to the chat template.
        backoff: seconds; pauses are drawn from 0 to 1, 2, 4, 8 ... times this.

    Raises:
        RewardServerError: no vLLM server answers there, or it serves other models.
        ValueError: url is no http address, or names a user (a key belongs into the environment).
    """

    def __init__(
        self,
        url: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        model: str | None = None,
        pad_token_id: int | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        concurrency: int = 16,
        max_tokens: int | None = None,
        backoff: float = 0.5,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._url = _address(url)
        self._pad_token_id = pad_token_id
        self._timeout, self._attempts, self._concurrency = timeout, retries + 1, concurrency
        self._pause = wait_random_exponential(multiplier=backoff, max=LONGEST_WAIT)
        # The environment's proxies are for other hosts; a loopback address is this one.
        settings: dict[str, Any] = {
            "base_url": self._url,
            "headers": _headers(),
            "timeout": timeout,
            "trust_env": not _is_loopback(self._url.host),
        }
        with httpx.Client(**settings) as client:
            self._model, served_tokens = self._card(client, model)
        self._reader = Reader(tokenizer, bound(max_tokens, served_tokens), template_kwargs)
        self._client = httpx.AsyncClient(**settings)

    @classmethod
    def load(cls, url: str, path: str | Path, *, revision: str | None = None, **settings: Any) -> Self:
        """With the tokenizer and padding of the reward model in a folder or at a hub id; its weights aren't needed."""
        from transformers import AutoConfig

        from sparring.lm.hub import find_folder
        from sparring.lm.load import load_tokenizer

        folder = find_folder(path, revision, weights=False)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return cls(url, load_tokenizer(folder), pad_token_id=config.get_text_config().pad_token_id, **settings)

    async def __call__(
        self, queries: Sequence[str], answers: Sequence[str], conversations: Sequence[Conversation]
    ) -> list[float | None]:
        """A score a conversation, in the order given.

        Raises:
            RewardServerError: the server refused, answered with no scores, or failed at every attempt.
        """
        rows = self._reader.rows(conversations)
        free = asyncio.Semaphore(self._concurrency)

        async def scored(piece: Sequence[Ids]) -> list[float]:
            async with free:
                return await self._tried(piece)

        pieces = [rows.ids[start : start + ROWS] for start in range(0, len(rows.ids), ROWS)]
        tasks = [asyncio.ensure_future(scored(piece)) for piece in pieces]
        try:
            scores = await asyncio.gather(*tasks)
        finally:  # where one has failed, the others are not left behind
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return rows.spread([score for piece in scores for score in piece])

    def drain(self) -> dict[str, float]:
        """`over_long`: the share of conversations not scored since the last call."""
        return self._reader.drain()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _tried(self, rows: Sequence[Ids]) -> list[float]:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self._attempts), wait=self._wait, retry=retry_if_exception_type(_Passing)
        )
        try:
            return await attempts(self._scores, rows)
        except RetryError as error:
            last = error.last_attempt.exception()
            raise self._error(f"{last}; {self._attempts} attempts were made") from last

    def _wait(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.wait if isinstance(failure, _Passing) else 0.0
        return min(LONGEST_WAIT, max(asked, self._pause(state)))

    async def _scores(self, rows: Sequence[Ids]) -> list[float]:
        request = {"model": self._model, "input": [self._trimmed(row) for row in rows], "use_activation": False}
        try:
            async with asyncio.timeout(self._timeout):  # httpx's own bounds each read, not the whole
                response = await self._client.post("classify", json=request)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _Passing(f"no answer within {self._timeout:g} s") from error
        except httpx.TransportError as error:
            raise _Passing(f"no connection ({_described(error)})") from error
        return self._read(response, len(rows))

    def _read(self, response: httpx.Response, count: int) -> list[float]:
        status = response.status_code
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500:
            raise _Passing(_refusal(response), _retry_after(response))
        if not response.is_success:
            hint = " (does it run with --runner pooling?)" if status == HTTPStatus.NOT_FOUND else ""
            raise self._error(_refusal(response) + hint)
        try:
            data = sorted(response.json()["data"], key=lambda item: item["index"])
            indices, labels = [item["index"] for item in data], [item["probs"] for item in data]
            scores = [float(score) for (score,) in labels]
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise self._error(f"an answer without one score a conversation: {response.text[:200]!r}") from error
        if indices != list(range(count)):
            raise self._error(f"{len(scores)} scores for {count} conversations")
        return scores

    def _trimmed(self, row: Ids) -> list[int]:
        end = len(row)
        while end > 1 and row[end - 1] == self._pad_token_id:
            end -= 1
        return list(row[:end])

    def _card(self, client: httpx.Client, model: str | None) -> tuple[str, int | None]:
        """The served name of `model`, and the server's max_model_len."""
        try:
            response = client.get("v1/models")
        except httpx.HTTPError as error:
            raise self._error(f"no connection ({_described(error)})") from error
        if not response.is_success:
            raise self._error(_refusal(response))
        try:
            cards = {str(card["id"]): dict(card) for card in response.json()["data"]}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._error(f"no vLLM server: /v1/models gave {response.text[:200]!r}") from error
        fitting = [name for name, card in cards.items() if model in {None, name} or _is_from(card, str(model))]
        if not fitting:
            raise self._error(f"{model or 'a model'!r} is not served there; served: {', '.join(cards) or 'nothing'}")
        name = model if model in fitting else fitting[0]
        tokens = cards[name].get("max_model_len")
        return name, tokens if isinstance(tokens, int) else None

    def _error(self, what: str) -> RewardServerError:
        return RewardServerError(
            f"the reward model's server at {self._url}: {what}; check game.reward.url and the server's log"
        )


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL as error:
        raise ValueError(f"game.reward.url is no address ({error}); it reads http://host:port") from error
    if address.userinfo:
        raise ValueError(f"game.reward.url names a user; put the server's key into the environment as {API_KEY}")
    if address.scheme not in {"http", "https"} or not address.host:
        raise ValueError(f"game.reward.url reads http://host:port, not {url!r}")
    return address


def _headers() -> dict[str, str]:
    key = os.environ.get(API_KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{API_KEY} holds characters that no key has")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified  # 0.0.0.0 is what vLLM's log calls itself


def _is_from(card: dict[str, Any], model: str) -> bool:
    """Whether a served model comes from this folder or hub id, by the last part of both paths."""
    source, asked = (path.rstrip("/").rpartition("/")[2] for path in (str(card.get("root") or card["id"]), model))
    return source == asked


def _refusal(response: httpx.Response) -> str:
    told = f": {response.text[:300]}" if response.text else ""
    hint = f" (its key is read from {API_KEY})" if response.status_code in {401, 403} else ""
    return f"status {response.status_code}{hint}{told}"


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, by Retry-After as a number or a date; 0 where it says nothing readable."""
    told = response.headers.get("Retry-After", "")
    for read in (float, lambda date: parsedate_to_datetime(date).timestamp() - time()):
        try:
            return max(0.0, read(told))
        except (ValueError, OverflowError):
            continue
    return 0.0


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
