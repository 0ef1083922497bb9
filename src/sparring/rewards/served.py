"""Preference reward from a vLLM server: `vllm serve MODEL --runner pooling`.

Conversations are written by the reward model's own chat template here and sent as ids to /classify, so that nothing is
encoded twice; use_activation=false asks for the logit, as `PreferenceModel` gives it (vLLM's default is its sigmoid).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import httpx
from transformers import PreTrainedTokenizerBase

from sparring.http import Passing, address, described, each, headers, is_loopback, refusal, retried, retry_after
from sparring.rewards.base import RewardError
from sparring.rewards.preference import Conversation, Ids, Reader, bound

SETTING = "game.reward.url"
API_KEY = "SPARRING_REWARD_API_KEY"
"""The environment variable with the server's key, where it wants one."""

ROWS = 16
"""Conversations of one request: the server batches over requests, and a failed one costs no more than these."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts at most, whatever the server asks for."""


class RewardServerError(RewardError):
    """The reward's server can't be reached, serves something else, or answers with no scores."""


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
        self._url = address(url, SETTING, API_KEY)
        self._pad_token_id = pad_token_id
        self._timeout, self._attempts, self._backoff = timeout, retries + 1, backoff
        self._concurrency = concurrency
        # The environment's proxies are for other hosts; a loopback address is this one.
        settings: dict[str, Any] = {
            "base_url": self._url,
            "headers": headers(API_KEY),
            "timeout": timeout,
            "trust_env": not is_loopback(self._url.host),
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
        pieces = [rows.ids[start : start + ROWS] for start in range(0, len(rows.ids), ROWS)]
        scores = await each(pieces, self._tried, at_once=self._concurrency)
        return rows.spread([score for piece in scores for score in piece])

    def drain(self) -> dict[str, float]:
        """`over_long`: the share of conversations not scored since the last call."""
        return self._reader.drain()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _tried(self, rows: Sequence[Ids]) -> list[float]:
        try:
            return await retried(
                lambda: self._scores(rows), attempts=self._attempts, backoff=self._backoff, longest=LONGEST_WAIT
            )
        except Passing as error:
            raise self._error(f"{error}; {self._attempts} attempts were made") from error

    async def _scores(self, rows: Sequence[Ids]) -> list[float]:
        request = {"model": self._model, "input": [self._trimmed(row) for row in rows], "use_activation": False}
        try:
            async with asyncio.timeout(self._timeout):  # httpx's own bounds each read, not the whole
                response = await self._client.post("classify", json=request)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Passing(f"no answer within {self._timeout:g} s") from error
        except httpx.TransportError as error:
            raise Passing(f"no connection ({described(error)})") from error
        return self._read(response, len(rows))

    def _read(self, response: httpx.Response, count: int) -> list[float]:
        status = response.status_code
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500:
            raise Passing(refusal(response, API_KEY), retry_after(response))
        if not response.is_success:
            hint = " (does it run with --runner pooling?)" if status == HTTPStatus.NOT_FOUND else ""
            raise self._error(refusal(response, API_KEY) + hint)
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
            raise self._error(f"no connection ({described(error)})") from error
        if not response.is_success:
            raise self._error(refusal(response, API_KEY))
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
            f"the reward model's server at {self._url}: {what}; check {SETTING} and the server's log"
        )


def _is_from(card: dict[str, Any], model: str) -> bool:
    """Whether a served model comes from this folder or hub id, by the last part of both paths."""
    source, asked = (path.rstrip("/").rpartition("/")[2] for path in (str(card.get("root") or card["id"]), model))
    return source == asked
