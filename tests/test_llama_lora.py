"""FastLlama with LoRA: peft's own forward is the oracle; the base is shared, frozen, and its own reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedModel

from sparring.lm import llama_layers, llama_score
from sparring.lm.base import Completion, PromptGroup, SamplingParams
from sparring.lm.llama import FastLlama
from test_llama import llama_grouped, llama_tied, plain_scores, qwen2, qwen3, ragged_prompts, uniforms

peft = pytest.importorskip("peft", reason="peft makes the adapters and is the oracle")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GROUPS = [
    PromptGroup((1, 2, 3), ((4, 5, 6), (7,), ())),
    PromptGroup((8,), ((9, 10),)),
    PromptGroup((11, 12, 13, 14, 15), ((1, 2, 3, 4, 5, 6), (3, 3), (9,))),
]
Build = Callable[..., PreTrainedModel]
family = pytest.mark.parametrize("build", [llama_tied, llama_grouped, qwen2, qwen3])


def adapted(model: PreTrainedModel, targets: Sequence[str] = ALL, **config: Any) -> PreTrainedModel:
    """LoRA over `model`, in fp32, with a B that is not zero."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(targets), **config}
    peft.inject_adapter_in_model(peft.LoraConfig(**settings), model)
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            if ".lora_B." in name:
                parameter.data.normal_(std=0.1)
    return model


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Parameters in `dtype`, as they are loaded; rotary frequencies stay fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def trainable(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def storages(tensors: Sequence[torch.Tensor]) -> dict[int, int]:
    """Address and bytes of each piece of memory under these tensors."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def tensors_of(engine: FastLlama) -> list[torch.Tensor]:
    found = [engine.embedding, engine.norm, engine.head]
    for layer in engine.layers:
        found += [t for t in (layer.attention_norm, layer.mlp_norm, layer.q_norm, layer.k_norm) if t is not None]
        for projection in (layer.qkv, layer.out, layer.gate_up, layer.down):
            found += [t for t in (projection.weight, projection.bias) if t is not None]
            if projection.adapter is not None:
                found += [projection.adapter.down, projection.adapter.up]
    return found


def sample(engine: FastLlama, length: int = 12) -> list[Completion]:
    answers = engine.generate(ragged_prompts(), 2, SamplingParams(length), uniforms(6, length))
    return [completion for completions in answers for completion in completions]


def ids(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.ids for completion in completions]


SHAPES: list[dict[str, Any]] = [
    {"targets": ALL},
    {"targets": ["q_proj", "v_proj"]},
    {"targets": ["k_proj", "o_proj", "up_proj"], "rank_pattern": {"k_proj": 2}, "use_rslora": True},
    {"targets": ["gate_proj", "down_proj"], "layers_to_transform": [1]},
    {"targets": ALL, "rank_pattern": {"v_proj": 7, "gate_proj": 1}, "alpha_pattern": {"k_proj": 3}},
]


@family
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_scores_and_gradients_match_peft(build: Build, shape: dict[str, Any], checkpointing: bool) -> None:
    model = adapted(build(), **shape)
    engine = FastLlama(model, torch.float32, True, checkpointing=checkpointing)
    scores = engine.score(GROUPS, temperature=0.8, reference=engine.without_adapters(), entropy=True)
    logprobs, kl, entropy = plain_scores(model, build(), GROUPS, 0.8)
    assert scores.kl_S is not None
    assert scores.entropy_S is not None
    assert kl.detach().mean() > 1e-3
    torch.testing.assert_close(scores.logprobs_S, logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.kl_S, kl, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.entropy_S, entropy.detach(), atol=1e-5, rtol=0)

    weight = torch.randn(len(logprobs), 2)
    (logprobs * weight[:, 0] + kl * weight[:, 1]).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    (scores.logprobs_S * weight[:, 0] + scores.kl_S * weight[:, 1]).sum().backward()
    engine.collect_gradients()
    for name, parameter in model.named_parameters():
        theirs = expected[name]
        assert (parameter.grad is None) == (theirs is None) == (".lora_" not in name), name
        if theirs is not None and parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32
            assert (parameter.grad - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-8, name


def test_gradients_add_up_over_micro_batches() -> None:
    model = adapted(llama_grouped())
    engine = FastLlama(model, torch.float32, True)
    for times in (1, 2):
        for _ in range(2):
            engine.score(GROUPS).logprobs_S.sum().backward()
            engine.collect_gradients()
        if times == 1:
            once = {name: p.grad.clone() for name, p in trainable(model).items() if p.grad is not None}
    for name, parameter in trainable(model).items():
        torch.testing.assert_close(parameter.grad, 2 * once[name])


@family
def test_generation_is_of_the_adapted_model(build: Build) -> None:
    """Long enough that the cache leaves fp32: the log-probabilities are peft's, and score's."""
    model = adapted(build())
    engine = FastLlama(model, torch.float32, True)
    prompts = ragged_prompts()
    answers = engine.generate(prompts, 3, SamplingParams(60, stop_ids=(1,)), uniforms(9, 60))
    groups = [PromptGroup(p, tuple(ids(cs))) for p, cs in zip(prompts, answers, strict=True)]
    sampled = torch.from_numpy(np.concatenate([c.logprobs for cs in answers for c in cs]))
    with torch.no_grad():
        torch.testing.assert_close(engine.score(groups).logprobs_S, sampled, atol=1e-5, rtol=0)
        torch.testing.assert_close(plain_scores(model, model, groups, 1.0)[0], sampled, atol=1e-5, rtol=0)


@family
def test_merged_weights_say_the_same(build: Build) -> None:
    model = adapted(build())
    engine = FastLlama(model, torch.float32, False)
    merged = build()
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "get_delta_weight"):
                merged.get_submodule(name).get_parameter("weight").add_(module.get_delta_weight("default"))  # type: ignore[operator]
    whole = FastLlama(merged, torch.float32, False)
    assert ids(sample(engine)) == ids(sample(whole))
    torch.testing.assert_close(engine.score(GROUPS).logprobs_S, whole.score(GROUPS).logprobs_S, atol=1e-5, rtol=0)


def test_refresh_follows_the_optimiser() -> None:
    model = adapted(qwen3())
    engine = FastLlama(model, torch.float32, True)
    frozen = FastLlama(model, torch.float32, False).freeze()
    start = sample(engine, 30)
    before = engine.score(GROUPS).logprobs_S
    optimiser = torch.optim.AdamW(list(trainable(model).values()), lr=0.02)
    (-before.sum()).backward()
    engine.collect_gradients()
    optimiser.step()
    optimiser.zero_grad()
    assert ids(sample(engine, 30)) == ids(start)
    engine.refresh()
    after = engine.score(GROUPS).logprobs_S
    assert after.sum() > before.sum() + 0.1
    torch.testing.assert_close(after, plain_scores(model, model, GROUPS, 1.0)[0], atol=1e-5, rtol=0)
    moved = sample(engine, 30)
    assert ids(moved) != ids(start)
    assert ids(moved) == ids(sample(FastLlama(model, torch.float32, False), 30))
    # A frozen copy of base and adapter stays where it was, refreshed or not.
    frozen.refresh()
    assert ids(sample(frozen, 30)) == ids(start)
    torch.testing.assert_close(frozen.score(GROUPS).logprobs_S, before.detach())


@family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_adapters_is_the_base_bit_for_bit(build: Build, dtype: torch.dtype) -> None:
    base = FastLlama(build(), dtype, False)
    model = adapted(cast(build(), dtype))
    engine = FastLlama(model, dtype, True)
    reference = engine.without_adapters()
    for _ in range(2):
        assert torch.equal(reference.score(GROUPS).logprobs_S, base.score(GROUPS).logprobs_S)
        mine, theirs = sample(reference, 40), sample(base, 40)
        assert ids(mine) == ids(theirs)
        np.testing.assert_array_equal([c.logprobs for c in mine], [c.logprobs for c in theirs])
        assert not torch.equal(engine.score(GROUPS).logprobs_S, base.score(GROUPS).logprobs_S)
        with torch.no_grad():
            for parameter in trainable(model).values():
                parameter.add_(0.1)
        engine.refresh()
        reference.refresh()
    assert not reference.trainable
    assert not reference.score(GROUPS).logprobs_S.requires_grad


def test_the_reference_is_packed_with_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FastLlama(adapted(llama_tied()), torch.float32, True)
    reference = engine.without_adapters()
    packed: list[object] = []
    pack = llama_score.pack
    monkeypatch.setattr(llama_score, "pack", lambda model, groups: packed.append(model) or pack(model, groups))
    kl_S = engine.score(GROUPS, reference=reference).kl_S
    assert packed == [engine]
    assert kl_S is not None
    assert kl_S.requires_grad


def test_a_model_without_adapters_has_none_to_leave_out() -> None:
    with pytest.raises(ValueError, match="carries no adapters"):
        FastLlama(llama_tied(), torch.float32, True).without_adapters()


@family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_lies_in_memory_once(build: Build, dtype: torch.dtype) -> None:
    model = adapted(cast(build(), dtype))
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = storages(list(model.parameters()))
    engine = FastLlama(model, dtype, True)
    reference = engine.without_adapters()
    other = FastLlama(model, dtype, False)

    base = storages([p for name, p in model.named_parameters() if ".lora_" not in name])
    masters = storages(list(trainable(model).values()))
    adapters = {
        t.data_ptr()
        for layer in engine.layers
        for projection in (layer.qkv, layer.out, layer.gate_up, layer.down)
        if projection.adapter is not None
        for t in (projection.adapter.down, projection.adapter.up)
    }
    assert storages(tensors_of(engine)).keys() == base.keys() | adapters
    assert storages(tensors_of(reference)).keys() == base.keys()
    assert storages(tensors_of(other)).keys() >= base.keys()
    assert not adapters & (base.keys() | masters.keys())
    assert sum((base | masters).values()) == sum(before.values())

    attention, mlp = model.get_decoder().layers[0].self_attn, model.get_decoder().layers[0].mlp
    fused = engine.layers[0].qkv.weight
    start = 0
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert projection.weight.data_ptr() == fused[start:].data_ptr()
        start += projection.weight.shape[0]
    assert mlp.up_proj.weight.data_ptr() == engine.layers[0].gate_up.weight[mlp.gate_proj.out_features :].data_ptr()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in values.items())


def test_a_base_in_another_dtype_is_converted_once() -> None:
    model = adapted(llama_grouped())
    base = {name: p for name, p in model.named_parameters() if ".lora_" not in name}
    places = {name: p.data_ptr() for name, p in base.items()}
    engine = FastLlama(model, torch.bfloat16, True)
    assert {name: p.data_ptr() for name, p in base.items()} == places
    converted = [id(t) for t in tensors_of(engine)]
    before = engine.without_adapters().score(GROUPS).logprobs_S
    with torch.no_grad():
        for parameter in base.values():
            parameter.zero_()
    engine.refresh()
    assert [id(t) for t in tensors_of(engine)] == converted
    assert torch.equal(engine.without_adapters().score(GROUPS).logprobs_S, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_model_can_be_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    """A frozen model without adapters is shared too; save_pretrained writes what was loaded."""
    model = cast(qwen2(), dtype).requires_grad_(False)
    engine = FastLlama(model, dtype, False)
    assert storages(tensors_of(engine)).keys() == storages(list(model.parameters())).keys()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        ids_BT = torch.tensor([[1, 2, 3]])
        assert torch.equal(loaded(ids_BT).logits, cast(qwen2(), dtype)(ids_BT).logits)


def test_a_fused_model_with_adapters_can_be_saved(tmp_path: Path) -> None:
    model = adapted(llama_grouped())
    engine = FastLlama(model, torch.float32, True)
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    save_file(peft.get_peft_model_state_dict(model), tmp_path / "adapter.safetensors")

    whole = adapted(llama_grouped(seed=3))
    whole.load_state_dict(load_file(tmp_path / "whole.safetensors"))
    beside = adapted(llama_grouped())
    with torch.no_grad():
        for parameter in trainable(beside).values():
            parameter.zero_()
    resumed = FastLlama(beside, torch.float32, True)
    peft.set_peft_model_state_dict(beside, load_file(tmp_path / "adapter.safetensors"))
    resumed.refresh()
    want = engine.score(GROUPS).logprobs_S
    assert torch.equal(FastLlama(whole, torch.float32, True).score(GROUPS).logprobs_S, want)
    assert torch.equal(resumed.score(GROUPS).logprobs_S, want)
    copied = copy.deepcopy(model)
    assert torch.equal(FastLlama(copied, torch.float32, True).score(GROUPS).logprobs_S, want)
    assert not storages(list(copied.parameters())).keys() & storages(list(model.parameters())).keys()


@family
def test_bfloat16_is_close_to_float32(build: Build) -> None:
    model = adapted(cast(build(), torch.bfloat16))
    rough = FastLlama(model, torch.bfloat16, True, checkpointing=True)
    twin = copy.deepcopy(model).float()
    exact = FastLlama(twin, torch.float32, True)
    prompts = ragged_prompts()
    answers = rough.generate(prompts, 3, SamplingParams(40), uniforms(9, 40))
    groups = [PromptGroup(p, tuple(ids(cs))) for p, cs in zip(prompts, answers, strict=True)]
    sampled = np.concatenate([c.logprobs for cs in answers for c in cs])
    gradients = []
    for engine, masters in ((exact, twin), (rough, model)):
        scores = engine.score(groups, reference=engine.without_adapters())
        assert scores.kl_S is not None
        (scores.logprobs_S + scores.kl_S).sum().backward()
        engine.collect_gradients()
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(masters).values() if p.grad is not None]))
        assert np.abs(scores.logprobs_S.detach().numpy() - sampled).max() < 0.15
    assert gradients[1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_only_what_requires_grad_is_copied() -> None:
    """Without adapters too: one projection of a fused three is trained, and one norm."""
    model = qwen2().requires_grad_(False)
    attention = model.get_decoder().layers[1].self_attn
    attention.k_proj.weight.requires_grad_(True)
    model.get_decoder().norm.weight.requires_grad_(True)
    engine = FastLlama(model, torch.float32, True)
    leaves = [t for t in tensors_of(engine) if t.requires_grad]
    assert leaves == [engine.norm, engine.layers[1].qkv.weight]
    engine.score(GROUPS).logprobs_S.sum().backward()
    engine.collect_gradients()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    plain_scores(model, model, GROUPS, 1.0)[0].sum().backward()
    assert ours.keys() == trainable(model).keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-5, rtol=1e-4)


def with_two_adapters() -> PreTrainedModel:
    model = adapted(llama_tied(), ["q_proj"])
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"]), model, adapter_name="other")
    return model


def edited(edit: Callable[[Any], object]) -> Callable[[], PreTrainedModel]:
    """A model whose first adapted query projection is edited."""

    def build() -> PreTrainedModel:
        model = adapted(llama_tied(), ["q_proj"])
        edit(model.get_decoder().layers[0].self_attn.q_proj)
        return model

    return build


class EightBit(nn.Linear):
    """Stands for a quantised layer: not exactly a Linear."""


REFUSED: list[tuple[Callable[[], PreTrainedModel], str]] = [
    (lambda: adapted(llama_tied(), lora_dropout=0.1), "q_proj has LoRA dropout"),
    (lambda: adapted(llama_tied(), use_dora=True), "of the variant Dora"),
    (lambda: adapted(qwen2(), ["q_proj"], lora_bias=True), "an adapter with a bias"),
    (with_two_adapters, "has 2 adapters (default, other)"),
    (edited(lambda q: q.merge()), "merged into the weights"),
    (edited(lambda q: q.enable_adapters(False)), "'default' switched off"),
    (edited(lambda q: setattr(q, "base_layer", EightBit(64, 64, bias=False))), "q_proj is a EightBit (adapter? quant"),
    (lambda: adapted(qwen2(), bias="all"), "q_proj.base_layer.bias is trained beside the adapters"),
    (lambda: adapted(qwen3(), modules_to_save=["norm"]), "norm is wrapped in a ModulesToSaveWrapper"),
    (lambda: adapted(llama_grouped(), ["q_proj", "lm_head"]), "lm_head is wrapped in a Linear"),
    (lambda: adapted(llama_grouped(), ["q_proj", "embed_tokens"]), "embed_tokens is wrapped in a Embedding"),
]


@pytest.mark.parametrize(("build", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_unsupported_says_why(build: Callable[[], PreTrainedModel], reason: str) -> None:
    model = build()
    assert reason in (FastLlama.unsupported(model) or "")
    with pytest.raises(ValueError, match="Use the generic engine"):
        FastLlama(model, torch.float32, True)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
            "carries an adapter",
        ),
        (peft.AdaLoraConfig(target_modules=["k_proj"], total_step=10), "adapter matrices of type Parameter"),
    ],
)
def test_other_adapters_are_refused(config: Any, reason: str) -> None:
    model = llama_tied()
    peft.inject_adapter_in_model(config, model)
    assert reason in (FastLlama.unsupported(model) or "")


@family
@pytest.mark.parametrize("kept", [2**29, 0])
@pytest.mark.parametrize("lora", [False, True])
def test_checkpointing_changes_no_gradient(
    build: Build, kept: int, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_score, "KEPT_WEIGHTS", kept)
    passes: list[int] = []
    project = llama_score.project_qkv
    monkeypatch.setattr(llama_score, "project_qkv", lambda *args: passes.append(1) or project(*args))
    model = adapted(build()) if lora else build()
    reference = FastLlama(build(seed=1), torch.float32, False)
    gradients, values, counts = [], [], []
    for checkpointing in (False, True):
        engine = FastLlama(model, torch.float32, True, checkpointing=checkpointing)
        passes.clear()
        scores = engine.score(GROUPS, reference=reference)
        assert scores.kl_S is not None
        (scores.logprobs_S + scores.kl_S).sum().backward()
        engine.collect_gradients()
        counts.append(len(passes))
        values.append(scores.logprobs_S.detach())
        gradients.append({name: p.grad for name, p in trainable(model).items()})
        model.zero_grad(set_to_none=True)
    layers = len(model.get_decoder().layers)
    assert counts == [2 * layers, 3 * layers]  # reference and policy; policy again
    assert torch.equal(*values)
    for name, want in gradients[0].items():
        got = gradients[1][name]
        assert want is not None
        assert got is not None
        assert (got - want).norm() <= 1e-6 * want.norm(), name


def test_checkpointing_holds_one_layers_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two layers' weights are too many but one's are not, only checkpointing keeps weights at all."""
    model = llama_tied()
    prompt, answer = 3, 4
    weights = 4 * (prompt * prompt + answer * (prompt + answer))  # 4 heads
    monkeypatch.setattr(llama_score, "KEPT_WEIGHTS", weights)
    by_group: list[int] = []
    attend = llama_layers._attend_by_group
    monkeypatch.setattr(llama_layers, "_attend_by_group", lambda *args: by_group.append(1) or attend(*args))
    groups = [PromptGroup((1, 2, 3), ((4, 5, 6, 7, 8),))]
    for checkpointing, calls in ((False, 4), (True, 0)):  # each of two layers, forward and backward
        by_group.clear()
        FastLlama(model, torch.float32, True, checkpointing=checkpointing).score(groups).logprobs_S.sum().backward()
        assert len(by_group) == calls


def test_checkpointing_leaves_generation_and_references_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr(llama_score, "checkpoint", never)
    engine = FastLlama(adapted(llama_tied()), torch.float32, True, checkpointing=True)
    sample(engine)
    with torch.no_grad():
        engine.score(GROUPS)
    engine.without_adapters().score(GROUPS)


class OneDevice(TorchDispatchMode):
    """Fails where an operation reads tensors of two devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs))
        devices = {t.device.type for t in leaves if isinstance(t, torch.Tensor) and t.dim()}
        assert len(devices) <= 1, f"{func} mixes {devices}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kept", [2**29, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_stays_on_the_models_device(dtype: torch.dtype, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's meta device, which holds no data: reading any back would fail. Only drawn tokens come to the host."""
    fetched: list[torch.dtype] = []

    def fetch(tensor: torch.Tensor) -> torch.Tensor:
        fetched.append(tensor.dtype)
        return torch.arange(len(tensor), dtype=tensor.dtype)

    model = adapted(qwen3()).to("meta")
    monkeypatch.setattr(FastLlama, "unsupported", staticmethod(lambda model: None))
    monkeypatch.setattr(llama_score, "KEPT_WEIGHTS", kept)
    monkeypatch.setattr(torch.Tensor, "cpu", fetch)
    with OneDevice():
        engine = FastLlama(model, dtype, True, checkpointing=True)
        scores = engine.score(GROUPS, reference=engine.without_adapters(), entropy=True)
        assert scores.kl_S is not None
        (scores.logprobs_S + scores.kl_S).sum().backward()
        engine.collect_gradients()
        engine.refresh()
        assert fetched == []
        params = SamplingParams(20, temperature=0.9, top_k=9, top_p=0.9, banned_ids=(3,))
        engine.generate(ragged_prompts(), 2, params, uniforms(6, 20))
        assert fetched == [torch.int64] * 20 + [torch.float32]
        fetched.clear()
        # The first row left stops at every step, and is dropped.
        engine.generate(ragged_prompts(), 2, SamplingParams(20, stop_ids=(0,)), uniforms(6, 20))
    assert fetched == [torch.int64] * 6 + [torch.float32]
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in trainable(model).values())
