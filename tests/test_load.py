"""sparring.lm.load: what is loaded, what is refused and how the refusal reads."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from sparring.lm import engines
from sparring.lm.base import PromptGroup
from sparring.lm.generic import GenericLM
from sparring.lm.llama import FastLlama
from sparring.lm.load import (
    LoadError,
    frozen_copy,
    load_model,
    load_reward_model,
    load_tokenizer,
    open_frozen,
    open_lm,
    open_reference,
    resolve_dtype,
    save_model,
)
from sparring.lm.lora import LoraSettings, add_lora, has_adapters, save_adapter
from sparring.lm.probe import agrees
from tiny_models import save_tiny_llama, save_tiny_qwen3, save_tiny_reward

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def tiny_config(**changes: object) -> LlamaConfig:
    values = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaConfig(**(values | {"num_attention_heads": 2, "num_key_value_heads": 1} | changes))


def tiny_model(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(**changes))


def tiny_tokenizer(template: str | None = TEMPLATE, **special: str) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", "<pad>", "user", "assistant", ":", "a", "b"]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **special)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny_model(), tiny_tokenizer(eos_token="</s>", pad_token="<pad>"), tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_bit_exact(tmp_path: Path, tied: bool):
    model, tokenizer = (
        tiny_model(tie_word_embeddings=tied),
        tiny_tokenizer(eos_token="</s>", pad_token="<pad>"),
    )
    model.generation_config.temperature = 0.6  # without do_sample, as published models have it
    model.generation_config.do_sample = True
    model.generation_config.eos_token_id = [2, 3]
    save_model(model, tokenizer, tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = load_model(tmp_path)
    assert not again.training and again.dtype == torch.float32
    assert again.generation_config is not None and again.generation_config.eos_token_id == [2, 3]
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
    told = load_tokenizer(tmp_path)
    chat = [{"role": "user", "content": "a b"}]
    assert told.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 4, 6, 7]])
    assert torch.equal(plain(ids).logits, again(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == TEMPLATE


def test_dtype_and_sharded_weights(tmp_path: Path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    shards[0].unlink()
    with pytest.raises(LoadError, match=f"missing: {shards[0].name}"):
        load_model(tmp_path)


def test_a_published_generation_config_can_be_saved_again(folder: Path, tmp_path: Path):
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9}))
    model = load_model(folder)
    save_model(model, load_tokenizer(folder), tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert saved["temperature"] == 0.6 and saved["do_sample"] is True


# What is refused


@pytest.mark.parametrize("name", ["nowhere/at/all", "./nowhere", "/nowhere", Path("nowhere")])
def test_missing_folder(name: str | Path):
    for load in (load_model, load_tokenizer):
        with pytest.raises(LoadError, match="no such folder"):
            load(name)


def test_hub_unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for load in (load_model, load_tokenizer):
        with pytest.raises(LoadError, match=r"someone/some-model.*HF_HUB_OFFLINE"):
            load("someone/some-model")


def test_pickled_weights(folder: Path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"no model\.safetensors.*pytorch_model\.bin.*pickles"):
        load_model(folder)


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"no model\.safetensors; save the model"):
        load_model(folder)


def test_no_config(folder: Path):
    (folder / "config.json").unlink()
    with pytest.raises(LoadError, match=r"no config\.json"):
        load_model(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(LoadError, match=r"both a model's weights and adapter_config\.json"):
        load_model(folder)


def test_broken_config(folder: Path):
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(LoadError, match=r"config\.json: not valid JSON"):
        load_model(folder)


def test_broken_weights(folder: Path):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match="can't be read"):
        load_model(folder)


def test_not_a_causal_lm(tmp_path: Path, folder: Path):
    LlamaForSequenceClassification(tiny_config(pad_token_id=0)).save_pretrained(tmp_path / "classifier")
    with pytest.raises(LoadError, match=r"not a causal.*LlamaForSequenceClassification"):
        load_model(tmp_path / "classifier")
    edit_config(folder, model_type="t5", architectures=["T5ForConditionalGeneration"])
    with pytest.raises(LoadError, match=r"not a causal.*'t5'"):
        load_model(folder)


def test_code_shipped_with_a_model_is_not_run_unasked(folder: Path):
    ran = folder / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    edit_config(folder, model_type="homemade", auto_map={"AutoModelForCausalLM": "code.Model"})
    with pytest.raises(LoadError, match=rf"{folder}.*set model\.remote_code to this very name"):
        load_model(folder)
    # A model_type that transformers knows is loaded by transformers' own code.
    edit_config(folder, model_type="llama")
    assert isinstance(load_model(folder), LlamaForCausalLM)
    assert not ran.exists()


HOMEMADE = """
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

class Doubled(nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden)

class HomeConfig(LlamaConfig):
    model_type = "homemade"

class HomeModel(LlamaForCausalLM):
    config_class = HomeConfig

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = Doubled(config.hidden_size, config.vocab_size, bias=False)
"""


@pytest.fixture
def homemade(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of its own code; the copy of it that transformers runs is kept under tmp_path."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "transformers_modules", raising=False)
    (folder / "home.py").write_text(HOMEMADE)
    code = {"AutoConfig": "home.HomeConfig", "AutoModelForCausalLM": "home.HomeModel"}
    edit_config(folder, model_type="homemade", architectures=["HomeModel"], auto_map=code)
    return folder


def test_trusted_code_is_run_and_saved_with_the_model(homemade: Path, tmp_path: Path):
    model, plain = load_model(homemade, remote_code=True), tiny_model().eval()
    ids = torch.tensor([[1, 4, 6, 7]])
    assert type(model).__name__ == "HomeModel"
    torch.testing.assert_close(model(ids).logits, 2 * plain(ids).logits)
    assert isinstance(open_lm(model, torch.float32, True), GenericLM)
    save_model(model, load_tokenizer(homemade, remote_code=True), tmp_path / "again")
    assert torch.equal(load_model(tmp_path / "again", remote_code=True)(ids).logits, model(ids).logits)


def test_code_that_cannot_run(homemade: Path):
    (homemade / "home.py").write_text("import nowhere_to_be_found\n" + HOMEMADE)
    with pytest.raises(LoadError, match="nowhere_to_be_found"):
        load_model(homemade, remote_code=True)
    edit_config(homemade, auto_map={"AutoModelForCausalLM": "someone/else--home.HomeModel"})
    with pytest.raises(LoadError, match=r"another repository \(AutoModelForCausalLM: someone/else--"):
        load_model(homemade, remote_code=True)


def test_what_is_fetched_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **kwargs: Any) -> str:
        asked.append({"name": name, **kwargs})
        return str(folder)

    monkeypatch.setattr("sparring.lm.hub.snapshot_download", snapshot_download)
    load_model("owner/name", revision="v1")
    load_tokenizer("owner/name")
    assert [call["revision"] for call in asked] == ["v1", None]
    patterns = [call["allow_patterns"] for call in asked]
    assert "model.safetensors" in patterns[0] and "adapter_model.safetensors" in patterns[0]
    assert not any("safetensors" in pattern for pattern in patterns[1])
    assert not any(".py" in pattern for call in patterns for pattern in call) and not caplog.records
    load_model("owner/name", revision="v1", remote_code=True)
    assert "*.py" in asked[-1]["allow_patterns"] and not caplog.records
    load_model("owner/name", remote_code=True)
    assert "pin model.revision" in caplog.text
    caplog.clear()
    load_model(folder, remote_code=True)
    assert not caplog.records, "a folder has no revision"


@pytest.mark.parametrize("attention", ["flash_attention_2", "quick"])
def test_attention_that_cannot_be_used(folder: Path, attention: str):
    for load in (load_model, lambda path, **k: load_reward_model(save_tiny_reward(path / "reward"), **k)):
        with pytest.raises(LoadError, match=rf"model\.attention={attention} can't be used.*sdpa or eager"):
            load(folder, attention=attention)


def test_quantised(folder: Path):
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    for four_bit in (False, True):
        with pytest.raises(LoadError, match=r"\(gptq\) can't be trained.*unquantised"):
            load_model(folder, four_bit=four_bit)
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(LoadError, match=r"\(bitsandbytes\) can't be trained"):
        load_model(folder, four_bit=True)
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(LoadError, match=r"QLoRA only; set model\.tuning=qlora"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"missing: model\.norm\.weight"),
        (lambda w: w.update({"model.extra.weight": torch.zeros(2)}), r"unexpected: model\.extra\.weight"),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(3)}),
            r"of another shape: model\.norm\.weight \(file \(3,\), config \(16,\)\)",
        ),
    ],
)
def test_weights_that_do_not_match(folder: Path, change: Callable, message: str):
    edit_weights(folder, change)
    with pytest.raises(LoadError, match=message):
        load_model(folder)


# Tokenizers


def test_chat_template(tmp_path: Path):
    tiny_tokenizer(None, eos_token="</s>", pad_token="<pad>").save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"no chat template.*model\.chat_template=FILE"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, TEMPLATE).chat_template == TEMPLATE


def test_padding_defaults_to_eos_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tiny_tokenizer(eos_token="</s>").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "sparring"):
        tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token == "</s>"
    assert [record.getMessage() for record in caplog.records if "padding with '</s>'" in record.getMessage()]


def test_neither_padding_nor_eos(tmp_path: Path):
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="eos_token"):
        load_tokenizer(tmp_path)


def test_no_tokenizer(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(LoadError, match="no tokenizer"):
        load_tokenizer(folder)


# Copies, dtypes, paths


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_copy(tied: bool):
    model = tiny_model(tie_word_embeddings=tied).train()
    frozen = frozen_copy(model)
    assert not frozen.training and model.training
    assert not any(p.requires_grad for p in frozen.parameters()) and all(p.requires_grad for p in model.parameters())
    assert (frozen.lm_head.weight is frozen.get_input_embeddings().weight) == tied
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert frozen.lm_head.weight.any()


@pytest.mark.parametrize("path", ["auto", "generic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_update_reaches_the_frozen_reference(path: Literal["auto", "generic"], dtype: torch.dtype):
    model = tiny_model()
    group = PromptGroup((3, 4), ((5, 6, 7),))
    frozen = open_frozen(model, dtype, path=path)
    with torch.no_grad():
        before = frozen.score([group]).logprobs_S
        for parameter in model.parameters():
            parameter.add_(0.5)
        if path == "auto":
            frozen.refresh()
        assert torch.equal(frozen.score([group]).logprobs_S, before)
        policy = open_lm(model, dtype, trainable=True, path=path)
        assert not torch.allclose(policy.score([group]).logprobs_S, before, atol=1e-2)


def test_resolve_dtype():
    assert resolve_dtype("float32", "cpu") == torch.float32
    assert resolve_dtype("bfloat16", "cpu") == torch.bfloat16
    has = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    assert resolve_dtype("auto", "cpu") == (torch.bfloat16 if has else torch.float32)
    assert resolve_dtype("auto", "meta") == torch.float32
    with pytest.raises(ValueError, match="float16"):
        resolve_dtype("float16", "cpu")


def test_open_lm_takes_the_fast_path_where_it_can():
    assert isinstance(open_lm(tiny_model(), torch.float32, True), FastLlama)
    assert isinstance(open_lm(tiny_model(), torch.float32, True, path="generic"), GenericLM)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2))
    assert isinstance(open_lm(gpt2, torch.float32, True), GenericLM)
    with pytest.raises(ValueError, match="quick"):
        open_lm(gpt2, torch.float32, True, path="quick")  # pyright: ignore[reportArgumentType]


class Broken(FastLlama):
    """A fast engine that goes wrong as one on an untried device might."""

    def __init__(self, how: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.how = how
        if how == "weights":
            self.layers[0].attention_norm.data.mul_(3)

    def score(self, *args: Any, **kwargs: Any) -> Any:
        if self.how == "raises":
            raise RuntimeError("no kernel image")
        scores = super().score(*args, **kwargs)
        return replace(scores, logprobs_S=scores.logprobs_S * torch.nan) if self.how == "nan" else scores

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        ((written,),) = super().generate(*args, **kwargs)
        return [[replace(written, logprobs=written.logprobs - 1)]] if self.how == "generation" else [[written]]


def lively_model() -> LlamaForCausalLM:
    model = tiny_model(vocab_size=50)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_path_agrees_with_transformers(dtype: torch.dtype):
    model = lively_model()
    assert agrees(FastLlama(model, dtype, trainable=True), model) is None
    assert agrees(GenericLM(model, dtype, trainable=True), model) is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("weights", r"^its scores differ from transformers' by 0\.\d+ nats a token$"),
        ("generation", r"^its scores differ from its own generation by 1 nats a token$"),
        ("nan", "differ from transformers' by nan nats a token and .* own generation by nan"),
        ("raises", "^it failed with RuntimeError: no kernel image$"),
    ],
)
def test_a_fast_path_that_goes_wrong_is_replaced(
    how: str, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    model = lively_model()
    reason = agrees(Broken(how, model, torch.float32, trainable=True), model)
    assert reason is not None and re.search(message, reason)

    class Engine(Broken):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(how, *args, **kwargs)

    monkeypatch.setattr(engines, "FastLlama", Engine)
    assert isinstance(open_lm(model, torch.float32, True), Engine), "a CPU needs no check"
    assert not caplog.records
    monkeypatch.setattr(engines, "PROVEN", ())
    policy = open_lm(model, torch.float32, True)
    assert isinstance(policy, GenericLM) and f"the fast path is not used, as {reason}" in caplog.text
    assert isinstance(open_reference(policy, model, torch.float32), GenericLM), "the reference follows the policy"


@pytest.mark.parametrize("path", ["auto", "generic"])
def test_the_reference_of_adapters_is_the_policy_without_them(folder: Path, path: Literal["auto", "generic"]):
    group = PromptGroup((3, 4), ((5, 6, 7),))
    base, model = load_model(folder), load_model(folder)
    add_lora(model, LoraSettings(2, 4.0), seed=0)
    with torch.no_grad():
        for parameter in (p for name, p in model.named_parameters() if "lora_B" in name):
            parameter.fill_(0.1)
    policy = open_lm(model, torch.float32, True, path=path)
    reference = open_reference(policy, model, torch.float32, path=path)
    want = open_frozen(base, torch.float32, path=path)
    with torch.no_grad():
        scores = [lm.score([group]).logprobs_S for lm in (policy, reference, want)]
        torch.testing.assert_close(scores[1], scores[2], atol=0, rtol=0)
        assert not torch.allclose(scores[0], scores[1], atol=1e-3)
        kl_S = policy.score([group], reference=reference).kl_S
    assert kl_S is not None and (kl_S > 0).all()


def test_the_reference_of_full_training_is_a_frozen_copy():
    model, group = tiny_model(), PromptGroup((3, 4), ((5, 6, 7),))
    policy = open_lm(model, torch.float32, True)
    reference = open_reference(policy, model, torch.float32)
    with torch.no_grad():
        before = reference.score([group]).logprobs_S
        for parameter in model.parameters():
            parameter.add_(0.5)
        policy.refresh()
        assert torch.equal(reference.score([group]).logprobs_S, before)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=r"model\.reference can't run.*GPT2.*model\.engine=generic"):
        open_reference(policy, gpt2, torch.float32)


# Adapters' folders


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    """A folder with an adapter over `folder`, that does something."""
    model = load_model(folder)
    add_lora(model, LoraSettings(2, 4.0), seed=0)
    with torch.no_grad():
        for parameter in (p for name, p in model.named_parameters() if "lora_B" in name):
            parameter.fill_(0.1)
    save_adapter(model, tmp_path / "adapter", str(folder))
    return tmp_path / "adapter"


def edit_adapter(adapter: Path, **changes: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_an_adapter_is_merged_into_its_base(folder: Path, adapter: Path):
    ids = torch.tensor([[1, 4, 6, 7]])
    model, theirs = load_model(adapter), AutoModelForCausalLM.from_pretrained(adapter)
    assert type(model) is LlamaForCausalLM and not has_adapters(model) and not model.training
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-6, rtol=0)
    assert not torch.allclose(model(ids).logits, load_model(folder)(ids).logits, atol=1e-3)
    # Merged in fp32, then cast.
    low = load_model(adapter, dtype=torch.bfloat16)
    assert all(torch.equal(p, model.get_parameter(name).bfloat16()) for name, p in low.named_parameters())
    assert low.model.rotary_emb.inv_freq.dtype == torch.float32


def test_an_adapters_tokenizer_is_its_own_or_its_bases(folder: Path, adapter: Path):
    assert load_tokenizer(adapter).chat_template == TEMPLATE
    tiny_tokenizer("{{ 'own' }}", eos_token="</s>", pad_token="<pad>").save_pretrained(adapter)
    assert load_tokenizer(adapter).chat_template == "{{ 'own' }}"
    assert load_tokenizer(adapter, "{{ 'given' }}").chat_template == "{{ 'given' }}"


def test_adapters_that_cannot_be_loaded(folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(LoadError, match=r"can't be merged into 4-bit weights.*export\.adapter=merged"):
        load_model(adapter, four_bit=True)
    with pytest.raises(LoadError, match="is an adapter; merge it"):
        load_reward_model(adapter)
    edit_adapter(adapter, base_model_name_or_path="./runs/base")
    with pytest.raises(LoadError, match=r"base model can't be loaded.*runs/base: no such folder.*relative path"):
        load_model(adapter)
    edit_adapter(adapter, base_model_name_or_path=None)
    with pytest.raises(LoadError, match=r"names no base model; set base_model_name_or_path"):
        load_model(adapter)
    # The base's own code is not run, whatever the adapter is trusted with.
    edit_adapter(adapter, base_model_name_or_path=str(folder))
    edit_config(folder, model_type="homemade", auto_map={"AutoModelForCausalLM": "code.Model"})
    with pytest.raises(LoadError, match=r"base model can't be loaded.*needs code"):
        load_model(adapter, remote_code=True)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LoadError, match=r"pip install 'sparring\[lora\]'"):
        load_model(adapter)


# Reward models


def test_reward_model(tmp_path: Path):
    folder = save_tiny_reward(tmp_path / "reward")
    model = load_reward_model(folder)
    theirs = LlamaForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([[5, 9, 3]])
    assert not model.training and torch.equal(model(ids).logits, theirs(ids).logits)
    assert load_reward_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(LoadError, match=r"not a causal language model.*LlamaForSequenceClassification"):
        load_model(folder)
    edit_weights(folder, lambda w: w.pop("score.weight"))
    with pytest.raises(LoadError, match=r"missing: score\.weight"):
        load_reward_model(folder)


def test_what_is_no_reward_model(tmp_path: Path, folder: Path):
    with pytest.raises(LoadError, match="is a language model, not a reward model"):
        load_reward_model(folder)
    with pytest.raises(LoadError, match=r"num_labels is 3.*must be 1"):
        LlamaForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path / "three")
        load_reward_model(tmp_path / "three")
    with pytest.raises(LoadError, match="num_labels is 2"):
        LlamaForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "two")  # two is the default
        load_reward_model(tmp_path / "two")
    edit_config(folder, architectures=["LlamaModel"])
    with pytest.raises(LoadError, match=r"not a reward model.*LlamaModel"):
        load_reward_model(folder)
    edit_config(folder, model_type="homemade", auto_map={"AutoModelForSequenceClassification": "code.Model"})
    with pytest.raises(LoadError, match="which rewards never run"):
        load_reward_model(folder)


# Four bits


@pytest.mark.parametrize("package", ["bitsandbytes", "peft", "accelerate"])
def test_four_bits_need_packages(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoadError, match=rf"{package} must be installed.*pip install 'sparring\[qlora\]'"):
        load_model(folder, four_bit=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("save", [save_tiny_llama, save_tiny_qwen3])
def test_four_bits(tmp_path: Path, dtype: torch.dtype, save: Callable[..., Path]):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = save(tmp_path / "model", hidden_size=64)
    ids = torch.tensor([[5, 17, 3, 40, 9, 22, 8]])
    model, whole = load_model(folder, dtype=dtype, four_bit=True), load_model(folder)
    linear = model.get_submodule("model.layers.0.mlp.up_proj")
    assert type(linear).__name__ == "Linear4bit" and linear.weight.dtype == torch.uint8
    assert linear.weight.quant_state.quant_type == "nf4" and linear.weight.quant_state.nested
    assert linear.compute_dtype == dtype and model.get_output_embeddings().weight.dtype == dtype
    assert not model.training
    gap = (model(ids).logits.log_softmax(-1) - whole(ids).logits.log_softmax(-1)).abs()
    assert 0 < gap.mean() < 0.1
    edit_weights(folder, lambda w: w.pop("model.norm.weight"))
    with pytest.raises(LoadError, match=r"missing: model\.norm\.weight"):
        load_model(folder, dtype=dtype, four_bit=True)


def test_published_four_bit_weights(tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder, ids = save_tiny_llama(tmp_path / "model", hidden_size=64), torch.tensor([[5, 17, 3, 40]])
    model = load_model(folder, four_bit=True)
    save_model(model, load_tokenizer(folder), tmp_path / "four")
    with pytest.raises(LoadError, match=r"QLoRA only; set model\.tuning=qlora"):
        load_model(tmp_path / "four")
    again = load_model(tmp_path / "four", four_bit=True)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_mistyped_local_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match="runs/grpo: no such folder"):
        load_model("runs/grpo")
