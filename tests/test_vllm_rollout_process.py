"""vLLM in this process: a script that its interpreter runs, and what transformers says of the result here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.lm.base import Completion
from tiny_models import save_tiny_llama
from vllm_rollout import RANK, SHAPE, adapter, gap, untied
from vllm_server import _environment, vllm_python

pytestmark = pytest.mark.vllm

SOURCE = Path(__file__).parents[1] / "src"
AGREE = 1e-4
DRAWN = np.random.default_rng(0)
PROMPTS = [[0, *map(int, DRAWN.integers(5, 600, int(length)))] for length in DRAWN.integers(3, 40, 8)]

SCRIPT = """
import json, sys
from pathlib import Path

from sparring.lm.base import SamplingParams
from sparring.rollout.base import EngineError
from sparring.rollout.process import ProcessEngine

given = json.loads(Path(sys.argv[1]).read_text())
params = SamplingParams(16, stop_ids=(4,))
done = {}


def write(name, **more):
    settings = {"n": 4, "adapter": True, "temperature": 1.0, **more}
    drawn = SamplingParams(16, settings["temperature"], stop_ids=(4,))
    seeds = range(len(given["prompts"]))
    rows = engine.generate(given["prompts"], settings["n"], drawn, seeds, adapter=settings["adapter"])
    done[name] = [[(c.ids, c.logprobs.tolist(), c.finish) for c in row] for row in rows]


def refused(name, work):
    try:
        work()
    except EngineError as error:
        done[name] = str(error)


if __name__ == "__main__":
    start, other, one, wide, large, tied = map(Path, given["folders"])
    refused("not there", lambda: ProcessEngine(start / "nowhere", eager=True))
    engine = ProcessEngine(start, lora_rank=given["rank"], dtype="float32", memory=0.5, eager=True)
    info = engine.info
    done["info"] = [info.model, info.max_tokens, info.lora, info.cpu]
    done["nothing"] = engine.generate([], 2, params, [], adapter=True)
    write("start")
    write("start again", n=2)
    write("cooler", temperature=0.7)
    write("greedy", temperature=0.0)
    engine.update(one, 1)
    write("adapter")
    write("base", adapter=False)
    for name, folder in (("wide", wide), ("large", large), ("tied", tied), ("nowhere", start / "nowhere")):
        refused(name, lambda: engine.update(folder, 2))
    write("adapter still")
    engine.update(other, 3)
    write("other", adapter=False)
    engine.check()
    refused("out of vocabulary", lambda: engine.generate([[99999]], 1, params, [0], adapter=False))
    write("other still", adapter=False)
    engine.close()
    Path(sys.argv[2]).write_text(json.dumps(done))
"""

SENDER = """
import sys
from pathlib import Path

import torch
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient

from sparring.rollout.folders import tensor_shapes
from sparring.rollout.nccl import Control, Source


class Server:
    asked = []

    def post(self, path, body=None, *, doing=None):
        self.asked.append((path, body))


class Group:
    sent = []

    def broadcast(self, tensor, src, stream):
        self.sent.append((tensor.clone(), src))


if __name__ == "__main__":
    torch.cuda.current_stream = lambda *_: None
    NCCLTrainerInitInfo("10.0.0.1", 5555, 3, rank=0)
    source = Source("cpu")
    source.folder = Path(sys.argv[1])
    control = Control(Server())
    assert isinstance(control, VLLMWeightSyncClient)
    sender = NCCLTrainerWeightTransferEngine(client=control, source=source, packed=False)
    sender.model_update_group = Group()
    sender.send_weights()
    shapes = tensor_shapes(source.folder)
    paths = [path for path, _ in Server.asked]
    assert paths == ["start_weight_update", "update_weights", "finish_weight_update"], paths
    info = dict(Server.asked)["update_weights"]["update_info"]
    assert info["names"] == list(shapes) and set(info["dtype_names"]) == {"float32"}
    assert [tuple(shape) for shape in info["shapes"]] == list(shapes.values())
    assert [tuple(tensor.shape) for tensor, _ in Group.sent] == list(shapes.values())
    print("sent", len(Group.sent))
"""


def run(script: str, folder: Path, *arguments: Path) -> str:
    """The output of a script that vLLM's interpreter runs, with this package beside it."""
    file = folder / "script.py"
    file.write_text(script)
    done = subprocess.run(
        [vllm_python(), str(file), *map(str, arguments)],
        env=_environment() | {"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The start, another one, an adapter, and what does not fit: wider weights, a larger adapter, tied embeddings."""
    folder = tmp_path_factory.mktemp("process")
    start, other = (untied(folder, seed) for seed in (0, 1))
    wide = untied(folder / "wide", intermediate_size=96)
    one, large = adapter(start, folder / "one", 1), adapter(start, folder / "large", 2, 2 * RANK)
    return [start, other, one, wide, large, save_tiny_llama(folder / "tied", **SHAPE)]


@pytest.fixture(scope="module")
def done(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("script")
    given = {"prompts": PROMPTS, "rank": RANK, "folders": list(map(str, folders))}
    (folder / "given.json").write_text(json.dumps(given))
    run(SCRIPT, folder, folder / "given.json", folder / "done.json")
    return json.loads((folder / "done.json").read_text())


def rows(written: list[list[Any]]) -> list[list[Completion]]:
    return [[Completion(tuple(ids), np.float32(logprobs), finish) for ids, logprobs, finish in row] for row in written]


def ids(written: list[list[Any]]) -> list[list[list[int]]]:
    return [[completion[0] for completion in row] for row in written]


def test_it_says_what_it_is(done: dict[str, Any], folders: list[Path]) -> None:
    assert done["info"] == [str(folders[0]), 512, True, True]
    assert done["nothing"] == []


@pytest.mark.parametrize(
    ("name", "folder", "temperature"),
    [
        ("start", 0, 1.0),
        ("cooler", 0, 0.7),
        ("greedy", 0, 1.0),
        ("adapter", 2, 1.0),
        ("base", 0, 1.0),
        ("adapter still", 2, 1.0),
        ("other", 1, 1.0),
        ("other still", 1, 1.0),
    ],
)
def test_log_probabilities_are_transformers(
    done: dict[str, Any], folders: list[Path], name: str, folder: int, temperature: float
) -> None:
    assert gap(folders[folder], PROMPTS, rows(done[name]), temperature) < AGREE


def test_draws_depend_on_the_seed_alone(done: dict[str, Any]) -> None:
    assert [row[:2] for row in ids(done["start"])] == ids(done["start again"])
    assert ids(done["base"]) == ids(done["start"]) != ids(done["adapter"])
    assert len({tuple(one) for row in ids(done["start"]) for one in row}) == 4 * len(PROMPTS)
    assert all(row == [row[0]] * 4 for row in ids(done["greedy"]))


def test_what_does_not_fit_is_refused(done: dict[str, Any]) -> None:
    assert "vLLM doesn't take" in done["not there"]
    assert "not the model that is served" in done["wide"]
    assert "LoRA rank 16 is greater than max_lora_rank 8" in done["large"]
    assert "on a CPU vLLM would keep the old output layer" in done["tied"]
    assert "no config.json" in done["nowhere"]
    assert "vLLM wrote no completions" in done["out of vocabulary"]


def test_vllms_own_sender_takes_our_client_and_source(folders: list[Path], tmp_path: Path) -> None:
    """Its NCCL broadcast is replaced: there is no GPU here."""
    assert "sent 21" in run(SENDER, tmp_path, folders[0])
