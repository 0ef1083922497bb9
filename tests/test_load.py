"""sparring.lm.load: what is loaded, what is refused and how the refusal reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

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

from sparring.lm.base import PromptGroup
from sparring.lm.generic import GenericLM
from sparring.lm.load import (
    LoadError,
    frozen_copy,
    load_model,
    load_tokenizer,
    open_frozen,
    open_lm,
    resolve_dtype,
    save_model,
)

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
    with pytest.raises(LoadError, match="merge the adapter"):
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


def test_remote_code_is_never_run(folder: Path):
    ran = folder / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    edit_config(folder, model_type="homemade", auto_map={"AutoModelForCausalLM": "code.Model"})
    with pytest.raises(LoadError, match="never run here"):
        load_model(folder)
    # A model_type that transformers knows is loaded by transformers' own code.
    edit_config(folder, model_type="llama")
    assert isinstance(load_model(folder), LlamaForCausalLM)
    assert not ran.exists()


def test_quantised(folder: Path):
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(LoadError, match="unquantised"):
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
    with pytest.raises(LoadError, match=r"no chat template.*pass chat_template"):
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
    from sparring.lm.llama import FastLlama

    assert isinstance(open_lm(tiny_model(), torch.float32, True), FastLlama)
    assert isinstance(open_lm(tiny_model(), torch.float32, True, path="generic"), GenericLM)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2))
    assert isinstance(open_lm(gpt2, torch.float32, True), GenericLM)
    with pytest.raises(ValueError, match="quick"):
        open_lm(gpt2, torch.float32, True, path="quick")  # pyright: ignore[reportArgumentType]


def test_a_mistyped_local_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match="runs/grpo: no such folder"):
        load_model("runs/grpo")
