"""Several servers as one: who writes what, who gets the weights, and what happens when one fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.lm.base import Completion, SamplingParams
from sparring.rollout.base import EngineError, EngineInfo
from sparring.rollout.several import Engines
from sparring.settings import RunConfig

INFO = EngineInfo("model", 128, "0.32.0", lora=True, cpu=True)


class Echo:
    """Writes prompt, seed and copy's number; remembers what it was told."""

    def __init__(self, info: EngineInfo = INFO, fails: str | None = None) -> None:
        self.info, self.fails = info, fails
        self.asked = 0
        self.told: list[object] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, params: SamplingParams, seeds: Sequence[int], *, adapter: bool
    ) -> list[list[Completion]]:
        self.asked += len(prompts)
        return [
            [
                Completion((*ids, seed, copy, int(adapter)), np.zeros(len(ids) + 3, np.float32), "stop")
                for copy in range(n)
            ]
            for ids, seed in zip(prompts, seeds, strict=True)
        ]

    def update(self, folder: Path, version: int) -> None:
        if self.fails:
            raise EngineError(self.fails)
        self.told.append((folder, version))

    def check(self) -> None:
        self.told.append("check")

    def close(self) -> None:
        self.told.append("close")


@given(lengths=st.lists(st.integers(1, 40), max_size=12), count=st.integers(1, 4), adapter=st.booleans())
def test_several_write_what_one_would(lengths: list[int], count: int, adapter: bool) -> None:
    prompts = [tuple(range(length)) for length in lengths]
    seeds = list(range(100, 100 + len(lengths)))
    one = Echo().generate(prompts, 2, SamplingParams(8), seeds, adapter=adapter)
    several = Engines([Echo() for _ in range(count)])
    found = several.generate(prompts, 2, SamplingParams(8), seeds, adapter=adapter)
    several.close()
    assert [[row.ids for row in rows] for rows in found] == [[row.ids for row in rows] for rows in one]


def test_the_work_is_shared_and_all_get_the_weights(tmp_path: Path) -> None:
    engines = [Echo(), Echo()]
    both = Engines(engines)
    both.generate([(1, 2)] * 10, 1, SamplingParams(8), range(10), adapter=False)
    both.update(tmp_path, 3)
    both.check()
    both.close()
    assert [engine.asked for engine in engines] == [5, 5]
    assert [engine.told for engine in engines] == [[(tmp_path, 3), "check", "close"]] * 2


def test_the_shortest_context_counts() -> None:
    assert Engines([Echo(), Echo(replace(INFO, max_tokens=64))]).info.max_tokens == 64


def test_servers_that_differ_are_refused() -> None:
    with pytest.raises(EngineError, match=r"differ(.|\n)*0\.33"):
        Engines([Echo(), Echo(replace(INFO, vllm="0.33.0"))])


def test_one_that_fails_is_heard_and_so_are_all_others(tmp_path: Path) -> None:
    engines = [Echo(fails="the first is gone"), Echo(), Echo(fails="the third too")]
    with pytest.raises(EngineError, match="the first is gone") as caught:
        Engines(engines).update(tmp_path, 1)
    assert caught.value.__notes__ == ["and the third too"]
    assert engines[1].told == [(tmp_path, 1)]


@pytest.mark.parametrize(
    ("given_url", "urls"),
    [(None, ()), ("http://a:1", ("http://a:1",)), ("http://a:1, http://b:2,", ("http://a:1", "http://b:2")), ("", ())],
)
def test_addresses(given_url: str | None, urls: tuple[str, ...]) -> None:
    assert RunConfig.model_validate({"rollout": {"engine": "vllm", "url": given_url}}).rollout.url == urls


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout": {"engine": "vllm", "url": "http://a:1,http://a:1"}}, "http://a:1 is named twice"),
        (
            {
                "rollout": {"engine": "vllm", "url": "http://a:1", "reference_url": "http://b:1"},
                "model": {"tuning": "lora"},
            },
            "leave rollout.reference_url unset",
        ),
        (
            {"rollout": {"engine": "vllm", "url": "http://a:1"}, "model": {"tuning": "lora", "reference": "other"}},
            "leave model.reference unset",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(settings)
