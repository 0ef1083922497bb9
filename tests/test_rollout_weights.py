"""What is sent to vLLM, what lies in folders, weights by NCCL. `rollout.base`, `rollout.folders`, `rollout.nccl`."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import scripted_vllm as vllm
from scripted_vllm import ScriptedVllm
from sparring.lm.base import SamplingParams
from sparring.lm.hub import LoadError
from sparring.lm.load import load_model
from sparring.rollout.base import (
    LORA_RANKS,
    EngineError,
    read_completion,
    request_fields,
    serve_command,
    served_rank,
)
from sparring.rollout.folders import adapter_rank, check_folder, prepare_folder, tensor_shapes, weight_files
from sparring.rollout.http import Api
from sparring.rollout.nccl import Control, NcclGroup, NcclTransfer, Source, nccl_sender
from sparring.rollout.process import ProcessEngine
from sparring.rollout.server import ServerEngine
from tiny_models import save_tiny_llama, save_tiny_qwen3

# What is sent, what comes back


@given(st.integers(0, 2**40), st.integers(1, 5000))
def test_near_seeds_share_no_draws(seed: int, distance: int) -> None:
    """vLLM draws completion j with seed + j: a prompt's seeds must not run into the next one's."""
    a, b = (request_fields(SamplingParams(1), 8, each)["seed"] for each in (seed, seed + distance))
    assert abs(a - b) > 16384  # the most completions that vLLM takes in a request
    assert 0 <= a < 2**62


def test_the_same_seed_is_the_same_request() -> None:
    assert request_fields(SamplingParams(3), 2, 5) == request_fields(SamplingParams(3), 2, 5)


@pytest.mark.parametrize(
    ("ids", "logprobs", "message"),
    [
        ([1, 2], [-1.0], "2 tokens with 1 log-prob"),
        ([], [], "0 tokens"),
        ([1], [float("nan")], "no numbers"),
        ([1], [-float("inf")], "no numbers"),
        ([1], [-9999.0], "are the weights finite"),
    ],
)
def test_a_completion_that_is_none(ids: list[int], logprobs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_completion(ids, logprobs, "stop")


def test_the_command_has_all_that_is_needed() -> None:
    argv, environment = serve_command("folder", lora_rank=12, port=8001, dtype="bfloat16", max_len=4096, seed=3)
    assert argv[:3] == ["vllm", "serve", "folder"]
    options = dict(pairwise(argv))
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "8001"
    assert options["--dtype"] == "bfloat16"
    assert options["--max-model-len"] == "4096"
    assert options["--seed"] == "3"
    assert options["--max-lora-rank"] == "16"
    assert options["--logprobs-mode"] == "processed_logprobs"
    assert options["--generation-config"] == "vllm"
    assert {"--enable-lora", "--enable-scale-out"} < set(argv)
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


def test_the_command_has_nothing_that_is_not_needed() -> None:
    argv, environment = serve_command("folder")
    optional = {"--enable-lora", "--max-model-len", "--weight-transfer-config", "--no-enable-chunked-prefill"}
    assert not optional & set(argv)
    assert "--no-enable-chunked-prefill" in serve_command("folder", cpu=True)[0]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environment
    assert json.loads(serve_command("folder", nccl=True)[0][-1]) == {"backend": "nccl"}


@given(st.integers(1, 512))
def test_ranks_are_served_by_the_next_larger_one(rank: int) -> None:
    assert served_rank(rank) == min(most for most in LORA_RANKS if most >= rank)


def test_no_rank_holds_larger_adapters() -> None:
    with pytest.raises(ValueError, match=r"model\.lora\.rank 513 is more than vLLM's largest, 512"):
        served_rank(513)


# Folders


def logits(folder: Path) -> torch.Tensor:
    model = load_model(folder)
    with torch.no_grad():
        return model(torch.arange(40).reshape(4, 10)).logits


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
@pytest.mark.parametrize("save", [save_tiny_llama, save_tiny_qwen3])
def test_a_prepared_folder_is_the_same_model_untied(tmp_path: Path, save: Callable[..., Path], shard: str) -> None:
    folder = save(tmp_path / "tied", **({} if save is save_tiny_llama else {"tie_word_embeddings": True}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=shard)
    assert len(weight_files(folder)) == 1 or shard == "60KB"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    out = prepare_folder(folder, tmp_path / "out")
    assert out == tmp_path / "out"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    shapes = tensor_shapes(out)
    assert shapes == {**tensor_shapes(folder), "lm_head.weight": shapes["model.embed_tokens.weight"]}
    assert torch.equal(logits(out), logits(folder))
    untied = AutoModelForCausalLM.from_pretrained(out)
    assert not untied.config.tie_word_embeddings
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert (out / "tokenizer.json").is_file()


def test_a_folder_is_prepared_again_over_an_old_one(tmp_path: Path) -> None:
    first, second = (save_tiny_llama(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    out = prepare_folder(first, tmp_path / "out")
    assert torch.equal(logits(prepare_folder(second, out)), logits(second))
    AutoModelForCausalLM.from_pretrained(second).save_pretrained(second, max_shard_size="60KB")
    (second / "model.safetensors").unlink()
    assert len(list(prepare_folder(second, out).glob("*.safetensors"))) == len(weight_files(second)) + 1


def test_an_untied_folder_is_as_it_is_needed(tmp_path: Path) -> None:
    folder = save_tiny_qwen3(tmp_path / "model")
    assert prepare_folder(folder, tmp_path / "out") == folder
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no such folder"):
        weight_files(tmp_path / "nowhere")
    with pytest.raises(EngineError, match=r"can't be taken: .*no config\.json"):
        check_folder(tmp_path, None)
    with pytest.raises(EngineError, match="no saved adapter"):
        adapter_rank(tmp_path)
    folder = save_tiny_llama(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(EngineError, match=r"model\.safetensors: can't be read .*save it again"):
        check_folder(folder, None)


def test_a_model_without_its_own_output_layer_for_an_engine_that_has_one(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "tied")
    served = tensor_shapes(prepare_folder(folder, tmp_path / "out"))
    with pytest.raises(EngineError, match=r"made by prepare_folder.*missing: lm_head\.weight"):
        check_folder(folder, served)
    with pytest.raises(EngineError, match=r"unexpected: lm_head\.weight"):
        check_folder(tmp_path / "out", tensor_shapes(folder))


# NCCL


class Peer:
    """vLLM's sender as it uses client and source; broadcasts are kept."""

    def __init__(self, control: Control, source: Source, group: NcclGroup) -> None:
        self.control, self.source, self.group = control, source, group
        self.sent: list[dict[str, torch.Tensor]] = []
        self.control.init_weight_transfer_engine({"master_address": group.address, "world_size": group.world_size})

    def send_weights(self) -> None:
        meta = self.source.metadata()
        self.control.start_weight_update()
        info = {
            "names": [one.name for one in meta],
            "dtype_names": [str(one.dtype).removeprefix("torch.") for one in meta],
            "shapes": [list(one.shape) for one in meta],
        }
        self.control.update_weights(info)
        tensors = list(self.source)
        assert [(n, t.dtype, tuple(t.shape)) for n, t in tensors] == [(m.name, m.dtype, m.shape) for m in meta]
        self.sent.append(dict(tensors))
        self.control.finish_weight_update()


@pytest.fixture
def server() -> Iterator[ScriptedVllm]:
    running = ScriptedVllm()
    yield running
    running.stop()


Opened = tuple[ServerEngine, list[Peer]]
TRANSFER = ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update")


@pytest.fixture
def opened(server: ScriptedVllm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    monkeypatch.setattr("sparring.rollout.server.sleep", lambda seconds: None)
    peers: list[Peer] = []

    def connect(*arguments: Any) -> Peer:
        peers.append(Peer(*arguments))
        return peers[-1]

    path = NcclTransfer("10.0.0.1", 5555, device="cpu", connect=connect)
    engine = ServerEngine(server.url, connect_timeout=20.0, weights=path)
    server.seen.clear()
    yield engine, peers
    server.released.set()
    engine.close()


def steps(server: ScriptedVllm) -> list[str]:
    return [path[1:] for path, _ in server.seen if path[1:] in TRANSFER]


def test_weights_are_sent_as_vllm_asks_for_them(server: ScriptedVllm, opened: Opened, tmp_path: Path) -> None:
    engine, peers = opened
    folders = [save_tiny_llama(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    for version, folder in enumerate(folders, 1):
        engine.update(folder, version)
    (peer,) = peers
    assert steps(server) == [*TRANSFER, *TRANSFER[1:]]
    assert peer.group == NcclGroup("10.0.0.1", 5555, 3)  # the scripted server has two workers
    assert server.asked("/init_weight_transfer_engine")[0]["init_info"]["world_size"] == 3
    shapes = tensor_shapes(folders[0])
    (info, _) = (body["update_info"] for body in server.asked("/update_weights"))
    assert dict(zip(info["names"], map(tuple, info["shapes"]), strict=True)) == shapes
    assert set(info["dtype_names"]) == {"float32"}
    for folder, sent in zip(folders, peer.sent, strict=True):
        saved = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert sent.keys() == shapes.keys()
        assert all(torch.equal(sent[name], saved[name]) for name in sent)
    assert server.asked("/collective_rpc") == []
    assert server.asked("/reset_prefix_cache")
    assert server.label.endswith("/2")
    assert len(engine.generate([[1]], 1, SamplingParams(4), [0], adapter=True)) == 1


def test_a_restarted_server_is_met_anew(server: ScriptedVllm, opened: Opened, tmp_path: Path) -> None:
    engine, peers = opened
    engine.update(save_tiny_llama(tmp_path / "model"), 1)
    server.restart()
    engine.check()
    assert [len(peer.sent) for peer in peers] == [1, 1]
    assert server.label.endswith("/1")


def test_a_transfer_that_fails_is_not_used_again(server: ScriptedVllm, opened: Opened, tmp_path: Path) -> None:
    engine, peers = opened
    folder = save_tiny_llama(tmp_path / "model")
    engine.update(folder, 1)
    server.script("/update_weights", vllm.status(500, {"error": {"message": "NCCL error"}}))
    with pytest.raises(EngineError, match=r"/update_weights was refused, status 500.*NCCL error"):
        engine.update(folder, 2)
    engine.check()
    assert [len(peer.sent) for peer in peers] == [1, 1]


def test_a_peer_that_never_comes(server: ScriptedVllm, tmp_path: Path) -> None:
    """NCCL itself waits for ever."""
    released = threading.Event()
    path = NcclTransfer("10.0.0.1", 5555, device="cpu", connect=lambda *_: released.wait(30))  # pyright: ignore
    engine = ServerEngine(server.url, connect_timeout=20.0, timeout=0.5, weights=path)
    with pytest.raises(EngineError, match=r"no weights sent by NCCL within 0\.5 s"):
        engine.update(save_tiny_llama(tmp_path / "model"), 1)
    released.set()
    engine.close()


def test_what_does_not_fit_is_not_sent(server: ScriptedVllm, opened: Opened, tmp_path: Path) -> None:
    engine, _ = opened
    engine.update(save_tiny_llama(tmp_path / "model"), 1)
    with pytest.raises(EngineError, match="not the model that is served"):
        engine.update(save_tiny_llama(tmp_path / "wider", intermediate_size=96), 2)
    assert steps(server) == list(TRANSFER)


def test_the_rest_of_the_protocol(server: ScriptedVllm) -> None:
    api = Api(server.url, limit=10.0, silence=10.0, connections=1)
    Control(api).shutdown_weight_transfer_engine()
    Control(api).finish_weight_update("7")
    assert server.seen == [
        ("/shutdown_weight_transfer_engine", None),
        ("/finish_weight_update", {"weight_version": "7"}),
    ]
    api.close()


# Where vLLM is absent


@pytest.mark.skipif("vllm" in sys.modules, reason="vLLM is here")
def test_vllm_in_this_process_and_nccl_say_what_to_install(server: ScriptedVllm, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"pip install 'vllm>=0\.32'; or use a server"):
        ProcessEngine(tmp_path)
    api = Api(server.url, limit=10.0, silence=10.0, connections=1)
    with pytest.raises(EngineError, match=r"pip install 'vllm>=0\.32'"):
        nccl_sender(Control(api), Source("cpu"), NcclGroup("10.0.0.1", 5555, 2))
    api.close()


def test_log_probabilities_are_float32() -> None:
    completion = read_completion([1, 2], [-0.5, -1.25], "length")
    assert completion.logprobs.dtype == np.float32


def test_a_tied_model_in_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_llama(Path("tied"))
    made = prepare_folder(Path("tied"), Path("made"))
    assert made == Path("made")
    shapes = tensor_shapes(made)
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"]
