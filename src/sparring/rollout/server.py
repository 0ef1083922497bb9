"""vLLM as a server: on another GPU or another machine, over plain HTTP, tokens in and tokens out.

The server carries a label (vLLM's weight version), which every completion comes back with. So a server that was
restarted in between, and has its start weights again, is noticed: the last update is loaded again, and what is missing
is asked for once more. A completion that other weights wrote is never taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from time import sleep
from typing import Any, TypeVar
from uuid import uuid4

from sparring.http import each, refusal, retry_after
from sparring.lm.base import Completion, SamplingParams
from sparring.lm.hub import is_adapter
from sparring.rollout.base import EngineInfo, check_request, read_completion, request_fields
from sparring.rollout.http import API_KEY, Api, Lost, is_missing
from sparring.rollout.identity import Served, read_card, read_served
from sparring.rollout.images import PromptImages, check_shown, shown
from sparring.rollout.weights import AdapterReload, FolderReload, WeightPath

T = TypeVar("T")
logger = logging.getLogger(__name__)

UNLABELLED = "default"
"""vLLM's weight version when it starts."""

LONGEST_WAIT = 60.0
"""Seconds before a request is made again at most, whatever the server asks for."""


class ServerEngine:
    """A `RolloutEngine` behind the address of a `vllm serve` that was started as `base.serve_command` says.

    Args:
        url: http://host:port. A key, where it wants one, is read from SPARRING_ROLLOUT_API_KEY.
        model: the name it is served under; None: the first one.
        timeout: seconds that a call (all prompts' completions, or an update) may take.
        connect_timeout: seconds in which a server that can't be reached, now or later, must be back.
        silence: seconds within which a sign of life must be answered while a call is under way. It goes through the
            engine's own loop, so this must be longer than its longest step (its first may compile for half a minute).
        concurrency: requests under way at once, one a prompt; vLLM queues what it can't run.
        retries: times a call is made again after the connection was lost.
        weights: how full weights reach it; None: it reads the folder that it is told.
        images: the images of prompts; None: prompts are text.

    Raises:
        EngineError: no such server there, or not one that was started as is needed.
        ValueError: url is no address.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        timeout: float = 3600.0,
        connect_timeout: float = 60.0,
        silence: float = 60.0,
        concurrency: int = 256,
        retries: int = 3,
        weights: WeightPath | None = None,
        images: PromptImages | None = None,
    ) -> None:
        self._api = Api(url, limit=timeout, silence=silence, connections=concurrency)
        self._patience, self._concurrency, self._retries = connect_timeout, concurrency, retries
        self._images = images
        self._api.pixels = None if images is None else images.pixels
        self._api.reach(connect_timeout)
        served = self._served = self._surviving(lambda: read_served(self._api, model), "saying what it serves")
        card, seen = served.card, 0 if images is None else served.images
        if images is not None:
            self._refuse_other_images(served, images)
        self.info = EngineInfo(card.name, card.max_tokens, served.vllm, served.lora, served.cpu, seen)
        self._start = FolderReload(served.card.root, cpu=served.cpu)
        self._full, self._adapters = weights or self._start, AdapterReload()
        self._token = f"sparring-{uuid4().hex[:8]}"
        self._mark = f"{self._token}/start"
        self._trained = served.card.name
        self._last: tuple[Path, int] | None = None
        self._surviving(self._claim, "taking it over")

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, seeds: Sequence[int], *, adapter: bool
    ) -> list[list[Completion]]:
        """See `base.RolloutEngine.generate`."""
        check_request(self.info, prompts, params)
        check_shown(self.info.model, self.info.images, prompts)
        if not prompts:
            return []
        params = params if self._images is None else self._images.params(params)
        asked = n if params.temperature > 0 else 1  # greedy ones are all the same
        whole, rest = divmod(asked, self._served.max_rows)
        counts = [self._served.max_rows] * whole + [rest] * (rest > 0)
        fields: list[tuple[list[int], dict[str, Any]]] = []
        for ids, seed in zip(prompts, seeds, strict=True):
            for piece, count in enumerate(counts):
                sampling = request_fields(params, count, seed)
                sampling["seed"] += piece * self._served.max_rows
                fields.append((list(ids), sampling))
        answers = self._ask(fields, adapter, f"writing {asked} completions of each of {len(prompts)} prompts")
        pieces = len(counts)
        rows = [[c for piece in answers[i * pieces : (i + 1) * pieces] for c in piece] for i in range(len(prompts))]
        return [row * (n // asked) for row in rows]

    def update(self, folder: Path, version: int) -> None:
        """See `base.RolloutEngine.update`."""

        def load() -> None:
            self._owned()
            self._load(folder.resolve(), version)

        self._surviving(load, f"taking weights from {folder}")

    def check(self) -> None:
        """See `base.RolloutEngine.check`. A restarted server gets the last update's weights again, with a warning."""

        def check() -> None:
            self._identify()
            self._settle()

        self._surviving(check, "being checked")

    def close(self) -> None:
        """See `base.RolloutEngine.close`. The server runs on, with the last weights."""
        self._api.close()

    # Completions

    def _ask(
        self, fields: Sequence[tuple[list[int], dict[str, Any]]], adapter: bool, doing: str, sign: str = "weight_info"
    ) -> list[list[Completion]]:
        """The completions of each prompt with its sampling fields; what was answered before a loss is kept."""
        answers: dict[int, list[Completion]] = {}

        async def ask(index: int) -> None:
            ids, sampling = fields[index]
            model = self._trained if adapter else self.info.model
            prompt: dict[str, Any] = {"token_ids": ids}
            if self._images is not None and shown(ids):  # decoding and encoding images takes its time
                prompt = await asyncio.to_thread(self._images.over_http, ids)
            request = {"model": model, "sampling_params": sampling, **prompt}
            answers[index] = await self._answer(request, ids, sampling["n"])

        async def ask_all() -> None:
            missing = [index for index in range(len(fields)) if index not in answers]
            await each(missing, ask, at_once=self._concurrency)

        def settled_and_asked() -> None:
            self._settle()
            self._api.run(ask_all, doing, sign=sign)

        self._surviving(settled_and_asked, doing)
        return [answers[index] for index in range(len(fields))]

    async def _answer(self, request: dict[str, Any], ids: list[int], n: int) -> list[Completion]:
        response = await self._api.ask("inference/v1/generate", request)
        for attempt in range(self._retries):
            if response.status_code != HTTPStatus.TOO_MANY_REQUESTS:
                break
            await asyncio.sleep(min(LONGEST_WAIT, max(retry_after(response), 0.25 * 2**attempt)))
            response = await self._api.ask("inference/v1/generate", request)
        if is_missing(response):
            raise self._api.error(f"gives no tokens for tokens; start it as\n  {self._api.start_command()}\n")
        if response.status_code >= 500:
            raise Lost(f"it failed ({refusal(response, API_KEY)})")
        if not response.is_success:
            raise self._api.error(f"completions were refused, {refusal(response, API_KEY)}")
        try:
            answer = response.json()
            completions = self._read(answer, request["model"], n)
        except (ValueError, LookupError, TypeError) as error:
            raise self._api.error(f"an answer without {n} completions ({error}): {response.text[:200]!r}") from error
        made = answer.get("prompt_token_ids")
        if self._images is not None and shown(ids) and (wrong := self._images.difference(ids, made)):
            raise self._api.error(wrong)
        return completions

    def _read(self, answer: Any, model: str, n: int) -> list[Completion]:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if answer["model"] != model or [choice["index"] for choice in choices] != list(range(n)):
            raise ValueError(f"{len(choices)} of {answer['model']}")
        completions: list[Completion] = []
        for choice in choices:
            labels = {span["version"] for span in choice["weight_versions"]}
            if labels != {self._mark}:
                raise Lost(f"completions came from other weights ({', '.join(sorted(labels))})")
            if choice["finish_reason"] not in {"stop", "length"}:
                raise Lost(f"a completion ended with {choice['finish_reason']!r}")
            logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
            completions.append(read_completion(choice["token_ids"], logprobs, choice["finish_reason"]))
        return completions

    # Weights

    def _claim(self) -> None:
        """Label the server as this run's, with its start weights in place, and let it compile what it must."""
        found = self._label()
        if found not in {UNLABELLED, self._mark}:
            logger.warning("%s: has weights of another run (%s); its own are loaded again", self._api.url, found)
            self._start.reset(self._api)
        self._set_label(self._mark)
        two = request_fields(SamplingParams(1), min(2, self._served.max_rows), 0)
        self._ask([([0], two)], False, "writing its first completion", sign="health")

    def _settle(self) -> None:
        """See that the right weights are in place: after a restart, or an update that failed, the last ones are."""
        label = self._owned()
        if label == self._mark:
            return
        if self._last is not None:
            logger.warning("%s: loading %s (version %d) again", self._api.url, *self._last)
            self._load(*self._last)
            return
        if label != UNLABELLED:
            self._start.reset(self._api)
        self._set_label(self._mark)

    def _owned(self) -> str:
        """The server's label; where that was restarted, what it was given is forgotten. EngineError if not ours."""
        label = self._label()
        if label not in {self._mark, f"{self._token}/loading", UNLABELLED}:
            raise self._api.error(f"another run has put its weights there ({label}); give each run a server of its own")
        if label == UNLABELLED:
            self._identify()
            logger.warning("%s: was restarted, and has its start weights", self._api.url)
            self._full.restarted()
            self._adapters.restarted()
        return label

    def _load(self, folder: Path, version: int) -> None:
        # Until it is done the server has a label that no completion is taken with.
        self._set_label(f"{self._token}/loading")
        path = self._adapters if is_adapter(folder) else self._full
        self._trained = path.load(self._api, folder, version) or self.info.model
        self._mark = f"{self._token}/{version}"
        self._set_label(self._mark)
        self._last = folder, version

    def _label(self) -> str:
        return str(self._api.get("weight_info")["weight_version"])

    def _set_label(self, label: str) -> None:
        self._api.post("update_weight_version", {"new_version": label})

    # The server

    def _refuse_other_images(self, served: Served, images: PromptImages) -> None:
        told = {name: served.processing[name] for name in images.pixels if name in served.processing}
        command = f"start it as\n  {self._api.start_command(cpu=served.cpu)}\n"
        if not served.images:
            raise self._api.error(f"reads no images, and prompts show some; serve the vision model, and {command}")
        if told != {name: images.pixels[name] for name in told}:
            raise self._api.error(f"resizes images within {told}, the run within {images.pixels}; {command}")

    def _identify(self) -> None:
        now = read_card(self._api, self._served.card.name)
        if now != self._served.card:
            raise self._api.error(f"serves {now} now; at the start it was {self._served.card}")

    def _surviving(self, work: Callable[[], T], doing: str) -> T:
        """The work's result; where the connection is lost it is done again once the server is back."""
        attempt = 0
        while True:
            try:
                return work()
            except Lost as error:
                if attempt == self._retries:
                    raise self._api.error(f"failed {attempt + 1} times while {doing}, at last: {error}") from error
                logger.warning("%s: %s while %s", self._api.url, error, doing)
            sleep(min(5.0, 0.25 * 2**attempt))  # a server that fails may take a moment to end
            self._api.reach(self._patience)
            attempt += 1
