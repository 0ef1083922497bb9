"""vLLM as a server, by a scripted one: what is asked of it, and everything that can go wrong. `ServerEngine`."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scripted_vllm as vllm
from scripted_vllm import ScriptedVllm
from sparring.lm.base import SamplingParams
from sparring.rollout.base import EngineError, EngineInfo
from sparring.rollout.http import API_KEY, Loop
from sparring.rollout.server import ServerEngine
from tiny_models import save_tiny_llama

GENERATE, RELOAD, LABEL = "/inference/v1/generate", "/collective_rpc", "/update_weight_version"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
PROMPTS = [[1, 2], [3], [4, 5, 6]]
SEEDS = [10, 11, 12]
PARAMS = SamplingParams(8, stop_ids=(2,))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (API_KEY, "HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sparring.rollout.server.sleep", lambda seconds: None)


@pytest.fixture
def server() -> Iterator[ScriptedVllm]:
    running = ScriptedVllm()
    yield running
    running.stop()


Opener = Callable[..., ServerEngine]


@pytest.fixture
def opened(server: ScriptedVllm) -> Iterator[Opener]:
    engines: list[ServerEngine] = []

    def open_engine(**settings: Any) -> ServerEngine:
        # Generous where nothing is to fail, so that a busy machine fails nothing.
        engine = ServerEngine(server.url, **{"timeout": 20.0, "connect_timeout": 20.0, "silence": 20.0, **settings})
        engines.append(engine)
        server.seen.clear()
        return engine

    yield open_engine
    server.released.set()
    for engine in engines:
        engine.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "model")


def adapter_folder(folder: Path, rank: int = 8) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(f'{{"r": {rank}}}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def written(engine: ServerEngine, n: int = 2, *, adapter: bool = True) -> list[list[tuple[int, ...]]]:
    return [[c.ids for c in row] for row in engine.generate(PROMPTS, n, PARAMS, SEEDS, adapter=adapter)]


def expected(n: int = 2) -> list[list[tuple[int, ...]]]:
    return [[(sum(ids), len(ids), j % vllm.MAX_ROWS, 2) for j in range(n)] for ids in PROMPTS]


# What it says and what it is asked


def test_it_says_what_it_is(opened: Opener) -> None:
    assert opened().info == EngineInfo("served", 64, "0.32.0", lora=True, cpu=False)


def test_a_request_has_everything_and_no_default_applies(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened()
    params = SamplingParams(5, 0.7, top_p=0.9, top_k=3, stop_ids=(2, 9), banned_ids=(4,))
    engine.generate([[1, 2]], 3, params, [10], adapter=True)
    (request,) = server.asked(GENERATE)
    assert request["model"] == "served"
    assert request["token_ids"] == [1, 2]
    assert 0 <= request["sampling_params"].pop("seed") < 2**62
    assert request["sampling_params"] == {
        "n": 3,
        "max_tokens": 5,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 3,
        "stop_token_ids": [2, 9],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
        "logit_bias": {"4": -1e9},
    }


def test_completions_come_in_order_with_stop_token_and_log_probabilities(opened: Opener) -> None:
    engine = opened()
    rows = engine.generate(PROMPTS, 2, PARAMS, SEEDS, adapter=True)
    assert [[c.ids for c in row] for row in rows] == expected()
    assert {c.finish for row in rows for c in row} == {"stop"}
    assert rows[0][0].logprobs.tolist() == [-0.5, -1.5, -2.5, -3.5]
    (cut,) = engine.generate([[1]], 1, SamplingParams(4), [0], adapter=True)[0]
    assert (cut.ids, cut.finish) == ((1, 1, 0, 7), "length")


def test_no_prompts_no_request(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened()
    assert engine.generate([], 2, PARAMS, [], adapter=True) == []
    assert server.seen == []


def test_more_completions_than_rows_are_asked_for_in_pieces_with_the_seeds_of_one(
    server: ScriptedVllm, opened: Opener
) -> None:
    engine = opened(concurrency=1)
    assert written(engine, 10) == expected(10)
    sampling = [request["sampling_params"] for request in server.asked(GENERATE)]
    assert [piece["n"] for piece in sampling] == [4, 4, 2] * 3
    # vLLM draws completion j with seed + j.
    assert [piece["seed"] - sampling[0]["seed"] for piece in sampling[:3]] == [0, 4, 8]


def test_greedy_completions_are_asked_for_once(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened()
    (row,) = engine.generate([[1, 2]], 3, SamplingParams(4, 0.0), [0], adapter=True)
    assert [c.ids for c in row] == [(3, 2, 0, 7)] * 3
    assert [request["sampling_params"]["n"] for request in server.asked(GENERATE)] == [1]


def test_only_so_many_requests_are_under_way(server: ScriptedVllm, opened: Opener) -> None:
    def slowly(handler: vllm.Handler, body: Any) -> None:
        with server.lock:
            server.writing += 1
        time.sleep(0.02)
        vllm.usual(handler, body)
        with server.lock:
            server.writing -= 1

    engine = opened(concurrency=3)
    server.always[GENERATE] = slowly
    engine.generate([[i] for i in range(12)], 1, PARAMS, range(12), adapter=True)
    assert 2 <= server.most_writing <= 2 * 3  # each is counted here and by the usual answer


def test_what_does_not_fit_is_refused_before_it_is_asked(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened()
    with pytest.raises(ValueError, match=r"a prompt of 60 tokens and 8 new ones don't fit into the 64 of served"):
        engine.generate([[1] * 60, [2]], 1, PARAMS, [0, 1], adapter=True)
    with pytest.raises(ValueError, match=r"temperature 0\.001 is none for vLLM"):
        engine.generate([[1]], 1, SamplingParams(8, 0.001), [0], adapter=True)
    assert server.seen == []


def test_the_key_is_sent_and_not_told(
    server: ScriptedVllm, opened: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(API_KEY, "s3cret")
    caplog.set_level(logging.DEBUG)
    engine = opened()
    server.script(GENERATE, vllm.status(401))
    with pytest.raises(EngineError, match=f"its key is read from {API_KEY}") as error:
        written(engine)
    assert set(server.keys) == {"Bearer s3cret"}
    assert "s3cret" not in str(error.value) + caplog.text


# Whether it is the right one


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://user:pass@host:1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"rollout\.url"):
        ServerEngine(url)


def test_nobody_there() -> None:
    gone = ScriptedVllm()
    gone.stop()
    with pytest.raises(EngineError, match=rf"{gone.url}: can't be reached, and that for 0\.2 s .*no connection"):
        ServerEngine(gone.url, connect_timeout=0.2)


def test_a_server_that_comes_up_later_is_waited_for() -> None:
    before = ScriptedVllm()
    before.stop()
    started: list[ScriptedVllm] = []
    timer = threading.Timer(0.3, lambda: started.append(ScriptedVllm(port=before.port)))
    timer.start()
    engine = ServerEngine(before.url, connect_timeout=20.0)
    assert engine.info.model == "served"
    engine.close()
    timer.join()
    started[0].stop()


def test_a_model_that_is_not_served(opened: Opener) -> None:
    with pytest.raises(EngineError, match=r"'other' is not served there; served: served; check rollout\.url"):
        opened(model="other")


@pytest.mark.parametrize("body", [b"<html>", {"data": [{}]}, {"data": 3}, [], {"data": [{"id": "m"}]}])
def test_no_vllm_server(server: ScriptedVllm, opened: Opener, body: Any) -> None:
    server.always["/v1/models"] = vllm.status(200, body)
    with pytest.raises(EngineError, match="no vLLM server"):
        opened()


def test_one_without_development_endpoints(server: ScriptedVllm, opened: Opener) -> None:
    server.always["/server_info"] = vllm.missing
    command = rf"VLLM_SERVER_DEV_MODE=1 .*vllm serve org/model --host 127\.0\.0\.1 --port {server.port} .*"
    with pytest.raises(EngineError, match=rf"has no /server_info.*; start it as\n  {command}--enable-scale-out"):
        opened()


def test_one_that_gives_no_tokens_for_tokens(server: ScriptedVllm, opened: Opener) -> None:
    told = {"error": {"message": "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out"}}
    server.always[GENERATE] = vllm.status(403, told)
    with pytest.raises(EngineError, match=r"gives no tokens for tokens; start it as\n.*--enable-scale-out"):
        opened()


def test_one_with_other_log_probabilities(server: ScriptedVllm, opened: Opener) -> None:
    server.logprobs_mode = "raw_logprobs"
    with pytest.raises(EngineError, match=r"its log-probabilities are raw_logprobs; start it as\n.*processed_logprobs"):
        opened()


def test_one_on_a_cpu_that_splits_prompts(server: ScriptedVllm, opened: Opener) -> None:
    server.chunked = True
    opened()
    server.device = "cpu"
    with pytest.raises(EngineError, match=r"must not split prompts; start it as\n.* --no-enable-chunked-prefill"):
        opened()


def test_one_of_an_older_vllm(server: ScriptedVllm, opened: Opener) -> None:
    server.always["/server_info"] = vllm.status(200, {"vllm_config": {"model_config": {}}})
    with pytest.raises(EngineError, match=r"no vLLM server of version 0\.32 or later"):
        opened()


def test_check_finds_another_model(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened()
    engine.check()
    server.root = "org/other"
    with pytest.raises(EngineError, match=r"serves 'served' from org/other with 64 tokens now; at the start it was"):
        engine.check()


# Weights


def test_a_folder_is_reloaded_and_the_caches_cleared(server: ScriptedVllm, opened: Opener, folder: Path) -> None:
    engine = opened()
    engine.update(folder, 3)
    labels = [body["new_version"] for body in server.asked(LABEL)]
    assert [label.partition("/")[2] for label in labels] == ["loading", "3"]
    assert server.asked(RELOAD) == [{"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}]
    paths = [path for path, _ in server.seen]
    assert paths.index(RELOAD) < paths.index("/reset_prefix_cache") < len(paths) - 1
    assert written(engine) == expected()
    assert {request["model"] for request in server.asked(GENERATE)} == {"served"}


def test_adapters_have_names_of_their_own_and_the_base_stays_the_base(
    server: ScriptedVllm, opened: Opener, tmp_path: Path
) -> None:
    engine = opened(concurrency=1)
    adapter = adapter_folder(tmp_path / "adapter")
    written(engine)
    for version in (1, 1, 2):
        engine.update(adapter, version)
        written(engine)
    written(engine, adapter=False)
    loaded = [body["lora_name"] for body in server.asked(LOAD)]
    assert len(set(loaded)) == 3
    assert [body["lora_name"] for body in server.asked(UNLOAD)] == loaded[:2]
    assert {body["lora_path"] for body in server.asked(LOAD)} == {str(adapter)}
    asked = [request["model"] for request in server.asked(GENERATE)]
    assert asked == ["served"] * 3 + [name for name in loaded for _ in range(3)] + ["served"] * 3
    assert server.asked(RELOAD) == []


def test_two_runs_never_name_their_adapters_alike(opened: Opener, server: ScriptedVllm, tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path / "adapter")
    names: set[str] = set()
    for _ in range(2):
        engine = opened()
        engine.update(adapter, 1)
        names |= {body["lora_name"] for body in server.asked(LOAD)}
    assert len(names) == 2


def test_a_folder_that_is_not_there_is_never_asked_for(server: ScriptedVllm, opened: Opener, tmp_path: Path) -> None:
    engine = opened()
    with pytest.raises(EngineError, match=r"nowhere: no config\.json"):
        engine.update(tmp_path / "nowhere", 1)
    assert server.asked(RELOAD) == []


def test_a_folder_of_another_shape_is_never_asked_for(
    server: ScriptedVllm, opened: Opener, folder: Path, tmp_path: Path
) -> None:
    wider = save_tiny_llama(tmp_path / "wider", intermediate_size=96)
    engine = opened()
    engine.update(folder, 1)
    with pytest.raises(EngineError, match=r"wider: not the model that is served.*mlp.down_proj.weight \(here \(32, 96"):
        engine.update(wider, 2)
    assert len(server.asked(RELOAD)) == 1


def test_the_first_update_is_compared_with_what_the_server_was_started_from(
    server: ScriptedVllm, opened: Opener, folder: Path, tmp_path: Path
) -> None:
    server.root = str(folder)
    engine = opened()
    with pytest.raises(EngineError, match="not the model that is served"):
        engine.update(save_tiny_llama(tmp_path / "wider", intermediate_size=96), 1)
    engine.update(save_tiny_llama(tmp_path / "other", seed=1), 1)


def test_tied_embeddings_are_refused_on_a_cpu_only(server: ScriptedVllm, opened: Opener, folder: Path) -> None:
    opened().update(folder, 1)
    server.device = "cpu"
    with pytest.raises(EngineError, match=r"tied, and on a CPU vLLM would keep the old output layer.*prepare_folder"):
        opened().update(folder, 1)


def test_after_a_refused_reload_the_weights_from_before_are_back(
    server: ScriptedVllm, opened: Opener, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save_tiny_llama(tmp_path / "other", seed=1)
    engine = opened()
    engine.update(folder, 1)
    server.script(RELOAD, vllm.status(500, {"error": {"message": "Worker failed"}}))
    with pytest.raises(
        EngineError, match=r"(?s)/collective_rpc was refused, status 500: .*Worker failed.*this very path"
    ):
        engine.update(other, 2)
    assert server.weights == str(folder)
    assert written(engine) == expected()
    assert server.weights == str(folder)
    assert "loading" in caplog.text


def test_a_refused_adapter_names_the_command(server: ScriptedVllm, opened: Opener, tmp_path: Path) -> None:
    engine = opened()
    adapter = adapter_folder(tmp_path / "adapter", rank=12)
    server.script(LOAD, vllm.status(500, {"error": {"message": "LoRA is not enabled"}}), vllm.missing)
    command = r"ALLOW_RUNTIME_LORA_UPDATING=True vllm serve org/model .* --enable-lora --max-lora-rank 16$"
    with pytest.raises(EngineError, match=rf"(?s)LoRA is not enabled.*{command}"):
        engine.update(adapter, 1)
    with pytest.raises(EngineError, match=rf"(?s)has no /v1/load_lora_adapter.*{command}"):
        engine.update(adapter, 1)
    assert written(engine) == expected()


def test_what_is_no_adapter(opened: Opener, tmp_path: Path) -> None:
    engine = opened()
    adapter = adapter_folder(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(EngineError, match="names no rank r"):
        engine.update(adapter, 1)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(EngineError, match="this is no saved adapter"):
        engine.update(adapter, 1)


def test_caches_that_stay_end_in_an_error(server: ScriptedVllm, opened: Opener, folder: Path) -> None:
    engine = opened()
    server.always["/reset_prefix_cache"] = vllm.status(200, {"success": False})
    with pytest.raises(EngineError, match="can't clear its prefix cache"):
        engine.update(folder, 1)


def test_weights_of_an_earlier_run_are_taken_out_at_the_start(
    server: ScriptedVllm, opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    server.label, server.weights = "sparring-0/7", "trained"
    opened()
    assert server.weights == "org/model"
    assert "weights of another run (sparring-0/7)" in caplog.text


def test_two_runs_on_one_server_end_in_an_error(server: ScriptedVllm, opened: Opener) -> None:
    first, second = opened(), opened()
    assert written(second) == expected()
    for use in (first.check, lambda: written(first)):
        with pytest.raises(EngineError, match="another run has put its weights there"):
            use()


# What goes wrong while it writes


@pytest.mark.parametrize("wait", ["0", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_busy_server_is_asked_again(server: ScriptedVllm, opened: Opener, wait: str) -> None:
    engine = opened(concurrency=1)
    server.script(GENERATE, vllm.status(429, Retry_After=wait))
    assert written(engine) == expected()
    assert len(server.asked(GENERATE)) == len(PROMPTS) + 1


def test_a_server_that_stays_busy(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened(retries=1)
    server.always[GENERATE] = vllm.status(429)
    with pytest.raises(EngineError, match="completions were refused, status 429"):
        written(engine)


def test_a_refused_request_is_not_made_again(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened(concurrency=1)
    server.script(GENERATE, vllm.status(400, {"error": {"message": "Token id 99999 is out of vocabulary"}}))
    with pytest.raises(EngineError, match=r"refused, status 400: .*99999 is out of vocabulary"):
        written(engine)
    assert len(server.asked(GENERATE)) == 1


@pytest.mark.parametrize("fault", [vllm.status(500), vllm.status(503), vllm.drops], ids=["500", "503", "dropped"])
def test_after_a_failure_only_what_is_missing_is_asked_again(
    server: ScriptedVllm, opened: Opener, fault: vllm.Reply
) -> None:
    engine = opened(concurrency=1)
    server.script(GENERATE, vllm.usual, fault)
    assert written(engine) == expected()
    assert [request["token_ids"] for request in server.asked(GENERATE)] == [PROMPTS[0], PROMPTS[1], *PROMPTS[1:]]


def test_a_server_that_keeps_failing(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened(retries=2)
    server.always[GENERATE] = vllm.status(500, b"EngineCore encountered an issue")
    message = (
        rf"{server.url}: failed 3 times while writing 2 completions of each of 3 prompts, at last: it failed \(status"
    )
    with pytest.raises(EngineError, match=message):
        written(engine)


def test_a_server_that_is_gone_for_good(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened(connect_timeout=0.3)

    def ends(handler: vllm.Handler, body: Any) -> None:
        threading.Thread(target=server.stop).start()
        server.released.wait(5)
        vllm.drops(handler, body)

    server.script(GENERATE, ends)
    with pytest.raises(EngineError, match=r"can't be reached, and that for 0\.3 s"):
        written(engine)
    with pytest.raises(EngineError, match="can't be reached"):
        engine.check()
    server.stop = lambda: None  # it has been


@pytest.mark.parametrize("sign", ["/weight_info", "/health"])
def test_a_hung_server_is_named(server: ScriptedVllm, opened: Opener, folder: Path, sign: str) -> None:
    """A frozen engine behind a lively front is silent on /weight_info. A reload keeps it busy: there /health counts."""
    engine = opened(silence=0.5)
    hung_path, work = (GENERATE, lambda: written(engine)) if sign == "/weight_info" else (RELOAD, None)
    work = work or (lambda: engine.update(folder, 1))
    server.always[hung_path] = vllm.then(lambda *_: server.always.update({sign: vllm.hung}), vllm.hung)
    doing = "writing 2 completions" if sign == "/weight_info" else f"loading weights from {folder}"
    with pytest.raises(EngineError, match=rf"{server.url}: no sign of life for 0\.5 s while {doing}.*is it hung\?"):
        work()


def test_a_slow_server_that_gives_signs_of_life_has_until_the_limit(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened(timeout=1.5, silence=1.0)
    server.always[GENERATE] = vllm.hung
    with pytest.raises(EngineError, match=r"not done writing 2 completions of each of 3 prompts within 1\.5 s"):
        written(engine)
    assert len(server.asked("/weight_info")) > 2


def test_a_server_that_does_not_answer_a_question(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened(silence=0.3)
    server.always["/weight_info"] = vllm.hung
    with pytest.raises(EngineError, match=r"no answer to /weight_info within 0\.3 s"):
        written(engine)


def test_a_restarted_server_gets_the_last_weights_again(
    server: ScriptedVllm, opened: Opener, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = opened(concurrency=1)
    engine.update(folder, 3)
    server.seen.clear()
    server.script(GENERATE, vllm.usual, vllm.restarts)
    assert written(engine) == expected()
    assert server.weights == str(folder)
    assert [request["token_ids"] for request in server.asked(GENERATE)] == [PROMPTS[0], PROMPTS[1], *PROMPTS[1:]]
    assert "was restarted, and has its start weights" in caplog.text
    assert f"loading {folder} (version 3) again" in caplog.text


def test_a_restarted_server_gets_the_last_adapter_again(server: ScriptedVllm, opened: Opener, tmp_path: Path) -> None:
    engine = opened(concurrency=1)
    engine.update(adapter_folder(tmp_path / "adapter"), 3)
    server.restart()
    server.seen.clear()
    assert written(engine) == expected()
    (loaded,) = server.asked(LOAD)
    assert {request["model"] for request in server.asked(GENERATE)} == {loaded["lora_name"]} == server.adapters
    assert server.asked(UNLOAD) == []


def test_a_restart_before_the_first_update_needs_no_weights(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened()
    server.restart()
    assert written(engine) == expected()
    assert server.asked(RELOAD) == server.asked(LOAD) == []
    assert server.label.startswith("sparring-")


def test_a_restart_while_weights_are_taken(server: ScriptedVllm, opened: Opener, folder: Path) -> None:
    engine = opened()
    server.script(RELOAD, vllm.restarts)
    engine.update(folder, 1)
    assert server.weights == str(folder)
    assert server.label.endswith("/1")


def test_a_restart_while_an_adapter_is_taken(server: ScriptedVllm, opened: Opener, tmp_path: Path) -> None:
    """The adapter from before went with the server: it is not unloaded."""
    engine = opened()
    first, second = (adapter_folder(tmp_path / name) for name in "ab")
    engine.update(first, 1)
    server.script(LOAD, vllm.restarts)
    engine.update(second, 2)
    assert server.asked(UNLOAD) == []
    assert server.asked(LOAD)[-1]["lora_path"] == str(second)
    assert server.label.endswith("/2")
    assert written(engine) == expected()


def test_a_run_whose_server_another_one_has_taken_does_not_take_it_back(
    server: ScriptedVllm, opened: Opener, folder: Path
) -> None:
    first = opened()
    opened()
    with pytest.raises(EngineError, match="another run has put its weights there"):
        first.update(folder, 1)
    assert server.asked(RELOAD) == []


def test_another_model_after_the_restart(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened()

    def changes(handler: vllm.Handler, body: Any) -> None:
        server.root = "org/other"
        vllm.restarts(handler, body)

    server.script(GENERATE, changes)
    with pytest.raises(EngineError, match="serves 'served' from org/other"):
        written(engine)


def test_completions_of_other_weights_are_never_taken(server: ScriptedVllm, opened: Opener, folder: Path) -> None:
    """A restart between the question and the answer: the connection holds, the weights don't."""
    engine = opened(concurrency=1)
    engine.update(folder, 1)
    server.script(GENERATE, vllm.then(lambda *_: server.restart(), vllm.usual))
    assert written(engine) == expected()
    assert server.weights == str(folder)
    assert len(server.asked(GENERATE)) == len(PROMPTS) + 1


def test_a_run_that_takes_the_server_over_meanwhile(server: ScriptedVllm, opened: Opener) -> None:
    engine = opened()
    server.script(GENERATE, vllm.then(lambda *_: vllm.relabel(server, {"new_version": "sparring-x/1"}), vllm.usual))
    with pytest.raises(EngineError, match=r"another run has put its weights there \(sparring-x/1\)"):
        written(engine)


def test_aborted_completions_are_asked_again(server: ScriptedVllm, opened: Opener) -> None:
    def aborts(handler: vllm.Handler, body: Any) -> None:
        answer = vllm.completions(server, body)
        answer["choices"][0]["finish_reason"] = "abort"
        handler.send(200, answer)

    engine = opened(concurrency=1)
    server.script(GENERATE, aborts)
    assert written(engine) == expected()


def change(answer: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer["choices"][0] |= fields
    return answer


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda answer: [answer],
    "another model": lambda answer: answer | {"model": "other"},
    "one too few": lambda answer: answer | {"choices": answer["choices"][1:]},
    "one twice": lambda answer: change(answer, index=0),
    "no label": lambda answer: change(answer, weight_versions=None),
    "no ids": lambda answer: change(answer, token_ids=None),
    "no log-probabilities": lambda answer: change(answer, logprobs=None),
    "ids without log-probabilities": lambda answer: change(answer, token_ids=[1, 2, 3, 4, 5]),
    "NaN": lambda answer: change(answer, token_ids=[1], logprobs={"content": [{"logprob": -9999.0}]}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_is_none(server: ScriptedVllm, opened: Opener, name: str) -> None:
    engine = opened()
    server.always[GENERATE] = lambda handler, body: handler.send(200, BROKEN[name](vllm.completions(server, body)))
    with pytest.raises(EngineError, match="an answer without 2 completions"):
        written(engine)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "choices", "index", "token_ids", "logprobs", "content", "weight_versions"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=JSON | st.binary(max_size=20))
def test_any_answer_ends_in_an_engine_error(server: ScriptedVllm, opened: Opener, body: Any) -> None:
    server.always.pop(GENERATE, None)
    engine = opened(retries=0)
    server.always[GENERATE] = vllm.status(200, body)
    with pytest.raises(EngineError):
        written(engine)
    engine.close()


def test_an_interrupted_wait_ends_the_work() -> None:
    """Ctrl-C reaches the waiting thread; what it waited for must not go on."""
    ended = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            Loop("test").wait_for(work())
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert ended.wait(5)
