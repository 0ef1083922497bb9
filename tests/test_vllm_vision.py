"""vLLM itself on prompts with images: both families, both engines, a whole run, against transformers.

vLLM's Qwen-VL models import torchvision by way of transformers' image processors. A few lines stand in for it here:
what runs is vLLM's own model, processor, caches and server, on a CPU, on images that need no resizing.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

import test_vision_training
import tiny_vision
from sparring.images import ImageStore
from sparring.lm.base import Completion, SamplingParams
from sparring.lm.load import load_model
from sparring.lm.lora import LoraSettings, add_lora, merge_adapter, save_adapter
from sparring.lm.vision_parts import language_lora
from sparring.rollout.base import EngineError, serve_command
from sparring.rollout.images import PromptImages, shown
from sparring.rollout.server import ServerEngine
from sparring.run import train
from sparring.runfolder import RunFolder
from test_vision_training import config, described
from test_vllm_images import NEVER, PAD, image_ids
from test_vllm_rollout_process import SOURCE
from test_vllm_rollout_process import rows as read_rows
from tiny_vision import picture, save_tiny_qwen3vl, save_tiny_qwen25vl, tiny_store
from vllm_rollout import RANK, RolloutServer
from vllm_server import _environment, vllm_python

pytestmark = pytest.mark.vllm

questions = test_vision_training.data
"""A fixture: a data set of six questions with pictures of several sizes, two pictures, none."""

AGREE = 1e-4
STAND_IN = {
    "__init__.py": '__version__ = "0.28.0"\n',
    "io.py": "class ImageReadMode:\n    RGB = 'RGB'\n\n\ndecode_image = read_image = None\n",
    "transforms/__init__.py": """from enum import Enum

InterpolationMode = Enum("InterpolationMode", "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS")
""",
    "transforms/functional.py": """import numpy as np
import torch

to_pil_image = None


def pil_to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
""",
    "transforms/v2/__init__.py": "",
    "transforms/v2/functional.py": """import torch

from .. import InterpolationMode
from ..functional import pil_to_tensor


def resize(image, size, *_, **__):
    size = tuple(size)
    if tuple(image.shape[-2:]) == size:
        return image
    return torch.nn.functional.interpolate(image.float(), size).to(image.dtype)


def normalize(image, mean, std, inplace=False):
    mean, std = (torch.as_tensor(part, dtype=image.dtype).view(-1, 1, 1) for part in (mean, std))
    return (image - mean) / std
""",
}
"""What transformers' image processors want of torchvision. It resizes otherwise: nothing here is to be resized."""

SCRIPT = """
import json, sys
from pathlib import Path

from sparring.images import ImageStore, Picture
from sparring.lm.base import SamplingParams
from sparring.lm.vision_files import load_processor
from sparring.rollout.base import EngineError
from sparring.rollout.images import PromptImages
from sparring.rollout.process import ProcessEngine

given = json.loads(Path(sys.argv[1]).read_text())
done = {}


def write(name, adapter=True, **more):
    rows = engine.generate(given["prompts"], 3, SamplingParams(12, **more), given["seeds"], adapter=adapter)
    done[name] = [[(c.ids, c.logprobs.tolist(), c.finish) for c in row] for row in rows]


def count(model):
    seen = []
    model.visual.register_forward_hook(lambda module, args, kwargs, out: seen.append(len(kwargs["grid_thw"])),
                                       with_kwargs=True)
    return seen


if __name__ == "__main__":
    start, other, one = map(Path, given["folders"])
    store = ImageStore(load_processor(start, None).image_processor)
    wider = ImageStore(load_processor(start, None, max_pixels=2**15).image_processor)
    for picture in given["pictures"]:
        for each in (store, wider):
            each.add(Picture.open(picture))
    images = PromptImages(store, given["pad"], tuple(given["never"]))
    engine = ProcessEngine(start, lora_rank=8, dtype="float32", memory=0.3, eager=True, images=images)
    done["images"] = engine.info.images
    (encoded,) = engine._llm.apply_model(count)
    write("start")
    done["encoded"] = sum(encoded)
    write("again")
    done["encoded again"] = sum(encoded)
    write("cooler", temperature=0.7)
    engine.update(one, 1)
    write("adapter")
    write("base", adapter=False)
    engine.update(other, 2)
    before = sum(encoded)
    write("other", adapter=False)
    done["encoded anew"] = sum(encoded) - before
    engine._images = PromptImages(wider, given["pad"], tuple(given["never"]))
    try:
        engine.generate([given["wider"]], 1, SamplingParams(2), [0], adapter=False)
    except EngineError as error:
        done["refused"] = str(error)
    engine.close()
    Path(sys.argv[2]).write_text(json.dumps(done))
"""


def spacious(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 32, which vLLM's attention on a CPU wants, and positions written out as the published models have it."""

    def config(kind: Any) -> Callable[..., Any]:
        def made(text_config: dict[str, Any], **more: Any) -> Any:
            text_config["rope_parameters"] |= {"mrope_section": [4, 6, 6]}
            if kind is Qwen3VLConfig:
                text_config["rope_parameters"] |= {"mrope_interleaved": True}
                text_config["head_dim"] = 32
            return kind(text_config=text_config, **more)

        return made

    monkeypatch.setattr(tiny_vision, "_TEXT", {**tiny_vision._TEXT, "hidden_size": 64})
    wide = {"hidden_size": 64, "num_heads": 2, "out_hidden_size": 64}
    monkeypatch.setattr(tiny_vision, "_VISION", {**tiny_vision._VISION, **wide})
    for kind in (Qwen2_5_VLConfig, Qwen3VLConfig):
        monkeypatch.setattr(tiny_vision, kind.__name__, config(kind))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for vLLM's PYTHONPATH."""
    folder = tmp_path_factory.mktemp("stand-in")
    for name, content in STAND_IN.items():
        file = folder / "torchvision" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return folder


@dataclass(frozen=True)
class Family:
    """Two models of a kind, an adapter of the first, pictures, and prompts that show them."""

    folders: tuple[Path, Path, Path]
    pictures: tuple[Path, ...]
    store: ImageStore
    prompts: list[list[int]]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Family]:
    with pytest.MonkeyPatch.context() as patch:
        spacious(patch)
        return {
            name: family(tmp_path_factory.mktemp(name), save)
            for name, save in (("qwen2.5", save_tiny_qwen25vl), ("qwen3", save_tiny_qwen3vl))
        }


def family(folder: Path, save: Callable[..., Path]) -> Family:
    start, other, one = save(folder / "start"), save(folder / "other", seed=1), folder / "one"
    for file in other.glob("*token*"):  # new weights come alone
        file.unlink()
    (other / "preprocessor_config.json").unlink()
    model = load_model(start)
    add_lora(model, language_lora(model, LoraSettings(RANK, 16.0)), 1)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.1)
    save_adapter(model, one, str(start))
    store, files = tiny_store(), list[Path]()
    shows: list[list[int]] = []
    for number, (width, height) in enumerate(((16, 16), (40, 24), (100, 300))):
        files.append(folder / f"{number}.png")
        picture(width, height, number).rgb().save(files[-1])
        shows.append(image_ids(store, width, height, number))
    small, wide, large = shows
    prompts = [[10, *small, 11], [10, *wide, 12], [10, 11, 12], [*large, 7], [9, *small, *wide, 8], [10, *small, 13]]
    return Family((start, other, one), tuple(files), store, prompts)


def gap(written: Sequence[Sequence[Completion]], model: Any, family: Family, temperature: float = 1.0) -> float:
    """The largest difference from transformers' log-probabilities, where vision tokens are impossible."""
    most = 0.0
    for ids, row in zip(family.prompts, written, strict=True):
        patches = [family.store.patches(handle) for handle in shown(ids)]
        prompt = torch.tensor(PromptImages(family.store, PAD, NEVER).expanded(ids))
        for completion in row:
            tokens: torch.Tensor = torch.cat([prompt, torch.tensor(completion.ids)]).unsqueeze(0)
            image_1T = torch.eq(tokens, PAD).int()
            seen: dict[str, Any] = {}
            if patches:
                seen["pixel_values"] = torch.cat([each.pixel_values for each in patches])
                seen["image_grid_thw"] = torch.tensor([each.grid_thw for each in patches])
            with torch.no_grad():
                out = model(tokens, mm_token_type_ids=image_1T, **seen)
            logits = out.logits[0, len(prompt) - 1 : -1] / temperature
            logits[:, list(NEVER)] = -torch.inf
            wanted = logits.log_softmax(-1)[range(len(completion.ids)), list(completion.ids)]
            most = max(most, float((wanted - torch.from_numpy(completion.logprobs)).abs().max()))
    return most


def loaded(family: Family, which: str) -> Any:
    start, other, one = family.folders
    if which == "adapter":
        return merge_adapter(load_model(start), one).eval()
    return load_model(other if which == "other" else start).eval()


@pytest.fixture(scope="module", params=["qwen2.5", "qwen3"])
def done(
    request: pytest.FixtureRequest,
    families: Mapping[str, Family],
    stand_in: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Family, dict[str, Any]]:
    """What vLLM wrote in process."""
    family, folder = families[request.param], tmp_path_factory.mktemp("script")
    given = {
        "prompts": family.prompts,
        "seeds": list(range(len(family.prompts))),
        "folders": list(map(str, family.folders)),
        "pictures": list(map(str, family.pictures)),
        "pad": PAD,
        "never": NEVER,
        "wider": [10, *image_ids(tiny_store(max_pixels=2**15), 100, 300, 2), 11],
    }
    (folder / "script.py").write_text(SCRIPT)
    (folder / "given.json").write_text(json.dumps(given))
    run = subprocess.run(
        [vllm_python(), str(folder / "script.py"), str(folder / "given.json"), str(folder / "done.json")],
        env=_environment() | {"PYTHONPATH": f"{SOURCE}{os.pathsep}{stand_in}", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]
    return family, json.loads((folder / "done.json").read_text())


@pytest.mark.parametrize(
    ("name", "model", "temperature"),
    [
        ("start", "start", 1.0),
        ("cooler", "start", 0.7),
        ("adapter", "adapter", 1.0),
        ("base", "start", 1.0),
        ("other", "other", 1.0),
    ],
)
def test_log_probabilities_of_prompts_with_images_are_transformers(
    done: tuple[Family, dict[str, Any]], name: str, model: str, temperature: float
) -> None:
    family, written = done
    rows = read_rows(written[name])
    assert gap(rows, loaded(family, model), family, temperature) < AGREE
    assert not {token for row in rows for c in row for token in c.ids} & set(NEVER)


def test_an_image_is_encoded_once_for_the_same_weights(done: tuple[Family, dict[str, Any]]) -> None:
    _, written = done
    assert written["images"] == 999
    assert written["encoded"] == 3  # of 15 answers to prompts that show six
    assert written["encoded again"] == 3
    assert written["encoded anew"] == 3  # by the new weights
    assert [[c[0] for c in row] for row in written["again"]] == [[c[0] for c in row] for row in written["start"]]


def test_an_image_that_vllm_resizes_is_noticed(done: tuple[Family, dict[str, Any]]) -> None:
    """The run's bounds are wider than those that vLLM was started with."""
    refused = done[1]["refused"]
    assert "of a prompt of 460 tokens with 1 images it made one of 60" in refused
    assert """--mm-processor-kwargs '{"min_pixels": 64, "max_pixels": 32768}'""" in refused


class ImageServer(RolloutServer):
    """Started as `serve_command` says for a run whose images have from 64 to 4096 pixels."""

    def __init__(self, folder: Path, log: Path, stand_in: Path, *, lora_rank: int | None = None) -> None:
        super().__init__(folder, log, lora_rank=lora_rank)
        port, pixels = int(self.url.rpartition(":")[2]), {"min_pixels": 64, "max_pixels": 64 * 64}
        argv, self._variables = serve_command(
            folder, lora_rank=lora_rank, port=port, dtype="float32", cpu=True, pixels=pixels
        )
        self._argv = [vllm_python(), *argv[1:], "--enforce-eager"]
        self._variables |= {"PYTHONPATH": str(stand_in)}


@pytest.fixture(scope="module", params=["full", "lora"])
def served(
    request: pytest.FixtureRequest,
    families: Mapping[str, Family],
    stand_in: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Family, str, str]]:
    """A server of the start, its address, and how the model is tuned."""
    family, rank = families["qwen2.5"], RANK if request.param == "lora" else None
    log = tmp_path_factory.mktemp("server") / "log"
    server = ImageServer(family.folders[0], log, stand_in, lora_rank=rank)
    yield family, server.up(), request.param
    server.end()


def test_a_server_writes_for_images_with_old_and_new_weights(served: tuple[Family, str, str]) -> None:
    family, url, tuning = served
    engine = ServerEngine(url, timeout=200.0, connect_timeout=100.0, images=PromptImages(family.store, PAD, NEVER))
    try:
        assert engine.info.images == 999
        new = 2 if tuning == "lora" else 1
        for which, version in (("start", 0), ("adapter" if tuning == "lora" else "other", 1)):
            if version:
                engine.update(family.folders[new], version)
            seeds = range(len(family.prompts))
            rows = engine.generate(family.prompts, 3, SamplingParams(12), seeds, adapter=True)
            assert gap(rows, loaded(family, which), family) < AGREE
            assert not {token for row in rows for c in row for token in c.ids} & set(NEVER)
        with pytest.raises(EngineError, match="of a prompt of 460 tokens with 1 images it made one of 60"):
            wider = tiny_store(max_pixels=2**15)
            ids = [10, *image_ids(wider, 100, 300, 2), 11]
            engine._images = PromptImages(wider, PAD, NEVER)
            engine.generate([ids], 1, SamplingParams(2), [0], adapter=False)
    finally:
        engine.close()


def test_a_run_whose_pictures_a_server_looks_at(
    served: tuple[Family, str, str], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, url, tuning = served
    described(monkeypatch)
    more = ("model.lora.rank=8",) if tuning == "lora" else ()
    given = config(
        family.folders[0],
        questions,
        "model.vision.min_pixels=64",
        "model.vision.max_pixels=4096",
        f"model.tuning={tuning}",
        "rollout.engine=vllm",
        f"rollout.url={url}",
        "steps=2",
        *more,
    )
    train(given, tmp_path / "run")
    rows: list[Any] = RunFolder(tmp_path / "run").read_metrics()[1:]
    assert [row["step"] for row in rows] == [1, 2]
    # What is left is the probability of vision tokens, which vLLM's are without.
    assert all(0 < float(row["sampler_gap/probe"]) < 0.02 for row in rows)
    assert all(float(row["sampler_gap/perceiver"]) < 0.02 for row in rows)
    assert all(0.98 < float(row["importance/mean/perceiver"]) <= 1 for row in rows)
    assert any("vision/reader/all" in row for row in rows)
