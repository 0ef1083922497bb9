"""sparring.lm.lora: adapters in a model, in files and merged, against peft and transformers themselves."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from sparring.lm.load import LoadError, frozen_copy, load_model
from sparring.lm.lora import (
    LoraSettings,
    adapters_disabled,
    add_lora,
    has_adapters,
    is_adapter_parameter,
    merge_adapter,
    restore_adapter,
    save_adapter,
)
from tiny_models import save_tiny_llama, save_tiny_qwen3

SETTINGS = LoraSettings(rank=4, alpha=6.0)
IDS = torch.tensor([[5, 17, 3, 40, 9, 22, 8]])
SAVERS = [save_tiny_llama, save_tiny_qwen3]
each_family = pytest.mark.parametrize("save", SAVERS, ids=["llama", "qwen3"])


def gpt2() -> PreTrainedModel:  # transposed weights, tied head
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()


def phi() -> PreTrainedModel:  # biases everywhere
    config = PhiConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return PhiForCausalLM(config).eval()


def adapted(model: PreTrainedModel, settings: LoraSettings = SETTINGS, seed: int = 3) -> PreTrainedModel:
    """The model with adapters that do something."""
    add_lora(model, settings, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def adapters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if is_adapter_parameter(name)}


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "base")


# Put into a model


@pytest.mark.parametrize("make", [gpt2, phi])
def test_every_linear_layer_but_the_head_is_adapted_and_only_the_adapters_learn(make: Callable[[], PreTrainedModel]):
    model = make()
    before, kind = logits(model), type(model)
    head = model.get_output_embeddings()
    linears = sum(
        isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D" for m in model.modules() if m is not head
    )
    add_lora(model, SETTINGS, seed=0)
    assert type(model) is kind and model.get_output_embeddings() is head
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if is_adapter_parameter(name)}
    assert len(learning) == 2 * linears
    assert torch.equal(logits(model), before), "B begins at zero"
    assert not model.training


def test_adapters_are_fp32_over_any_base(folder: Path):
    model = load_model(folder, dtype=torch.bfloat16)
    add_lora(model, SETTINGS, seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert logits(model).dtype == torch.bfloat16


def test_targets_name_the_layers(folder: Path):
    model = load_model(folder)
    add_lora(model, LoraSettings(2, 4.0, ("q_proj", "layers.1.mlp.up_proj")), seed=0)
    layers = {name.partition(".lora_")[0] for name in adapters(model)}
    assert layers == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }


@pytest.mark.parametrize("target", ["query", "lm_head", "embed_tokens", "proj", "mlp"])
def test_unknown_targets_are_refused_and_the_known_listed(folder: Path, target: str):
    message = rf"model\.lora\.targets.*called {target}.*down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(ValueError, match=message):
        add_lora(load_model(folder), LoraSettings(2, 4.0, ("q_proj", target)), seed=0)


def test_experts_that_peft_would_adapt_unasked_are_refused():
    config = Qwen3NextConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
        layer_types=["full_attention"],
    )  # fmt: skip
    with (
        pytest.warns(RuntimeWarning, match="gate_up_proj"),
        pytest.raises(ValueError, match=r"model\.lora\.targets: peft takes .*gate_proj.*experts'"),
    ):
        add_lora(Qwen3NextForCausalLM(config), SETTINGS, seed=0)
    model = Qwen3NextForCausalLM(config)
    add_lora(model, LoraSettings(2, 4.0, ("q_proj", "o_proj")), seed=0)
    assert len(adapters(model)) == 4


def test_the_seed_alone_decides_and_torch_is_left_alone(folder: Path):
    drawn = []
    for disturbance, seed in ((0, 1), (7, 1), (7, 2)):
        model = load_model(folder)
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        add_lora(model, SETTINGS, seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(adapters(model))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    a = [name for name in drawn[0] if "lora_A" in name]
    assert all(not torch.equal(drawn[1][name], drawn[2][name]) for name in a)
    for name in a:  # uniform in ±1/√in, as peft draws them
        value = drawn[0][name]
        bound = value.shape[1] ** -0.5
        assert 0.8 * bound < value.abs().max() <= bound and value.abs().mean() == pytest.approx(bound / 2, rel=0.2)


def test_without_peft_the_pip_command_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = load_model(folder)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LoadError, match=r"peft must be installed.*pip install 'sparring\[lora\]'"):
        add_lora(model, SETTINGS, seed=0)
    assert not has_adapters(model)


# In files


@each_family
def test_peft_and_transformers_load_what_is_saved(tmp_path: Path, save: Callable[..., Path]):
    base = save(tmp_path / "base")
    model = adapted(load_model(base))
    save_adapter(model, tmp_path / "adapter", str(base), "main")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["revision"] == "main"
    assert config["target_modules"] == sorted(config["target_modules"]) and config["inference_mode"] is True
    theirs = PeftModel.from_pretrained(load_model(base), str(tmp_path / "adapter"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    for other in (theirs, plain):
        torch.testing.assert_close(logits(other), logits(model), atol=1e-6, rtol=0)
    assert (logits(model) - logits(load_model(base))).abs().max() > 0.01


def test_a_file_of_pefts_own_is_read(tmp_path: Path, folder: Path):
    """The same names in the file as peft writes, and its adapters restored into ours."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    theirs = get_peft_model(load_model(folder), config)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    model = load_model(folder)
    add_lora(model, LoraSettings(4, 6.0, ("q_proj", "v_proj")), seed=1)
    save_adapter(model, tmp_path / "ours", str(folder))
    names = [load_file(tmp_path / which / "adapter_model.safetensors").keys() for which in ("theirs", "ours")]
    assert names[0] == names[1]
    restore_adapter(model, tmp_path / "theirs")
    assert torch.equal(logits(model), logits(theirs))


def test_restored_bit_for_bit(tmp_path: Path, folder: Path):
    model = adapted(load_model(folder))
    save_adapter(model, tmp_path / "saved", str(folder))
    want = adapters(model)
    other = adapted(load_model(folder), seed=9)
    masters = dict(other.named_parameters())
    restore_adapter(other, tmp_path / "saved")
    got = adapters(other)
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert all(masters[name] is p for name, p in other.named_parameters()), "the same parameters, for the optimiser"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LoraSettings(8, 6.0), r"of another shape: .*\(file \(4, 32\), model \(8, 32\)\)"),
        (LoraSettings(4, 6.0, ("q_proj",)), r"unexpected: base_model\.model\.model\.layers\.0\.mlp"),
    ],
)
def test_other_adapters_are_not_restored(tmp_path: Path, folder: Path, settings: LoraSettings, message: str):
    save_adapter(adapted(load_model(folder)), tmp_path / "saved", str(folder))
    model = load_model(folder)
    add_lora(model, settings, seed=0)
    with pytest.raises(LoadError, match=rf"other adapters than the model has.*{message}"):
        restore_adapter(model, tmp_path / "saved")


def test_missing_or_broken_adapter_files(tmp_path: Path, folder: Path):
    model = adapted(load_model(folder))
    save_adapter(model, tmp_path / "saved", str(folder))
    weights = tmp_path / "saved" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({name: t.bfloat16() for name, t in tensors.items()}, weights)
    with pytest.raises(LoadError, match="of another dtype"):
        restore_adapter(model, tmp_path / "saved")
    tensors.popitem()
    save_file(tensors, weights)
    with pytest.raises(LoadError, match="missing: base_model"):
        restore_adapter(model, tmp_path / "saved")
    with pytest.raises(LoadError, match=r"doesn't fit its base model.*missing"):
        merge_adapter(load_model(folder), tmp_path / "saved")
    weights.write_bytes(b"broken")
    with pytest.raises(LoadError, match="can't be read"):
        restore_adapter(model, tmp_path / "saved")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(LoadError, match="no saved adapter"):
        merge_adapter(load_model(folder), tmp_path / "saved")


# Merged


@pytest.mark.parametrize("make", [gpt2, phi])
def test_merging_gives_the_same_model_without_peft(tmp_path: Path, make: Callable[[], PreTrainedModel]):
    torch.manual_seed(0)
    base = make()
    model = adapted(copy.deepcopy(base))
    save_adapter(model, tmp_path, "base")
    rng = torch.get_rng_state()
    merged = merge_adapter(base, tmp_path)
    assert torch.equal(torch.get_rng_state(), rng)
    assert merged is base and not has_adapters(merged) and not hasattr(merged, "peft_config")
    assert not any("peft" in type(module).__module__ for module in merged.modules())
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=0)
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    assert (head.weight is embedding.weight) == merged.config.tie_word_embeddings


def test_merging_by_hand(tmp_path: Path, folder: Path):
    model = load_model(folder)
    add_lora(model, LoraSettings(1, 3.0, ("q_proj",)), seed=0)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(2.0)
        layer.lora_B["default"].weight.fill_(0.5)
    save_adapter(model, tmp_path / "saved", str(folder))
    before = load_model(folder).get_parameter("model.layers.0.self_attn.q_proj.weight")
    merged = merge_adapter(load_model(folder), tmp_path / "saved")
    # W + (alpha / rank) · B A = W + 3 · 0.5 · 2
    torch.testing.assert_close(merged.get_parameter("model.layers.0.self_attn.q_proj.weight"), before + 3.0)


def test_other_kinds_of_adapters_are_not_merged(tmp_path: Path, folder: Path):
    save_adapter(adapted(load_model(folder)), tmp_path / "saved", str(folder))
    file = tmp_path / "saved" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(LoadError, match=r"IA3.*only LoRA"):
        merge_adapter(load_model(folder), tmp_path / "saved")
    file.write_text(json.dumps(config | {"target_modules": ["query"]}))
    with pytest.raises(LoadError, match=r"can't be merged into its base model.*query"):
        merge_adapter(load_model(folder), tmp_path / "saved")


# Switched off


def test_disabled_for_a_while(folder: Path):
    base, model = load_model(folder), adapted(load_model(folder))
    on, off = logits(model), logits(base)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    with adapters_disabled(model):
        assert torch.equal(logits(model), off)
        with adapters_disabled(model):
            assert torch.equal(logits(model), off)
        assert torch.equal(logits(model), off), "the inner one must not switch them on"
    assert torch.equal(logits(model), on)
    with pytest.raises(RuntimeError, match="inside"), adapters_disabled(model):
        raise RuntimeError("inside")
    assert torch.equal(logits(model), on)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learning


def test_disabling_leaves_frozen_adapters_frozen_and_gradients_flowing(folder: Path):
    model = adapted(load_model(folder))
    loss = model(input_ids=IDS).logits.square().mean()
    with adapters_disabled(model):
        pass
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    frozen = frozen_copy(model)
    with adapters_disabled(frozen):
        pass
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_model_without_adapters_is_left_alone(folder: Path):
    model = load_model(folder)
    with adapters_disabled(model):
        assert all(p.requires_grad for p in model.parameters())
    assert not has_adapters(model)
