"""A real vLLM server rolls out, takes weights, and is killed, frozen and restarted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sparring.lm.base import Completion, SamplingParams
from sparring.rollout.base import EngineError
from sparring.rollout.server import ServerEngine
from tiny_models import save_tiny_llama
from vllm_rollout import RANK, SHAPE, RolloutServer, adapter, gap, scores, untied

pytestmark = pytest.mark.vllm

STOP = 4
PARAMS = SamplingParams(24, stop_ids=(STOP,))
DRAWN = np.random.default_rng(0)
PROMPTS = [[0, *map(int, DRAWN.integers(5, 600, int(length)))] for length in DRAWN.integers(3, 40, 16)]
SEEDS = list(range(len(PROMPTS)))
AGREE = 1e-4

LONG = SamplingParams(400)
"""With MANY, more tokens than a tiny model writes on a CPU in the time that the faults need."""
MANY = PROMPTS * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rollout")


@pytest.fixture(scope="module")
def models(folder: Path) -> list[Path]:
    return [untied(folder, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def adapters(folder: Path, models: list[Path]) -> list[Path]:
    return [adapter(models[0], folder / f"adapter-{seed}", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def server(models: list[Path], folder: Path) -> Iterator[RolloutServer]:
    running = RolloutServer(models[0], folder / "server.log", lora_rank=RANK)
    yield running
    running.end()


Opener = Callable[..., ServerEngine]


@pytest.fixture
def opened(server: RolloutServer) -> Iterator[Opener]:
    engines: list[ServerEngine] = []

    def open_engine(**settings: Any) -> ServerEngine:
        engines.append(ServerEngine(server.up(), **{"timeout": 300.0, "connect_timeout": 200.0, **settings}))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


def write(engine: ServerEngine, params: SamplingParams = PARAMS, *, adapter: bool = True) -> list[list[Completion]]:
    return engine.generate(PROMPTS, 4, params, SEEDS, adapter=adapter)


def ids(rows: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in row] for row in rows]


def test_it_says_what_it_is(opened: Opener, models: list[Path]) -> None:
    info = opened().info
    assert (info.model, info.max_tokens, info.lora) == (str(models[0]), 512, True)
    assert info.vllm.startswith("0.")


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_log_probabilities_are_transformers(opened: Opener, models: list[Path], temperature: float) -> None:
    rows = write(opened(), SamplingParams(24, temperature, stop_ids=(STOP,)))
    assert gap(models[0], PROMPTS, rows, temperature or 1.0) < AGREE
    for completion in (completion for row in rows for completion in row):
        assert STOP not in completion.ids[:-1]
        assert (completion.ids[-1] == STOP) == (completion.finish == "stop")
        assert len(completion.ids) == 24 or completion.finish == "stop"
    if temperature == 0:
        assert all(len(set(row)) == 1 for row in ids(rows))
    else:
        assert {completion.finish for row in rows for completion in row} == {"stop", "length"}


def test_filters_give_the_probability_of_the_draw(opened: Opener, models: list[Path]) -> None:
    """Renormalised over what they keep: larger by at most the mass that they may cut."""
    rows = write(opened(), SamplingParams(24, top_p=0.5))
    flat = np.concatenate([completion.logprobs for row in rows for completion in row])
    whole = np.concatenate([one.numpy() for one in scores(models[0], PROMPTS, rows)])
    assert (flat - whole).min() > 0.1
    assert (flat - whole).max() < -np.log(0.5) + AGREE


def test_banned_ids_are_never_drawn(opened: Opener) -> None:
    rows = write(opened(), SamplingParams(24, banned_ids=tuple(range(300))))
    assert min(token for row in rows for completion in row for token in completion.ids) >= 300


def test_draws_depend_on_the_seed_alone(opened: Opener) -> None:
    engine = opened()
    rows = ids(write(engine))
    assert ids(write(engine)) == rows
    alone = [engine.generate([p], 2, PARAMS, [s], adapter=True) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert [ids(one)[0] for one in alone] == [row[:2] for row in rows]
    same = ids(engine.generate([PROMPTS[0]] * 8, 4, PARAMS, range(8), adapter=True))
    assert len({one for row in same for one in row}) == 32


def test_full_weights_are_taken(opened: Opener, models: list[Path]) -> None:
    engine = opened()
    before = ids(write(engine))
    for version, model in ((1, models[1]), (2, models[0])):
        engine.update(model, version)
        rows = write(engine)
        assert gap(model, PROMPTS, rows) < AGREE
        assert (ids(rows) == before) == (version == 2)


def test_adapters_are_taken_and_the_base_stays_the_base(
    opened: Opener, models: list[Path], adapters: list[Path]
) -> None:
    engine = opened()
    base = ids(write(engine))
    for version, one in enumerate((*adapters, adapters[0]), 1):
        engine.update(one, version)
        rows = write(engine)
        assert gap(one, PROMPTS, rows) < AGREE
        assert gap(models[0], PROMPTS, rows) > 0.05
        assert ids(write(engine, adapter=False)) == base


def test_weights_that_do_not_fit_change_nothing(
    opened: Opener, models: list[Path], adapters: list[Path], folder: Path
) -> None:
    wide = untied(folder / "wide", intermediate_size=96)
    bad = [folder / "nowhere", wide, adapter(models[0], folder / "large", 3, 2 * RANK), adapter(wide, folder / "aw", 4)]
    for now in (models[1], adapters[0]):
        engine = opened()  # with the start weights: adapters belong to those
        engine.update(now, 1)
        for other in bad:
            with pytest.raises(EngineError):
                engine.update(other, 2)
            assert gap(now, PROMPTS, write(engine)) < AGREE


def test_the_server_survives_a_folder_that_only_it_cannot_read(
    opened: Opener, models: list[Path], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    engine = opened()
    engine.update(models[1], 1)
    monkeypatch.setattr("sparring.rollout.weights.check_folder", lambda *_, **__: None)
    with pytest.raises(EngineError, match=r"(?s)/collective_rpc was refused.*It must see .*elsewhere under this very"):
        engine.update(folder / "elsewhere", 2)
    assert gap(models[1], PROMPTS, write(engine)) < AGREE


def test_what_the_server_refuses(opened: Opener) -> None:
    with pytest.raises(EngineError, match="'other' is not served there"):
        opened(model="other")
    with pytest.raises(EngineError, match="Token id 99999 is out of vocabulary"):
        opened().generate([[99999]], 1, PARAMS, [0], adapter=True)


def test_a_second_run_takes_the_server_over_and_the_first_one_ends(opened: Opener, models: list[Path]) -> None:
    first = opened()
    first.update(models[1], 1)
    second = opened()
    assert gap(models[0], PROMPTS, write(second)) < AGREE
    with pytest.raises(EngineError, match="another run has put its weights there"):
        write(first)


# Faults


@pytest.mark.parametrize("part", ["freeze", "freeze_engine"])
def test_a_frozen_server_is_named_in_time_and_used_again_afterwards(
    opened: Opener, server: RolloutServer, models: list[Path], part: str
) -> None:
    engine = opened(silence=10.0)
    timer = threading.Timer(1.5, getattr(server, part))
    timer.start()
    try:
        with pytest.raises(
            EngineError, match=rf"{server.url}: no sign of life for 10 s while writing 4 completions of"
        ):
            engine.generate(MANY, 4, LONG, range(len(MANY)), adapter=True)
    finally:
        timer.join()
        server.thaw()
    assert gap(models[0], PROMPTS, write(opened())) < AGREE


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_server_restarted_while_it_writes_writes_on_with_the_last_weights(
    opened: Opener,
    server: RolloutServer,
    models: list[Path],
    adapters: list[Path],
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    weights = models[1] if kind == "full" else adapters[0]
    engine = opened()
    engine.update(weights, 5)
    timer = threading.Timer(1.5, lambda: (server.kill(), server.start()))
    timer.start()
    rows = engine.generate(MANY, 2, LONG, range(len(MANY)), adapter=True)
    timer.join()
    assert "was restarted, and has its start weights" in caplog.text
    assert f"loading {weights} (version 5) again" in caplog.text
    assert gap(weights, MANY[:4], rows[:4]) < AGREE
    assert {len(completion.ids) for row in rows for completion in row} == {400}
    engine.check()


def test_a_server_that_is_killed_ends_in_an_error(opened: Opener, server: RolloutServer, models: list[Path]) -> None:
    engine = opened(connect_timeout=3.0)
    timer = threading.Timer(1.5, server.kill)
    timer.start()
    with pytest.raises(EngineError, match=rf"{server.url}: can't be reached, and that for 3 s"):
        engine.generate(MANY, 4, LONG, range(len(MANY)), adapter=True)
    timer.join()
    with pytest.raises(EngineError, match="can't be reached"):
        engine.check()
    with pytest.raises(EngineError, match="can't be reached"):
        engine.update(models[1], 1)


def test_tied_embeddings_part_on_a_cpu_and_are_refused(folder: Path) -> None:
    """vLLM's CPU backend packs the output layer when it starts; a reload leaves that as it was and says nothing."""
    tied = [save_tiny_llama(folder / f"trap-{seed}", seed=seed, **SHAPE) for seed in (0, 1)]
    server = RolloutServer(tied[0], folder / "tied.log")
    try:
        engine = ServerEngine(server.up(), timeout=300.0)
        assert not engine.info.lora
        assert gap(tied[0], PROMPTS, write(engine)) < AGREE
        with pytest.raises(EngineError, match=r"tied, and on a CPU vLLM would keep the old output layer"):
            engine.update(tied[1], 1)
        request = {"method": "reload_weights", "kwargs": {"weights_path": str(tied[1])}}
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60.0) as client:
            assert client.post("/collective_rpc", json=request).is_success
            assert client.post("/update_weight_version", json={"new_version": engine._mark}).is_success
        assert gap(tied[1], PROMPTS, write(engine)) > 0.1
        engine.close()
    finally:
        server.end()
