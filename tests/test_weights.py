"""sparring.lm.weights: checkpoints and exports of full, LoRA and 4-bit training, loaded by transformers itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparring.lm.base import PromptGroup
from sparring.lm.load import LoadError, load_model, load_tokenizer, open_lm, save_model
from sparring.lm.lora import LoraSettings, add_lora
from sparring.lm.weights import FullWeights, LoraWeights, Weights
from tiny_models import chat_tokenizer, save_tiny_llama, save_tiny_qwen3, sizes

IDS = torch.tensor([[5, 17, 3, 40, 9, 22, 8]])
GROUP = PromptGroup((5, 17, 3), ((40, 9, 22), (8,)))
FP32 = torch.float32
each_family = pytest.mark.parametrize("save", [save_tiny_llama, save_tiny_qwen3], ids=["tied llama", "untied qwen3"])


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def loaded(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = load_model(folder)
    assert model.generation_config is not None
    model.generation_config.temperature, model.generation_config.do_sample = 0.6, True
    return model, load_tokenizer(folder)


def step(weights: Weights, rate: float = 0.05) -> None:
    """Some steps of training, so that masters are no longer what was loaded."""
    optimizer = torch.optim.SGD(list(weights.parameters().values()), lr=rate)
    for _ in range(3):
        loss = weights.model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def values(weights: Weights) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in weights.parameters().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys() and left
    assert all(torch.equal(left[name], right[name]) for name in left)


def assert_exported(folder: Path, weights: Weights, tied: bool, atol: float = 1e-5) -> None:
    """transformers alone loads it, and it is the trained model with its own tokenizer and settings."""
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert type(plain) is type(weights.model)
    torch.testing.assert_close(logits(plain).float(), logits(weights.model), atol=atol, rtol=0)
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == tied
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Which planet?"}]
    assert tokenizer.apply_chat_template(chat) == load_tokenizer(folder).apply_chat_template(chat)
    assert load_model(folder).generation_config.temperature == 0.6


# All weights


@each_family
def test_full_checkpoint(tmp_path: Path, save: Callable[..., Path]):
    base = save(tmp_path / "base")
    weights = FullWeights(*loaded(base), FP32)
    step(weights)
    want, masters = values(weights), weights.parameters()
    weights.save(tmp_path / "saved")
    other = FullWeights(*loaded(base), FP32)
    identities = {name: id(p) for name, p in other.parameters().items()}
    other.restore(tmp_path / "saved")
    assert_same(values(other), want)
    assert {name: id(p) for name, p in other.parameters().items()} == identities, "the optimiser's own parameters"
    assert masters.keys() == dict(weights.model.named_parameters()).keys()


@each_family
@pytest.mark.parametrize("dtype", [FP32, torch.bfloat16])
def test_full_export(tmp_path: Path, save: Callable[..., Path], dtype: torch.dtype):
    weights = FullWeights(*loaded(save(tmp_path / "base")), dtype)
    step(weights)
    weights.save(tmp_path / "saved")
    weights.export(tmp_path / "saved", tmp_path / "export")
    tied = save is save_tiny_llama
    assert_exported(tmp_path / "export", weights, tied, atol=1e-5 if dtype == FP32 else 0.05)
    exported = load_file(tmp_path / "export" / "model.safetensors")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert_same(exported, {name: tensor.to(dtype) for name, tensor in saved.items()})
    assert json.loads((tmp_path / "export" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    if dtype == FP32:
        # A config edited in the export must leave the checkpoint, whose hashes are kept, alone.
        before = (tmp_path / "saved" / "config.json").read_text()
        (tmp_path / "export" / "config.json").write_text("{}")
        assert (tmp_path / "saved" / "config.json").read_text() == before


def test_the_export_is_the_checkpoints_not_what_the_parameters_are_by_now(tmp_path: Path):
    for weights, kind in ((FullWeights, "full"), (LoraWeights, "lora")):
        base = save_tiny_llama(tmp_path / kind)
        model, tokenizer = loaded(base)
        if weights is LoraWeights:
            add_lora(model, LoraSettings(2, 4.0), seed=0)
            made: Weights = LoraWeights(model, tokenizer, str(base), None, FP32, merged=True)
        else:
            made = FullWeights(model, tokenizer, torch.bfloat16)
        step(made)
        made.save(base / "saved")
        want = logits(model)
        with torch.no_grad():
            for parameter in made.parameters().values():
                parameter.fill_(torch.nan)
        made.export(base / "saved", base / "export")
        got = logits(AutoModelForCausalLM.from_pretrained(base / "export")).float()
        torch.testing.assert_close(got, want, atol=0.05, rtol=0)


def test_shards_are_restored(tmp_path: Path):
    model, tokenizer = loaded(save_tiny_qwen3(tmp_path / "base"))
    weights = FullWeights(model, tokenizer, FP32)
    want = values(weights)
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    step(weights)
    weights.restore(tmp_path / "saved")
    assert_same(values(weights), want)


def test_weights_restored_where_the_file_has_them_need_no_second_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = FullWeights(*loaded(save_tiny_llama(tmp_path / "base")), FP32)
    weights.save(tmp_path / "saved")
    monkeypatch.setattr("sparring.lm.weights.load_model", None)
    weights.restore(tmp_path / "saved")


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_families_whose_files_have_other_names(tmp_path: Path, family: str):
    """Mixtral's experts are one tensor in memory and one tensor an expert in the file."""
    tokenizer = chat_tokenizer()
    torch.manual_seed(0)
    if family == "gpt2":
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2))
    else:
        settings = sizes(tokenizer, hidden_size=16, num_local_experts=2, head_dim=4)
        model = MixtralForCausalLM(MixtralConfig(**settings))
    save_model(model, tokenizer, tmp_path / "base")
    weights = FullWeights(*loaded(tmp_path / "base"), FP32)
    step(weights)
    want = values(weights)
    weights.save(tmp_path / "saved")
    same_names = set(load_file(tmp_path / "saved" / "model.safetensors")) == set(want)
    assert same_names == (family == "gpt2")
    other = FullWeights(*loaded(tmp_path / "base"), FP32)
    other.restore(tmp_path / "saved")
    assert_same(values(other), want)


def test_another_models_weights_are_not_restored(tmp_path: Path):
    weights = FullWeights(*loaded(save_tiny_llama(tmp_path / "small")), FP32)
    before = values(weights)
    large = save_tiny_llama(tmp_path / "large", hidden_size=64)
    with pytest.raises(LoadError, match=r"holds another model.*embed_tokens\.weight doesn't fit"):
        weights.restore(large)
    with pytest.raises(LoadError, match=r"no such folder|no config"):
        weights.restore(tmp_path / "nothing")
    assert_same(values(weights), before)


def test_a_model_with_its_own_code_is_restored_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "transformers_modules", raising=False)
    base = save_tiny_llama(tmp_path / "base")
    (base / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((base / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (base / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": code}))
    model, tokenizer = load_model(base, remote_code=True), load_tokenizer(base, remote_code=True)
    weights = FullWeights(model, tokenizer, torch.bfloat16)
    step(weights)
    weights.save(tmp_path / "saved")
    weights.export(tmp_path / "saved", tmp_path / "export")
    exported = load_model(tmp_path / "export", remote_code=True)
    torch.testing.assert_close(logits(exported), logits(model), atol=0.05, rtol=0)


# Adapters


def lora(base: Path, dtype: torch.dtype = FP32, *, merged: bool, seed: int = 3) -> LoraWeights:
    model, tokenizer = loaded(base)
    add_lora(model, LoraSettings(4, 8.0), seed)
    return LoraWeights(model, tokenizer, str(base), None, dtype, merged)


@each_family
def test_lora_checkpoint(tmp_path: Path, save: Callable[..., Path]):
    base = save(tmp_path / "base")
    weights = lora(base, merged=True)
    step(weights, 1.0)
    want = values(weights)
    assert all(".lora_" in name for name in want)
    weights.save(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("model*"))
    other = lora(base, merged=True, seed=9)
    other.restore(tmp_path / "saved")
    assert_same(values(other), want)
    # The checkpoint of a LoRA run is itself an adapter's folder.
    torch.testing.assert_close(logits(load_model(tmp_path / "saved")), logits(weights.model), atol=1e-5, rtol=0)
    assert load_tokenizer(tmp_path / "saved").chat_template == weights.tokenizer.chat_template


@each_family
@pytest.mark.parametrize("dtype", [FP32, torch.bfloat16])
def test_lora_merged_export(tmp_path: Path, save: Callable[..., Path], dtype: torch.dtype):
    weights = lora(save(tmp_path / "base"), dtype, merged=True)
    step(weights, 1.0)
    weights.save(tmp_path / "saved")
    weights.export(tmp_path / "saved", tmp_path / "export")
    tied = save is save_tiny_llama
    assert_exported(tmp_path / "export", weights, tied, atol=1e-5 if dtype == FP32 else 0.1)
    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {dtype}
    assert not any("lora" in name or "base_layer" in name for name in exported)
    assert not list((tmp_path / "export").glob("adapter*"))
    if dtype == FP32:  # what the policy computed while it was trained
        policy, plain = (open_lm(m, FP32, trainable=False) for m in (weights.model, load_model(tmp_path / "export")))
        torch.testing.assert_close(policy.score([GROUP]).logprobs_S, plain.score([GROUP]).logprobs_S, atol=1e-5, rtol=0)


@each_family
def test_lora_kept_export(tmp_path: Path, save: Callable[..., Path]):
    base = save(tmp_path / "base")
    weights = lora(base, torch.bfloat16, merged=False)
    step(weights, 1.0)
    weights.save(tmp_path / "saved")
    weights.export(tmp_path / "saved", tmp_path / "export")
    assert not list((tmp_path / "export").glob("model*"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=FP32)
    torch.testing.assert_close(logits(plain), logits(weights.model), atol=1e-5, rtol=0)
    template = AutoTokenizer.from_pretrained(tmp_path / "export").chat_template
    assert template == weights.tokenizer.chat_template
    # A second run over the kept adapters can be merged, but not kept: nothing loads an adapter over an adapter.
    with pytest.raises(ValueError, match=r"is itself an adapter.*export\.adapter=merged"):
        lora(tmp_path / "export", merged=False)
    second = lora(tmp_path / "export", merged=True)
    step(second, 1.0)
    second.save(tmp_path / "second")
    second.export(tmp_path / "second", tmp_path / "both")
    both = AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    torch.testing.assert_close(logits(both), logits(second.model), atol=1e-5, rtol=0)


def test_four_bit_training_exports_into_the_unquantised_base(tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    base = save_tiny_llama(tmp_path / "base", hidden_size=64)
    model = load_model(base, four_bit=True)
    add_lora(model, LoraSettings(4, 8.0), seed=0)
    weights = LoraWeights(model, load_tokenizer(base), str(base), None, FP32, merged=True)
    step(weights, 1.0)
    weights.save(tmp_path / "saved")
    weights.export(tmp_path / "saved", tmp_path / "export")
    assert "quantization_config" not in json.loads((tmp_path / "export" / "config.json").read_text())
    # The same adapters over the whole weights are what is exported.
    whole = lora(base, merged=True)
    whole.restore(tmp_path / "saved")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(logits(exported), logits(whole.model), atol=1e-5, rtol=0)
    save_model(load_model(base, four_bit=True), load_tokenizer(base), tmp_path / "four")
    packed = load_model(tmp_path / "four", four_bit=True)
    add_lora(packed, LoraSettings(4, 8.0), seed=0)
    with pytest.raises(ValueError, match=r"4-bit weights only.*export\.adapter=kept"):
        LoraWeights(packed, load_tokenizer(base), str(tmp_path / "four"), None, FP32, merged=True)
    kept = LoraWeights(packed, load_tokenizer(base), str(tmp_path / "four"), None, FP32, merged=False)
    kept.save(tmp_path / "kept")
    kept.restore(tmp_path / "kept")
