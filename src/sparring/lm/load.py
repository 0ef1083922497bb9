"""Models and tokenizers from a folder or the Hugging Face hub, and back into a folder.

`lm.hub` finds the folder and refuses what can't be loaded; here it is loaded. An adapter's folder gives its base with
the adapter merged in. `lm.engines` then makes a loaded model write and score.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparring.lm.engines import frozen_copy, open_frozen, open_lm, open_reference
from sparring.lm.hub import (
    TOKENIZER_FILES,
    LoadError,
    adapter_base,
    check_language_model,
    check_reward_model,
    check_weights_match,
    check_weights_present,
    find_folder,
    is_adapter,
    read_config,
    read_json,
    require,
    sees,
)
from sparring.lm.lora import merge_adapter
from sparring.lm.probe import cast_parameters

__all__ = [
    "LoadError",
    "frozen_copy",
    "load_model",
    "load_reward_model",
    "load_tokenizer",
    "open_frozen",
    "open_lm",
    "open_reference",
    "resolve_dtype",
    "save_model",
]

logger = logging.getLogger(__name__)


def load_model(
    path_or_id: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    revision: str | None = None,
    remote_code: bool = False,
    four_bit: bool = False,
) -> PreTrainedModel:
    """The causal language model in a folder or at a hub id, in eval mode, parameters in `dtype`.

    One that sees (of the families in lm.hub.VISION_FAMILIES) comes with its vision tower.

    remote_code: run code that is shipped with this model. four_bit: linear layers quantised to NF4 (bitsandbytes),
    computing in `dtype`. An adapter's folder gives its base model with the adapter merged in, in fp32, before the cast.

    Raises LoadError where the folder, config.json or safetensors weights are missing, the hub can't be reached, the
    weights are another model's, a package is missing, or the model is no causal LM, already quantised, or needs code
    of its own that isn't trusted.
    """
    folder = find_folder(path_or_id, revision, weights=True, code=remote_code)
    if is_adapter(folder):
        if four_bit:
            raise LoadError(
                f"{path_or_id}: an adapter can't be merged into 4-bit weights; merge it into its base model first "
                "(a run exports it so with export.adapter=merged) and give the merged model"
            )
        return _load_merged(folder, device, dtype, attention)
    config = read_config(folder)
    check_language_model(path_or_id, config, remote_code=remote_code, four_bit=four_bit)
    kind = AutoModelForImageTextToText if sees(config) else AutoModelForCausalLM
    if not four_bit:
        return _load(kind, folder, dtype, attention, trust_remote_code=remote_code).to(device)
    placed = {"device_map": {"": device}, **_four_bit(config, dtype)}
    return _differentiable(_load(kind, folder, dtype, attention, trust_remote_code=remote_code, **placed))


def load_reward_model(
    path_or_id: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    revision: str | None = None,
) -> PreTrainedModel:
    """The reward model (a sequence classifier with one label) in a folder or at a hub id, in eval mode.

    Code shipped with the model is never run. Raises LoadError as `load_model` does, and for a language model, an
    adapter, or another number of labels.
    """
    folder = find_folder(path_or_id, revision, weights=True)
    if is_adapter(folder):
        raise LoadError(f"{path_or_id}: is an adapter; merge it into its reward model and give the merged model")
    check_reward_model(path_or_id, read_config(folder))
    labels = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).num_labels
    if labels != 1:
        raise LoadError(f"{path_or_id}: num_labels is {labels}, but a reward model gives one score: it must be 1")
    kind = AutoModelForSequenceClassification
    try:
        model = _load(kind, folder, dtype, attention, trust_remote_code=False)
    except LoadError:
        if attention != "sdpa":
            raise
        # DeBERTa, among others, has none of the default; what else is wrong is said the second time.
        model = _load(kind, folder, dtype, "eager", trust_remote_code=False)
    return model.to(device)


def load_tokenizer(
    path_or_id: str | Path,
    chat_template: str | None = None,
    *,
    revision: str | None = None,
    remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or at a hub id, with a chat template and a padding token.

    chat_template: Jinja text that replaces the tokenizer's own. An adapter's folder without a tokenizer gives its
    base model's. Raises LoadError where there is no tokenizer or no chat template.
    """
    folder = find_folder(path_or_id, revision, weights=False, code=remote_code)
    if is_adapter(folder) and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        base, base_revision = adapter_base(folder)
        return load_tokenizer(base, chat_template, revision=base_revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise LoadError(f"{folder}: no tokenizer could be loaded ({error}); save one beside the model") from error
    legacy = folder / "chat_template.json"
    if chat_template is None and legacy.is_file():
        chat_template = read_json(legacy).get("chat_template")  # a processor's, which knows of images
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise LoadError(
            f"{folder}: the tokenizer has no chat template, so roles can't be told apart; pass chat_template "
            "(Jinja text; setting model.chat_template=FILE), put a chat_template.jinja beside the tokenizer, or use "
            "an instruction-tuned model"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise LoadError(
                f"{folder}: the tokenizer has neither a padding nor an end-of-sequence token; set eos_token"
            )
        logger.warning("%s: no padding token; padding with %r", folder, tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer)


class Saved(Protocol):
    """What is saved beside a model: its tokenizer, or tokenizer and image processor (`lm.vision_files.Processor`)."""

    def save_pretrained(self, save_directory: Any, /) -> Any:
        """Write the files into a folder."""
        ...


def save_model(model: PreTrainedModel, tokenizer: Saved, folder: str | Path) -> None:
    """Write weights (safetensors), configs, tokenizer and chat template, for `from_pretrained` anywhere.

    tokenizer: for a model that sees, the whole processor.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def resolve_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """ "float32", "bfloat16", or "auto": bfloat16 where the device has instructions for it, else float32."""
    if name == "auto":
        return torch.bfloat16 if _has_bf16(torch.device(device)) else torch.float32
    if name not in {"float32", "bfloat16"}:
        raise ValueError(f'dtype must be "auto", "float32" or "bfloat16", not {name!r}')
    return getattr(torch, name)


# Small parts


def _load(auto: Any, folder: Path, dtype: torch.dtype, attention: str, **more: Any) -> Any:
    """One model by one of transformers' Auto classes, all weights checked."""
    check_weights_present(folder)
    try:
        model, info = auto.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, by name and all at once
            output_loading_info=True,
            **more,
        )
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{folder}: the weights can't be read ({error}); copy or download them again") from error
    except (ImportError, ValueError) as error:
        if attention != "eager" and re.search(r"attn|attention|kernels", str(error), re.IGNORECASE):
            raise LoadError(
                f"{folder}: model.attention={attention} can't be used ({error}); install what it needs, or set "
                "model.attention to sdpa or eager"
            ) from error
        raise LoadError(f"{folder}: transformers can't load this model ({error})") from error
    check_weights_match(folder, info)
    _keep_generation_config_savable(model)
    return model.eval()


def _load_merged(folder: Path, device: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """An adapter's base model with the adapter merged in. The base's own code is not run: nobody named it."""
    require("lora", "peft")
    base, revision = adapter_base(folder)
    try:
        model = load_model(base, attention=attention, revision=revision)
    except LoadError as error:
        raise LoadError(
            f"{folder}: the adapter's base model can't be loaded ({error}). Correct base_model_name_or_path in its "
            "adapter_config.json (a relative path counts from the working directory), or give the merged model"
        ) from error
    merged: Any = merge_adapter(model, folder)
    cast_parameters(merged, dtype)
    return merged.to(device).eval()


def _four_bit(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What makes transformers quantise to NF4; nothing where the weights already are."""
    require("qlora", "bitsandbytes", "accelerate", "peft")
    from transformers import BitsAndBytesConfig

    if config.get("quantization_config"):
        return {}
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": quantised}


def _differentiable(model: PreTrainedModel) -> PreTrainedModel:
    """On a CPU in eval mode bitsandbytes repacks its weights for a kernel without a backward pass: forbid it that.

    Gradients of everything below such a layer would be missing, with no more than a warning.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no attribute of Module
    return model


def _keep_generation_config_savable(model: Any) -> None:
    """Published models set a temperature but no do_sample: transformers loads that, then won't save it."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, check, bool)() for check in checks)
    return False
