"""What a vLLM server says of itself: which model it serves, and whether it was started as is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparring.rollout.http import Api

UNLIMITED = 999
"""vLLM's own limit of images a prompt where none is set."""


@dataclass(frozen=True)
class Card:
    """A base model there: its name, what it was started from (a folder there or a hub id), most tokens of a row."""

    name: str
    root: str
    max_tokens: int

    def __str__(self) -> str:
        return f"{self.name!r} from {self.root} with {self.max_tokens} tokens"


@dataclass(frozen=True)
class Served:
    """A server: its model, vLLM's version, whether it takes adapters and is on a CPU, most completions a request.

    images: most of a prompt; 0: its model reads text only. processing: what it was told of how they are processed.
    """

    card: Card
    vllm: str
    lora: bool
    cpu: bool
    max_rows: int
    images: int
    processing: Mapping[str, Any]


def read_served(api: Api, model: str | None) -> Served:
    """What a server serves. Raises EngineError where that is no vLLM server, or not started as is needed."""
    card = read_card(api, model)
    api.served = card.root
    try:
        vllm = str(api.get("version")["version"])
        settings = api.get("server_info?config_format=json", limit=api.limit)["vllm_config"]
        mode = settings["model_config"]["logprobs_mode"]
        lora = settings["lora_config"] is not None
        scheduler = settings["scheduler_config"]
        max_rows, chunked = int(scheduler["max_num_seqs"]), bool(scheduler["enable_chunked_prefill"])
        cpu = "cpu" in str(settings["device_config"])
        images, processing = _images(settings["model_config"].get("multimodal_config"))
    except (LookupError, TypeError, AttributeError) as error:
        raise api.error(f"no vLLM server of version 0.32 or later ({type(error).__name__}: {error})") from error
    if mode != "processed_logprobs":
        raise api.error(f"its log-probabilities are {mode}; start it as\n  {api.start_command(cpu=cpu)}\n")
    if cpu and chunked:  # "CPU Generator does not use offset" would end it in the midst of a batch
        raise api.error(f"on a CPU it must not split prompts; start it as\n  {api.start_command(cpu=True)}\n")
    return Served(card, vllm, lora, cpu, max_rows, images, processing)


def _images(settings: Mapping[str, Any] | None) -> tuple[int, Mapping[str, Any]]:
    if settings is None or settings["language_model_only"]:
        return 0, {}
    limit = settings["limit_per_prompt"].get("image")
    return UNLIMITED if limit is None else int(limit["count"]), settings["mm_processor_kwargs"] or {}


def read_card(api: Api, model: str | None) -> Card:
    """A base model that is served; None: the first one. Raises EngineError."""
    answer = api.get("v1/models")
    try:
        found = [card for card in answer["data"] if card.get("parent") is None]
        cards = {card["id"]: Card(card["id"], card["root"], int(card["max_model_len"])) for card in found}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise api.error(f"no vLLM server: /v1/models gave {str(answer)[:200]}") from error
    name = model or next(iter(cards), None)
    if name not in cards:
        raise api.error(f"{model!r} is not served there; served: {', '.join(map(str, cards)) or 'nothing'}")
    return cards[name]
