"""A chat model behind an OpenAI-compatible endpoint: OpenAI's own, vLLM's, or another's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import httpx

from sparring.evaluation.judges.base import Arrived, Cost, JudgeError, Pair, Verdict, about_tokens
from sparring.evaluation.judges.styles import Style
from sparring.evaluation.judges.templates import Template, open_template
from sparring.http import (
    Loop,
    Passing,
    address,
    described,
    each,
    headers,
    hide,
    is_loopback,
    refusal,
    retried,
    retry_after,
)

OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
URL, MODEL, KEY = "--judge-url", "--judge", "--judge-key"

LONGEST_WAIT = 600.0
"""Seconds between two attempts at most, whatever the server asks for."""

UNANSWERABLE = ("context_length_exceeded", "maximum context length", "content_policy_violation", "content_filter")
"""What a refusal says that concerns this one pair, and will be said of it again."""


class EndpointJudge:
    """Asks a chat model for each pair's verdict; requests go out together, and each is tried again where it may help.

    A call that fails in passing (no connection, no answer in time, 408, 429, 5xx, an answer that is no completion) is
    made again after growing random pauses, or as long as Retry-After says. A pair that the endpoint refuses for its
    length or content has no verdict. The key is read from an environment variable when the judge is made, goes into
    that endpoint's requests and nowhere else.

    Args:
        model: the model's name there.
        style: the kind of verdict.
        template: what the model is shown; None: the one shipped for this style.
        url: the endpoint's address, up to what comes before /chat/completions; of a bare http://host:port, /v1 there.
        key: the environment variable with the key; None: OPENAI_API_KEY at OpenAI's address, elsewhere no key is sent.
        timeout: seconds an attempt may take.
        retries: attempts after the first.
        concurrency: requests under way at once.
        extra: more of the request's fields (chat_template_kwargs, seed), replacing the style's own; None removes one.
        backoff: seconds; pauses are drawn from 0 to 1, 2, 4, 8 ... times this.
        option: what the model was given as, for messages.

    Raises:
        ValueError: url is no http address, names a user or has a query, or the key has characters that no key has.
    """

    def __init__(
        self,
        model: str,
        style: Style,
        template: Template | None = None,
        *,
        url: str = OPENAI,
        key: str | None = None,
        timeout: float = 120.0,
        retries: int = 6,
        concurrency: int = 16,
        extra: Mapping[str, Any] | None = None,
        backoff: float = 1.0,
        option: str = MODEL,
    ) -> None:
        self._url = _endpoint(url)
        # No other address is sent OpenAI's key unless it is named.
        self._variable = key or (OPENAI_KEY if str(self._url).startswith(f"{OPENAI}/") else "")
        self._model, self._style, self._option = model, style, option
        self._template = template or open_template(style.name)
        self._timeout, self._attempts, self._backoff = timeout, retries + 1, backoff
        self._concurrency = concurrency
        request = {**style.request, **(extra or {})}
        self._request = {name: value for name, value in request.items() if value is not None}
        authorisation = headers(self._variable)
        self._keyless = bool(self._variable) and not authorisation
        self._loop = Loop("judge")
        self._client = httpx.AsyncClient(
            headers=authorisation,
            timeout=timeout,
            limits=httpx.Limits(max_connections=concurrency),
            trust_env=not is_loopback(self._url.host),
        )
        self.name = model
        self.identity: str | None = json.dumps(
            {
                "judge": "chat",
                "model": model,
                "style": style.name,
                "template": self._template.digest,
                "request": self._request,
            },
            sort_keys=True,
        )

    def estimate(self, pairs: Sequence[Pair]) -> Cost:
        """See `Judge.estimate`; a prompt's tokens by its length, as the endpoint alone knows its tokenizer."""
        texts = [message["content"] for pair in pairs for message in self._template.fill(pair)]
        return Cost(len(pairs), about_tokens(*texts), len(pairs) * self._style.completion_tokens)

    def judge(self, pairs: Sequence[Pair], arrived: Arrived | None = None) -> list[Verdict]:
        """See `Judge.judge`."""
        if pairs and self._keyless:
            raise self._error(f"no key: the environment variable {self._variable} is empty; {KEY} names another")
        return self._loop.wait_for(self._all(pairs, arrived))

    def close(self) -> None:
        """Close the connections."""
        self._loop.wait_for(self._client.aclose())

    async def _all(self, pairs: Sequence[Pair], arrived: Arrived | None) -> list[Verdict]:
        async def judged(place: int) -> Verdict:
            verdict = await self._tried(pairs[place])
            if arrived is not None:  # told before the next request goes out
                arrived(place, verdict)
            return verdict

        return await each(range(len(pairs)), judged, at_once=self._concurrency)

    async def _tried(self, pair: Pair) -> Verdict:
        try:
            return await retried(
                lambda: self._asked(pair), attempts=self._attempts, backoff=self._backoff, longest=LONGEST_WAIT
            )
        except Passing as error:
            raise self._error(f"{error}; {self._attempts} attempts were made", pair) from error

    async def _asked(self, pair: Pair) -> Verdict:
        body = {"model": self._model, "messages": self._template.fill(pair), **self._request}
        try:
            # Written here, as httpx's own writer can't send a lone surrogate.
            content, kind = json.dumps(body), {"Content-Type": "application/json"}
            async with asyncio.timeout(self._timeout):  # httpx's own bounds each read, not the whole
                response = await self._client.post(self._url, content=content, headers=kind)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Passing(f"no answer within {self._timeout:g} s") from error
        except httpx.RequestError as error:
            raise Passing(f"no connection ({described(error)})") from error
        return self._read(response, pair) if response.is_success else self._refused(response, pair)

    def _read(self, response: httpx.Response, pair: Pair) -> Verdict:
        try:
            answer = response.json()
            preference, text = self._style.read(answer["choices"][0])
            tokens = _used(answer.get("usage") or {})
        except JudgeError as error:
            raise self._error(str(error), pair) from error
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            said = hide(response.text, self._variable)[:200]
            raise Passing(f"an answer that is no chat completion: {said!r}") from error
        return Verdict(preference, hide(text, self._variable), *tokens)

    def _refused(self, response: httpx.Response, pair: Pair) -> Verdict:
        """A verdict that is none, or an exception that says what to do."""
        status, told = response.status_code, refusal(response, self._variable)
        if status == HTTPStatus.UNAUTHORIZED:  # what is said then may repeat a part of the key
            raise self._error(f"status 401: {self._key_hint()}", pair)
        if status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS} or status >= 500:
            if "insufficient_quota" in response.text:
                raise self._error(f"the account has no credit left, {told}", pair)
            raise Passing(told, retry_after(response))
        if status == HTTPStatus.BAD_REQUEST and any(sign in response.text for sign in UNANSWERABLE):
            return Verdict(None, told)
        if status == HTTPStatus.NOT_FOUND and "model" in response.text:
            raise self._error(f"the model {self._model!r} is not there ({told}); check {self._option}", pair)
        hint = "; take --judge-style ranked, if it has no log-probabilities" if "logprobs" in response.text else ""
        raise self._error(told + hint, pair)

    def _key_hint(self) -> str:
        if not self._variable:
            return f"it wants a key; name the environment variable that holds it with {KEY}"
        return f"it doesn't take the key in the environment variable {self._variable}"

    def _error(self, what: str, pair: Pair | None = None) -> JudgeError:
        which = f" (pair {pair.key})" if pair is not None and pair.key else ""
        return JudgeError(f"the judge at {self._url}{which}: {what}; check {URL}")


def _used(usage: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the completion, 0 where that isn't told."""
    prompt, completion = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    if not (0 <= prompt < 2**53 and 0 <= completion < 2**53):
        raise ValueError(f"tokens: {prompt}, {completion}")
    return prompt, completion


def _endpoint(url: str) -> httpx.URL:
    """Where chat completions are."""
    root = address(url, URL, f"{OPENAI_KEY} or what {KEY} names")
    if root.query or root.fragment:
        raise ValueError(f"{URL} is an address alone, without what follows a ? or #")
    given = httpx.URL(url.rstrip("/"))
    prefix = given.path.rstrip("/") or "/v1"
    return given.copy_with(path=f"{prefix}/chat/completions")
