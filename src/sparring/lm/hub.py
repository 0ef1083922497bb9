"""A model's folder: found here or fetched from the Hugging Face hub, and what is checked before anything is loaded.

Weights are safetensors only: a pickle can run code when it is read. Code that is shipped with a model runs only where
the caller trusts that very model.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

logger = logging.getLogger(__name__)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIG_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", ADAPTER_WEIGHTS)
CODE_FILES = ("*.py",)
VISION_FAMILIES = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class LoadError(ValueError):
    """A model or tokenizer that can't be loaded; the message says what to do."""


def require(extra: str, *packages: str) -> None:
    """Raise LoadError, naming the pip command, unless the packages of an optional extra are installed."""
    if absent := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise LoadError(f"{' and '.join(absent)} must be installed for this: pip install 'sparring[{extra}]'")


def find_folder(path_or_id: str | Path, revision: str | None, *, weights: bool, code: bool = False) -> Path:
    """The local folder; a hub id is downloaded into the cache (files of its top folder only).

    weights: whether weights are wanted too; code: whether code shipped with the model is.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    # A mistyped `runs/grpo` must not be looked for on the hub.
    here = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if here or isinstance(path_or_id, Path) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path_or_id):
        raise LoadError(f"{path}: no such folder; give the folder of a saved model or a hub id (owner/name)")
    if code and revision is None:
        logger.warning(
            "%s: runs code from the hub at no fixed revision, so the code may change under you; pin model.revision",
            path_or_id,
        )
    patterns = [*CONFIG_FILES, *(WEIGHT_FILES if weights else ()), *(CODE_FILES if code else ())]
    try:
        return Path(snapshot_download(path_or_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{path_or_id}: neither a folder here nor fetched from the hub ({error}); check the spelling, "
            "the connection and HF_HUB_OFFLINE, or download it and give the folder"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json."""
    file = folder / "config.json"
    if not file.is_file():
        raise LoadError(f"{folder}: no config.json, so this is no saved transformers model")
    return read_json(file)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter (PEFT's format) rather than a model. LoadError where it holds both."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    if any(folder.glob("model*.safetensors*")):
        raise LoadError(
            f"{folder}: holds both a model's weights and {ADAPTER_CONFIG}, so which is meant is unclear; "
            "move one of them to a folder of its own"
        )
    return True


def adapter_base(folder: Path) -> tuple[str, str | None]:
    """The base model that an adapter's adapter_config.json names, and its revision."""
    config = read_json(folder / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise LoadError(f"{folder / ADAPTER_CONFIG}: names no base model; set base_model_name_or_path")
    return base, config.get("revision")


def check_language_model(name: str | Path, config: Mapping[str, Any], *, remote_code: bool, four_bit: bool) -> None:
    """Raise LoadError unless config.json describes a causal language model, or one that sees, that can be trained.

    remote_code: the model's own code is trusted; four_bit: weights that bitsandbytes quantised to 4 bits are fine.
    """
    own_code = config.get("auto_map") or {}
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    expected = VISION_FAMILIES.get(str(kind), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind))
    if remote_code and "AutoModelForCausalLM" in own_code:
        _check_own_code(name, own_code)
    elif expected is None and own_code:
        raise LoadError(
            f"{name}: model_type {kind!r} needs code shipped with the model, which is not run unless you ask for it; "
            "read that code, and if you trust it set model.remote_code to this very name"
        )
    elif sees(config) and kind not in VISION_FAMILIES:
        raise LoadError(
            f"{name}: a vision model of type {kind!r}, which isn't among those supported: {', '.join(VISION_FAMILIES)}"
        )
    elif expected is None or (architectures and expected not in architectures):
        raise LoadError(
            f"{name}: not a causal language model (model_type {kind!r}, architectures {architectures}); "
            "use a model saved with its language-model head"
        )
    _check_quantisation(name, config, four_bit)


def sees(config: Mapping[str, Any]) -> bool:
    """Whether config.json describes a model that reads images and text and writes text."""
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    if kind in VISION_FAMILIES:
        return True
    seeing = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind] != seeing:
        return seeing in architectures
    return seeing is not None


def check_reward_model(name: str | Path, config: Mapping[str, Any]) -> None:
    """Raise LoadError unless config.json describes a sequence classifier that transformers implements itself."""
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    expected = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(kind)
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) in architectures:
        raise LoadError(
            f"{name}: is a language model, not a reward model (architectures {architectures}); "
            "give a sequence-classification model with one label"
        )
    if expected is None and config.get("auto_map"):
        raise LoadError(f"{name}: model_type {kind!r} needs code shipped with the model, which rewards never run")
    if expected is None or (architectures and expected not in architectures):
        raise LoadError(
            f"{name}: not a reward model (model_type {kind!r}, architectures {architectures}); "
            "give a sequence-classification model with one label"
        )
    _check_quantisation(name, config, four_bit=False)


def _check_own_code(name: str | Path, own_code: Mapping[str, Any]) -> None:
    """What is trusted is this folder's code, so a reference to another repository's is refused."""
    if elsewhere := sorted(f"{key}: {value}" for key, value in own_code.items() if "--" in str(value)):
        raise LoadError(
            f"{name}: its code lies in another repository ({_listed(elsewhere)}); "
            "copy that code into a folder with the model and give the folder"
        )


def _check_quantisation(name: str | Path, config: Mapping[str, Any], four_bit: bool) -> None:
    quantised = config.get("quantization_config")
    if not quantised:
        return
    method = quantised.get("quant_method")
    if method != "bitsandbytes" or not quantised.get("load_in_4bit"):
        raise LoadError(f"{name}: quantised weights ({method}) can't be trained; use the model's unquantised weights")
    if not four_bit:
        raise LoadError(
            f"{name}: 4-bit weights are trained by QLoRA only; set model.tuning=qlora or use the model's "
            "unquantised weights"
        )


def check_weights_present(folder: Path) -> None:
    """Raise LoadError unless the safetensors files that a model needs are there."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return
    if not index.is_file():
        pickles = sorted(file.name for suffix in ("*.bin", "*.pt", "*.pth") for file in folder.glob(suffix))
        found = f" (found {', '.join(pickles)}: pickles can run code and are not read)" if pickles else ""
        raise LoadError(
            f"{folder}: no model.safetensors{found}; save the model again with save_pretrained, or choose a "
            "revision that has safetensors"
        )
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if absent := sorted(name for name in shards if not (folder / name).is_file()):
        raise LoadError(f"{folder}: {index.name} names files that are missing: {_listed(absent)}")


def check_weights_match(folder: Path, info: Mapping[str, Any]) -> None:
    """Weights that don't fit the config would leave parts of the model random: refuse, naming them.

    info: transformers' loading info.
    """
    mismatched = [f"{name} (file {tuple(a)}, config {tuple(b)})" for name, a, b in info["mismatched_keys"]]
    problems = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(mismatched),
        "unreadable": sorted(info["error_msgs"]),
    }
    refuse_mismatch(f"{folder}: the weights don't match config.json", problems)


def refuse_mismatch(what: str, problems: Mapping[str, list[str]]) -> None:
    """Raise LoadError where any list of names isn't empty."""
    if any(problems.values()):
        parts = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise LoadError(f"{what}. {parts}")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises LoadError where it is broken."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{file}: not valid JSON ({error})") from error


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
