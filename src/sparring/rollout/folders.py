"""What lies in a model's or an adapter's folder, read before vLLM is asked to take it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sparring.lm.hub import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    VISION_FAMILIES,
    LoadError,
    check_weights_present,
    read_config,
    read_json,
    refuse_mismatch,
)
from sparring.lm.vision_parts import own_name
from sparring.rollout.base import EngineError

INDEX = "model.safetensors.index.json"
Shapes = Mapping[str, tuple[int, ...]]


def check_folder(folder: Path, expected: Shapes | None, *, cpu: bool = False) -> Shapes:
    """A saved model's shapes. Raises EngineError unless it is complete and has the expected ones.

    cpu: tied embeddings are refused. vLLM's CPU backend packs the output layer into a copy when it starts, and a reload
    leaves that copy as it was, without a word.
    """
    try:
        tied = read_config(folder).get("tie_word_embeddings")
        shapes = tensor_shapes(folder)
        if cpu and tied and "lm_head.weight" not in shapes:
            raise EngineError(
                f"{folder}: its embeddings are tied, and on a CPU vLLM would keep the old output layer; start the "
                "engine as `sparring serve-command --cpu` says (it calls sparring.rollout.folders.prepare_folder), and "
                "give updates likewise"
            )
        if expected is not None:
            _refuse_others(folder, shapes, expected)
    except LoadError as error:
        raise EngineError(f"these weights can't be taken: {error}") from error
    return shapes


def tensor_shapes(folder: Path) -> Shapes:
    """Shapes of a saved model's tensors by name, without reading them. Raises LoadError where it is incomplete.

    A vision model's are named as in the model, whether or not its files have names from before transformers 5.
    """
    named = _naming(read_config(folder))
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                names: list[str] = opened.keys()
                shapes |= {named(name): tuple(opened.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{file}: can't be read ({error}); save it again") from error
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """A saved model's safetensors files. Raises LoadError where one is missing."""
    if not folder.is_dir():
        raise LoadError(f"{folder}: no such folder")
    check_weights_present(folder)
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    return [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]


def adapter_rank(folder: Path) -> int:
    """The rank of a saved adapter. Raises EngineError where the folder holds none."""
    if not (folder / ADAPTER_CONFIG).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise EngineError(f"{folder}: no {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, so this is no saved adapter")
    try:
        return int(read_json(folder / ADAPTER_CONFIG)["r"])
    except (LoadError, LookupError, TypeError) as error:
        raise EngineError(f"{folder / ADAPTER_CONFIG}: names no rank r ({error}); save the adapter again") from error


def prepare_folder(model_folder: Path, out: Path) -> Path:
    """A copy of a saved model whose output layer is its own, for vLLM on a CPU; the folder itself where it is already.

    model_folder: a model with tied embeddings; out: a folder to make, or to make anew.
    """
    config = read_config(model_folder)
    files = weight_files(model_folder)
    shapes = tensor_shapes(model_folder)
    if not config.get("tie_word_embeddings"):
        return model_folder
    head, embedding = tied_names(model_folder)
    skipped = {INDEX, *(file.name for file in files)}
    shutil.copytree(model_folder, out, ignore=lambda _, names: skipped & set(names), dirs_exist_ok=True)
    for old in out.glob("model*.safetensors*"):
        old.unlink()
    weight_map: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files) + 1:05d}.safetensors"
        shutil.copyfile(file, out / name)
        weight_map |= dict.fromkeys(_names(file), name)
    if head not in shapes:
        last = f"model-{len(files) + 1:05d}-of-{len(files) + 1:05d}.safetensors"
        file, name = _holder(files, embedding, _naming(config))
        with safe_open(file, framework="pt", device="cpu") as opened:
            save_file({head: opened.get_tensor(name)}, out / last, {"format": "pt"})
        weight_map[head] = last
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    untied = config | {"tie_word_embeddings": False}
    if "text_config" in config:  # a vision model's
        untied["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(untied, indent=2), encoding="utf-8")
    return out


def tied_names(folder: Path) -> tuple[str, str]:
    """The names of the output layer and of the embedding that it shares."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    seeing = config.model_type in VISION_FAMILIES
    kind: Any = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if seeing else MODEL_FOR_CAUSAL_LM_MAPPING)[type(config)]
    return next(iter(kind._tied_weights_keys.items()))


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt", device="cpu") as opened:
        return list(opened.keys())


def _naming(config: Mapping[str, Any]) -> Callable[[str], str]:
    """From a name in a model's files to that in the model."""
    return own_name if config.get("model_type") in VISION_FAMILIES else str


def _holder(files: list[Path], wanted: str, naming: Callable[[str], str]) -> tuple[Path, str]:
    """The file with a tensor of the model, and its name there."""
    return next((file, name) for file in files for name in _names(file) if naming(name) == wanted)


def _refuse_others(folder: Path, shapes: Shapes, expected: Shapes) -> None:
    refuse_mismatch(
        f"{folder}: not the model that is served (was one of them made by prepare_folder, and the other not?)",
        {
            "missing": sorted(expected.keys() - shapes.keys()),
            "unexpected": sorted(shapes.keys() - expected.keys()),
            "of another shape": sorted(
                f"{name} (here {shapes[name]}, served {expected[name]})"
                for name in shapes.keys() & expected.keys()
                if shapes[name] != expected[name]
            ),
        },
    )
