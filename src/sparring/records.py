"""What a step leaves behind besides its figures: its seconds by phase, and its turns as a table."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from sparring.gallery import name_of, pictures_in
from sparring.types import Advantages, Payoffs, Turn, text_of


class Clock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The phase `name` ended now."""
        now = time.perf_counter()
        self._laps[f"seconds/{name}"] = now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds from the start to the last lap."""
        return self._last - self._start

    def figures(self) -> dict[str, float]:
        """seconds/<phase> of each lap, and seconds/step."""
        return {**self._laps, "seconds/step": self.total}


def turn_rows(
    turns: Sequence[Turn], payoffs: Payoffs, advantages: Advantages, trained: Collection[Turn]
) -> list[dict[str, Any]]:
    """Turns as rows of a table: one a turn, parents by index. trained: those the update saw.

    A turn whose prompt shows pictures has `images` besides: their names, see `gallery`.
    """
    index = {turn: number for number, turn in enumerate(turns)}
    return [
        {
            "index": index[turn],
            "parent": -1 if turn.parent is None else index[turn.parent],
            "role": turn.role.name,
            "model": turn.model,
            "prompt": text_of(turn.prompt.messages[-1]),
            "text": turn.text,
            "thought": turn.thought,
            "finish": turn.finish,
            "prompt_tokens": len(turn.prompt_ids),
            "completion_tokens": len(turn.completion_ids),
            "payoff": payoffs[turn].total if turn in payoffs else None,
            "parts": json.dumps(payoffs[turn].parts) if turn in payoffs else None,
            "advantage": advantages.get(turn),
            "trained": turn in trained,
            "info": json.dumps(dict(turn.info), default=_plain),
            **_images(turn),
        }
        for turn in turns
    ]


def _images(turn: Turn) -> dict[str, list[str]]:
    names = [name_of(picture) for picture in pictures_in(turn.prompt)]
    return {"images": names} if names else {}


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
