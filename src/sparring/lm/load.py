"""Models and tokenizers from a folder or the Hugging Face hub, and back into a folder.

Weights are safetensors only (a pickle can run code when it is read) and code comes from the installed
transformers only. A hub id is fetched into the local cache first, so both go through the same checks.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sparring.lm.base import LanguageModel

logger = logging.getLogger(__name__)

CONFIG_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
WEIGHT_FILES = ["model.safetensors", "model-*-of-*.safetensors"]


class LoadError(ValueError):
    """A model or tokenizer that can't be loaded; the message says what to do."""


def load_model(
    path_or_id: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    revision: str | None = None,
) -> PreTrainedModel:
    """The causal language model in a folder or at a hub id, in eval mode, parameters in `dtype`.

    Raises LoadError where the folder, config.json or safetensors weights are missing, the hub can't be
    reached, the weights are another model's, or the model is no causal LM, quantised, or needs its own code.
    """
    folder = _folder(path_or_id, revision, [*CONFIG_FILES, *WEIGHT_FILES])
    _check_config(folder)
    _check_weights_present(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, by name and all at once
            output_loading_info=True,
        )
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{folder}: the weights can't be read ({error}); copy or download them again") from error
    model, info = loaded
    _check_weights_match(folder, info)
    _keep_generation_config_savable(model)
    return cast(PreTrainedModel, model.to(device).eval())


def load_tokenizer(
    path_or_id: str | Path, chat_template: str | None = None, *, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or at a hub id, with a chat template and a padding token.

    chat_template: Jinja text that replaces the tokenizer's own. Raises LoadError where neither exists.
    """
    folder = _folder(path_or_id, revision, CONFIG_FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"{folder}: no tokenizer could be loaded ({error}); save one beside the model") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise LoadError(
            f"{folder}: the tokenizer has no chat template, so roles can't be told apart; pass chat_template "
            "(Jinja text), put a chat_template.jinja beside the tokenizer, or use an instruction-tuned model"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise LoadError(
                f"{folder}: the tokenizer has neither a padding nor an end-of-sequence token; set eos_token"
            )
        logger.warning("%s: no padding token; padding with %r", folder, tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer)


def open_lm(
    model: PreTrainedModel, dtype: torch.dtype, trainable: bool, *, path: Literal["auto", "generic"] = "auto"
) -> LanguageModel:
    """The fast path where it covers this model, else (or with path="generic") the general one."""
    from sparring.lm.generic import GenericLM
    from sparring.lm.llama import FastLlama

    if path not in {"auto", "generic"}:
        raise ValueError(f'path must be "auto" or "generic", not {path!r}')
    reason = "asked for" if path == "generic" else FastLlama.unsupported(model)
    if reason is None:
        return FastLlama(model, dtype, trainable)
    logger.info("%s: the generic path (%s)", type(model).__name__, reason)
    return GenericLM(model, dtype, trainable)


def open_frozen(
    model: PreTrainedModel, dtype: torch.dtype, *, path: Literal["auto", "generic"] = "auto"
) -> LanguageModel:
    """The model as it is now, in one copy in `dtype` that no later update of `model` reaches: the reference."""
    from sparring.lm.llama import FastLlama

    if path == "auto" and FastLlama.unsupported(model) is None:
        return FastLlama(model, dtype, trainable=False).freeze()
    # The generic path copies only where it converts.
    converts = next(model.parameters()).dtype != dtype
    return open_lm(model if converts else frozen_copy(model), dtype, trainable=False, path=path)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that no update can reach: own storage, eval mode, no gradients. Tied weights stay tied."""
    frozen = copy.deepcopy(model).eval()
    frozen.requires_grad_(False)
    return frozen


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write weights (safetensors), configs, tokenizer and chat template, for `from_pretrained` anywhere."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def resolve_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """ "float32", "bfloat16", or "auto": bfloat16 where the device has instructions for it, else float32."""
    if name == "auto":
        return torch.bfloat16 if _has_bf16(torch.device(device)) else torch.float32
    if name not in {"float32", "bfloat16"}:
        raise ValueError(f'dtype must be "auto", "float32" or "bfloat16", not {name!r}')
    return getattr(torch, name)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, check, bool)() for check in checks)
    return False


def _folder(path_or_id: str | Path, revision: str | None, patterns: list[str]) -> Path:
    """The local folder; a hub id is downloaded into the cache (the named files of its top folder only)."""
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    # A mistyped `runs/grpo` must not be looked for on the hub.
    here = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if here or isinstance(path_or_id, Path) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path_or_id):
        raise LoadError(f"{path}: no such folder; give the folder of a saved model or a hub id (owner/name)")
    try:
        return Path(snapshot_download(path_or_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except (OSError, ValueError) as error:
        raise LoadError(
            f"{path_or_id}: neither a folder here nor fetched from the hub ({error}); check the spelling, "
            "the connection and HF_HUB_OFFLINE, or download it and give the folder"
        ) from error


def _check_config(folder: Path) -> None:
    file = folder / "config.json"
    if not file.is_file():
        adapter = " (adapter_config.json is there: merge the adapter into its base model first)"
        raise LoadError(
            f"{folder}: no config.json, so this is no saved transformers model"
            + (adapter if (folder / "adapter_config.json").is_file() else "")
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{file}: not valid JSON ({error})") from error
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if expected is None and "auto_map" in config:
        raise LoadError(
            f"{folder}: model_type {kind!r} needs code shipped with the model, which is never run here; "
            "use a model that transformers implements itself"
        )
    if expected is None or (architectures and expected not in architectures):
        raise LoadError(
            f"{folder}: not a causal language model (model_type {kind!r}, architectures {architectures}); "
            "use a model saved with its language-model head"
        )
    if "quantization_config" in config:
        raise LoadError(f"{folder}: quantised weights can't be trained; use the model's unquantised weights")


def _check_weights_present(folder: Path) -> None:
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


def _check_weights_match(folder: Path, info: dict[str, Any]) -> None:
    """Weights that don't fit the config would leave parts of the model random: refuse, naming them."""
    mismatched = [f"{name} (file {tuple(a)}, config {tuple(b)})" for name, a, b in info["mismatched_keys"]]
    problems = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(mismatched),
        "unreadable": sorted(info["error_msgs"]),
    }
    if any(problems.values()):
        parts = "; ".join(f"{what}: {_listed(names)}" for what, names in problems.items() if names)
        raise LoadError(f"{folder}: the weights don't match config.json. {parts}")


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _keep_generation_config_savable(model: Any) -> None:
    """Published models set a temperature but no do_sample: transformers loads that, then won't save it."""
    config = model.generation_config
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
