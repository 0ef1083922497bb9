"""Low-rank adapters: put into a model, saved in PEFT's format, restored, merged, switched off for a while.

    y = W x + (alpha / rank) · B A x        arXiv 2106.09685

A is drawn from the run's seed, B begins at zero, so that the first policy is the base itself. W is frozen, A and B are
fp32 masters in whatever precision W has. The model's class stays what it was: peft only swaps its linear layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sparring.lm.hub import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoadError, read_json, refuse_mismatch, require

ADAPTER = "default"  # peft's own name for an only adapter
PREFIX = "base_model.model."  # of every name in a file of peft's


@dataclass(frozen=True)
class LoraSettings:
    """What adapters a run trains.

    targets: endings of the names of the linear layers to adapt (`q_proj`, `layers.0.mlp.up_proj`); empty: all linear
    layers but the output head, which stays as it is in any case.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter's name is an adapter's."""
    return ".lora_" in name


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters have been put into a model."""
    return any(map(is_adapter_parameter, dict(model.named_parameters())))


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
    """Put adapters into a model, in place, and freeze everything else.

    The same seed gives the same adapters whatever torch's generators hold, and leaves those alone. Raises ValueError
    for targets that name no linear layer, LoadError (a ValueError) where peft is absent.
    """
    require("lora", "peft")
    from peft import LoraConfig, inject_adapter_in_model

    adapted = _adapted(model, settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] - peft divides it by the rank
        target_modules=sorted(settings.targets) if settings.targets else _endings(model, adapted),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=isinstance(model.get_submodule(adapted[0]), Conv1D),
    )
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, model)
    _check_adapted(model, adapted)
    generator = torch.Generator().manual_seed(seed)
    for layer in _layers(model):
        lora_A, lora_B = layer.lora_A.float()[ADAPTER].weight, layer.lora_B.float()[ADAPTER].weight
        bound = 1 / math.sqrt(lora_A.shape[1])  # peft's own: Kaiming, uniform, a = √5
        with torch.no_grad():
            lora_A.copy_(torch.empty(lora_A.shape).uniform_(-bound, bound, generator=generator))
            lora_B.zero_()


def save_adapter(model: PreTrainedModel, folder: Path, base: str, revision: str | None = None) -> None:
    """Write the adapters of a model as PEFT does: for `PeftModel.from_pretrained`, `from_pretrained` and vLLM.

    base, revision: the folder or hub id of the model that they belong to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: parameter.detach().cpu().contiguous().clone() for name, parameter in _adapter_parameters(model).items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    config: Any = copy.copy(model.peft_config[ADAPTER])
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    config.target_modules = sorted(config.target_modules)  # a set would be written in another order every time
    config.save_pretrained(str(folder))


def restore_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Read saved adapters into those of a model, bit for bit. Raises LoadError where they aren't the same ones."""
    saved, mine = _read(folder), _adapter_parameters(model)
    common = saved.keys() & mine.keys()
    refuse_mismatch(
        f"{folder}: holds other adapters than the model has; resume with the settings it was saved with",
        {
            "missing": sorted(mine.keys() - saved.keys()),
            "unexpected": sorted(saved.keys() - mine.keys()),
            "of another shape": sorted(
                f"{name} (file {tuple(saved[name].shape)}, model {tuple(mine[name].shape)})"
                for name in common
                if saved[name].shape != mine[name].shape
            ),
            "of another dtype": sorted(name for name in common if saved[name].dtype != mine[name].dtype),
        },
    )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(saved[name])


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add a saved LoRA adapter into a model's own weights: W + (alpha / rank) · B A, in fp32.

    model: the adapter's base in fp32, without adapters; it is changed and returned, with nothing of peft left in it.
    Raises LoadError where peft is absent, the adapter is no LoRA, or doesn't fit the model.
    """
    require("lora", "peft")
    assert model.dtype == torch.float32, "adapters are merged in fp32"
    _read(folder)  # refuse what isn't safetensors before peft looks for pickles
    try:
        return _merged(model, folder)
    except LoadError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise LoadError(f"{folder}: the adapter can't be merged into its base model ({error})") from error


def _merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    from peft import PeftConfig, PeftModel

    kind = read_json(folder / ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise LoadError(f"{folder}: a {kind} adapter; only LoRA adapters can be merged here")
    config = PeftConfig.from_pretrained(str(folder))
    with torch.random.fork_rng(devices=[]):
        adapted: Any = PeftModel(model, config)
    loaded = adapted.load_adapter(str(folder), ADAPTER, torch_device="cpu")
    problems = {"missing": sorted(loaded.missing_keys), "unexpected": sorted(loaded.unexpected_keys)}
    refuse_mismatch(f"{folder}: the adapter doesn't fit its base model", problems)
    # PEFT froze the base; merged, every weight is there to be trained again.
    return adapted.merge_and_unload().requires_grad_(True)


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Let a model compute as its base does. What requires gradients is as before afterwards."""
    layers = [layer for layer in _layers(model) if not layer.disable_adapters]
    learning = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
            layer.requires_grad_(False)
        for parameter in learning:
            parameter.requires_grad_(True)


def _layers(model: nn.Module) -> list[Any]:
    """peft's layers, known by what they have, as peft may be absent."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "disable_adapters")]


def _linears(model: PreTrainedModel) -> list[str]:
    """Names of all linear layers but the output head, in the model's order."""
    head = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    ]


def _adapted(model: PreTrainedModel, targets: tuple[str, ...]) -> list[str]:
    """Names of the linear layers that the targets mean."""
    linears = _linears(model)
    found = {target: [n for n in linears if n == target or n.endswith(f".{target}")] for target in targets}
    if unknown := sorted(target for target, names in found.items() if not names):
        there = sorted({name.rpartition(".")[2] for name in linears})
        raise ValueError(
            f"model.lora.targets: no linear layer is called {', '.join(unknown)} (the output head is never adapted); "
            f"{type(model).__name__} has {', '.join(there)}"
        )
    return [name for names in found.values() for name in names] if targets else linears


def _check_adapted(model: PreTrainedModel, wanted: list[str]) -> None:
    """In some mixtures of experts peft reads layers' names as those of fused expert weights, which no engine trains."""
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    if odd := set(wanted) - adapted or adapted - set(wanted):
        names = ", ".join(sorted({name.rpartition(".")[2] for name in odd}))
        raise ValueError(
            f"model.lora.targets: peft takes {names} of a {type(model).__name__} for experts' weights, which "
            "aren't adapted here; name the layers to adapt without them, for example q_proj, k_proj, v_proj and o_proj"
        )


def _endings(model: PreTrainedModel, names: list[str]) -> list[str]:
    """The names' last parts, as peft's files have them; the whole names where those would mean other modules too."""
    endings = {name.rpartition(".")[2] for name in names}
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in endings]
    return sorted(endings) if sorted(meant) == sorted(names) else sorted(names)


def _adapter_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """A model's adapter parameters under their names in PEFT's files."""
    return {
        PREFIX + name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in model.named_parameters()
        if is_adapter_parameter(name)
    }


def _read(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file() or not (folder / ADAPTER_CONFIG).is_file():
        raise LoadError(f"{folder}: no {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, so this is no saved adapter")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{file}: can't be read ({error}); copy or download it again") from error
