"""sparring.lm.generic and sparring.lm.choose, against plain transformers on tiny random models."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from sparring.lm.base import PromptGroup, SamplingParams
from sparring.lm.choose import choose
from sparring.lm.generic import GenericLM
from sparring.lm.load import load_model
from sparring.lm.lora import LoraSettings, add_lora
from sparring.lm.probe import base_dtype, cast_copy
from tiny_models import save_tiny_llama

V = 97
STOP = 5
COMMON = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIALS = {"bos_token_id": 1, "eos_token_id": STOP, "pad_token_id": 0}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**COMMON, **SPECIALS, intermediate_size=48, num_key_value_heads=2))


def gpt2() -> PreTrainedModel:  # learned positions, tied head
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, **SPECIALS))


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON, **SPECIALS, intermediate_size=48))


def gemma2() -> PreTrainedModel:  # softcapped logits, a sliding window shorter than the text
    config = Gemma2Config(**COMMON, **SPECIALS, intermediate_size=48, num_key_value_heads=2, head_dim=8,
                          sliding_window=4, final_logit_softcapping=0.5)  # fmt: skip
    config._attn_implementation = "eager"  # scaled_dot_product_attention has no softcap
    return Gemma2ForCausalLM(config)


def opt() -> PreTrainedModel:  # learned positions with an offset
    return OPTForCausalLM(
        OPTConfig(**COMMON, **SPECIALS, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64)
    )


def phi() -> PreTrainedModel:  # a bias in the head
    return PhiForCausalLM(PhiConfig(**COMMON, **SPECIALS, intermediate_size=48))


def qwen3_next() -> PreTrainedModel:  # every other layer recurrent
    config = Qwen3NextConfig(
        **COMMON,
        **SPECIALS,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    )
    return Qwen3NextForCausalLM(config)


MAKERS = [llama, gpt2, neox, gemma2, opt, phi, qwen3_next]
each_model = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


@cache
def built(make: Callable[[], PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    """A tiny random model in eval mode, weights large enough that logits differ. Shared: don't change it."""
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def headless() -> PreTrainedModel:  # layers that transformers can't checkpoint
    model = llama()
    for layer in model.get_decoder().layers:
        layer.__class__ = type("Layer", (torch.nn.Module,), {"forward": type(layer).forward})
    return model


def fresh(make: Callable[[], PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    return copy.deepcopy(built(make, seed))


def lm_of(make: Callable[[], PreTrainedModel], **kwargs: int) -> GenericLM:
    return GenericLM(built(make), torch.float32, trainable=True, **kwargs)


PROMPTS = [(1, 7, 8), (1, 9, 10, 11, 12, 13, 14), (1, 3), (1, 7, 8)]
GROUPS = [
    PromptGroup((1, 7, 8), ((20, 21, STOP), (30,), ())),
    PromptGroup((1, 9, 10, 11, 12, 13), ((40, 41, 42, 43, STOP), (44, 45))),
    PromptGroup((1, 2), ()),
]


def teacher_forced(model: PreTrainedModel, groups: list[PromptGroup], temperature: float = 1.0) -> Tensor:
    """Log-softmax rows [S, V] at every scored position, one unpadded row at a time."""
    rows = []
    for group in groups:
        for ids in group.completions:
            if ids:
                logits = model(torch.tensor([group.prompt_ids + ids])).logits[0].float()
                first = len(group.prompt_ids) - 1
                rows.append(torch.log_softmax(logits[first : first + len(ids)] / temperature, -1))
    return torch.cat(rows)


def targets(groups: list[PromptGroup]) -> Tensor:
    return torch.tensor([token for group in groups for ids in group.completions for token in ids])


def uniforms(rows: int, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, steps), dtype=np.float32)


@each_model
def test_greedy_equals_transformers(make):
    model, steps = built(make), 8
    params = SamplingParams(steps, temperature=0, stop_ids=(STOP,))
    ours = lm_of(make).generate(PROMPTS, 2, params, np.empty((0, 0), np.float32))
    for prompt, completions in zip(PROMPTS, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=steps,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        assert [list(c.ids) for c in completions] == [theirs, theirs]


@each_model
def test_sampled_logprobs_equal_score_and_teacher_forcing(make):
    lm, params = lm_of(make), SamplingParams(9, temperature=0.8, stop_ids=tuple(range(40)))
    sampled = lm.generate(PROMPTS, 3, params, uniforms(12, 9))
    groups = [PromptGroup(p, tuple(c.ids for c in cs)) for p, cs in zip(PROMPTS, sampled, strict=True)]
    told = torch.from_numpy(np.concatenate([c.logprobs for cs in sampled for c in cs]))
    lengths = {len(c.ids) for cs in sampled for c in cs}
    assert len(lengths) > 2, "the test wants rows that end at different times"
    torch.testing.assert_close(told, lm.score(groups, temperature=0.8).logprobs_S.detach(), atol=1e-5, rtol=0)
    rows_SV = teacher_forced(built(make), groups, 0.8)
    want = rows_SV.gather(1, targets(groups)[:, None]).squeeze(1).detach()
    torch.testing.assert_close(told, want, atol=1e-5, rtol=0)


@each_model
@pytest.mark.parametrize("budget", [1, 12, 2**14])
def test_scores_and_gradients_equal_plain_autograd(make, budget: int):
    model, plain, other = fresh(make), fresh(make), built(make, 1)
    lm = GenericLM(model, torch.float32, trainable=True, score_tokens=budget)
    reference = GenericLM(other, torch.float32, trainable=False)
    scores = lm.score(GROUPS, temperature=0.7, reference=reference, entropy=True)
    logp_SV = teacher_forced(plain, GROUPS, 0.7)
    kl_S = (logp_SV.exp() * (logp_SV - teacher_forced(other, GROUPS, 0.7).detach())).sum(-1)
    want_S = logp_SV.gather(1, targets(GROUPS)[:, None]).squeeze(1)
    assert scores.kl_S is not None and scores.entropy_S is not None
    torch.testing.assert_close(scores.logprobs_S, want_S, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.kl_S, kl_S, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(scores.entropy_S, -(logp_SV.exp() * logp_SV).sum(-1).detach(), atol=1e-5, rtol=1e-5)
    pull = torch.linspace(-1, 1, len(want_S))
    ((scores.logprobs_S * pull).sum() + 0.3 * scores.kl_S.sum()).backward()
    lm.collect_gradients()
    ((want_S * pull).sum() + 0.3 * kl_S.sum()).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None, name
            torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("make", "plain"), [(llama, True), (gpt2, True), (neox, True), (opt, True), (gemma2, False), (phi, False)]
)
def test_the_fused_head_is_used_only_where_logits_are_plain(make, plain: bool):
    assert lm_of(make)._plain_head is plain


@pytest.mark.parametrize("make", [llama, gpt2, gemma2, qwen3_next])
def test_a_completion_does_not_depend_on_its_batch(make):
    params, draws = SamplingParams(6, stop_ids=(STOP, *range(60, 90))), uniforms(8, 6)
    together = lm_of(make).generate(PROMPTS, 2, params, draws)
    split = lm_of(make, generate_tokens=1).generate(PROMPTS, 2, params, draws)
    for p, prompt in enumerate(PROMPTS):
        (alone,) = lm_of(make).generate([prompt], 2, params, draws[2 * p : 2 * p + 2])
        for a, b, c in zip(alone, together[p], split[p], strict=True):
            assert a.ids == b.ids == c.ids and a.finish == b.finish == c.finish
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_stops_bans_and_lengths():
    params = SamplingParams(12, temperature=1.5, stop_ids=(10, 11, 12), banned_ids=tuple(range(20, 60)))
    completions = [c for cs in lm_of(llama).generate(PROMPTS, 8, params, uniforms(32, 12)) for c in cs]
    assert {c.finish for c in completions} == {"stop", "length"}
    for c in completions:
        *before, last = c.ids
        assert (last in params.stop_ids) == (c.finish == "stop")
        assert len(c.ids) == len(c.logprobs) and (c.finish == "stop" or len(c.ids) == 12)
        assert c.logprobs.dtype == np.float32
        assert not set(before) & set(params.stop_ids) and not set(c.ids) & set(params.banned_ids)


def test_prefill_runs_once_per_distinct_prompt():
    lm, shapes = lm_of(llama), []
    handle = built(llama).register_forward_pre_hook(
        lambda _m, _a, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    lm.generate(PROMPTS, 4, SamplingParams(2, temperature=0), np.empty((0, 0), np.float32))
    handle.remove()
    assert shapes == [(3, 7), (16, 1)]


def test_bfloat16_copy_collects_into_float32_masters_and_refreshes():
    model, plain = fresh(gpt2), fresh(gpt2)
    lm = GenericLM(model, torch.bfloat16, trainable=True)
    lm.score(GROUPS).logprobs_S.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    lm.collect_gradients()
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    lm.collect_gradients()
    teacher_forced(plain, GROUPS).gather(1, targets(GROUPS)[:, None]).sum().backward()
    for name, want in plain.named_parameters():
        got = model.get_parameter(name).grad
        assert got is not None and want.grad is not None and got.dtype == torch.float32
        assert torch.equal(got, once[name]), "collecting twice adds nothing"
        assert (got - want.grad).norm() <= 0.06 * want.grad.norm() + 1e-3, name
    lm.score(GROUPS).logprobs_S.sum().backward()
    lm.collect_gradients()
    for name, first in once.items():
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * first)
    before = lm.score(GROUPS).logprobs_S.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(lm.score(GROUPS).logprobs_S.detach(), before, atol=0, rtol=0)
    lm.refresh()
    after = lm.score(GROUPS).logprobs_S.detach()
    torch.testing.assert_close(
        after, GenericLM(model, torch.float32, False).score(GROUPS).logprobs_S, atol=0.1, rtol=0.05
    )
    assert (after - before).abs().max() > 0.5


def test_a_frozen_one_gives_no_gradient_and_no_rows_are_fine():
    lm = GenericLM(built(llama), torch.float32, trainable=False)
    assert not lm.score(GROUPS).logprobs_S.requires_grad
    empty = lm.score([GROUPS[2]], reference=lm, entropy=True)
    assert empty.kl_S is not None and empty.entropy_S is not None
    assert len(empty.logprobs_S) == len(empty.kl_S) == len(empty.entropy_S) == 0


# Adapters, checkpointing, precision


def adapted(model: PreTrainedModel, seed: int = 3) -> PreTrainedModel:
    """The model with adapters on its attention that do something."""
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = names & {"q_proj", "v_proj", "c_attn", "query_key_value", "in_proj_qkvz"}
    add_lora(model, LoraSettings(4, 6.0, tuple(sorted(targets))), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@each_model
def test_adapters_learn_and_their_base_is_the_reference(make):
    model, plain, base = adapted(fresh(make)), adapted(fresh(make)), built(make)
    lm = GenericLM(model, torch.float32, trainable=True)
    reference = lm.without_adapters()
    assert reference._module is lm._module and not reference.trainable
    scores = lm.score(GROUPS, temperature=0.7, reference=reference)
    logp_SV = teacher_forced(plain, GROUPS, 0.7)
    base_SV = teacher_forced(base, GROUPS, 0.7).detach()
    kl_S = (logp_SV.exp() * (logp_SV - base_SV)).sum(-1)
    want_S = logp_SV.gather(1, targets(GROUPS)[:, None]).squeeze(1)
    assert scores.kl_S is not None
    torch.testing.assert_close(scores.logprobs_S, want_S, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.kl_S, kl_S, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        reference.score(GROUPS).logprobs_S,
        GenericLM(base, torch.float32, False).score(GROUPS).logprobs_S,
        atol=0,
        rtol=0,
    )
    (scores.logprobs_S.sum() + scores.kl_S.sum()).backward()
    lm.collect_gradients()
    (want_S.sum() + kl_S.sum()).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is not None) == (".lora_" in name), name
        if theirs.grad is not None:
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("make", [llama, gpt2, qwen3_next])
def test_the_reference_writes_as_the_base_does(make):
    lm, params, draws = GenericLM(adapted(fresh(make)), torch.float32, True), SamplingParams(6), uniforms(8, 6)
    written = [m.generate(PROMPTS, 2, params, draws) for m in (lm.without_adapters(), lm_of(make), lm)]
    ids = [[c.ids for cs in each for c in cs] for each in written]
    assert ids[0] == ids[1] != ids[2]


def test_a_reference_without_adapters_needs_adapters():
    with pytest.raises(ValueError, match="carries no adapters"):
        lm_of(llama).without_adapters()


def test_fp32_adapters_over_a_bfloat16_base():
    model = fresh(llama).bfloat16()
    adapted(model)
    want = GenericLM(adapted(fresh(llama)), torch.float32, True).score(GROUPS).logprobs_S
    lm = GenericLM(model, torch.bfloat16, trainable=True)
    assert lm._module is model, "no copy where the base has the compute precision"
    scores = lm.score(GROUPS)
    torch.testing.assert_close(scores.logprobs_S, want, atol=0.1, rtol=0.05)
    scores.logprobs_S.sum().backward()
    lm.collect_gradients()
    lm.refresh()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    completions = lm.generate(PROMPTS, 2, SamplingParams(5), uniforms(8, 5))
    groups = [PromptGroup(p, tuple(c.ids for c in cs)) for p, cs in zip(PROMPTS, completions, strict=True)]
    told = torch.from_numpy(np.concatenate([c.logprobs for cs in completions for c in cs]))
    torch.testing.assert_close(told, lm.score(groups).logprobs_S.detach(), atol=0.1, rtol=0)


def test_adapters_over_a_base_that_is_converted():
    """fp32 base, bfloat16 compute: the copy has its own adapters, whose gradients reach the masters."""
    model = adapted(fresh(llama))
    lm = GenericLM(model, torch.bfloat16, trainable=True)
    assert {p.dtype for p in lm._module.parameters()} == {torch.float32, torch.bfloat16}
    before = lm.score(GROUPS).logprobs_S
    before.sum().backward()
    lm.collect_gradients()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.mul_(2)
    lm.refresh()
    after = lm.score(GROUPS).logprobs_S
    want = GenericLM(model, torch.float32, False).score(GROUPS).logprobs_S
    torch.testing.assert_close(after, want, atol=0.1, rtol=0.05)
    assert (after - before).abs().max() > 0.5


@each_model
@pytest.mark.parametrize("lora", [False, True])
def test_checkpointing_changes_memory_and_nothing_else(make, lora: bool):
    def model() -> PreTrainedModel:
        made = fresh(make)
        for module in made.modules():  # what train mode would switch on
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        return adapted(made) if lora else made

    saved: list[int] = []
    grads: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        master, kept = model(), 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        lm = GenericLM(master, torch.float32, trainable=True, checkpointing=checkpointing)
        reference = lm.without_adapters() if lora else GenericLM(built(make, 1), torch.float32, False)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = lm.score(GROUPS, reference=reference)
        assert scores.kl_S is not None and not master.training
        (scores.logprobs_S.sum() + scores.kl_S.sum()).backward()
        saved.append(kept)
        grads.append({name: p.grad for name, p in master.named_parameters() if p.grad is not None})
    assert saved[1] < saved[0]
    assert grads[0].keys() == grads[1].keys() and grads[0]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-6, msg=name)


def test_checkpointing_leaves_the_model_as_it_was():
    model = fresh(llama)
    layer = model.get_submodule("model.layers.0")
    lm = GenericLM(model, torch.float32, trainable=True, checkpointing=True)
    lm.score(GROUPS).logprobs_S.sum().backward()
    assert "forward" not in vars(layer)
    own = layer.forward = functools.partial(layer.forward)  # a hook that sits there, as accelerate's do
    lm.score(GROUPS).logprobs_S.sum().backward()
    assert vars(layer)["forward"] is own


def test_checkpointing_needs_layers_to_checkpoint():
    with pytest.raises(ValueError, match=r"no layers.*set model\.gradient_checkpointing=false"):
        GenericLM(fresh(headless), torch.float32, True, checkpointing=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bit_weights_learn_as_the_same_weights_unpacked_do(tmp_path: Path, dtype: torch.dtype):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from bitsandbytes.functional import dequantize_4bit

    folder = save_tiny_llama(tmp_path, hidden_size=64)
    model, plain = load_model(folder, dtype=dtype, four_bit=True), load_model(folder, dtype=dtype)
    with torch.no_grad():
        for name, module in model.named_modules():
            if type(module).__name__ == "Linear4bit":
                plain.get_parameter(f"{name}.weight").copy_(
                    dequantize_4bit(module.weight.data, module.weight.quant_state)
                )
    lm, oracle = (GenericLM(adapted(m), dtype, trainable=True) for m in (model, plain))
    assert lm._module is model and lm._plain_head
    # First generation, which must not spoil the weights for training.
    completions = lm.generate(PROMPTS, 2, SamplingParams(5), uniforms(8, 5))
    groups = [PromptGroup(p, tuple(c.ids for c in cs)) for p, cs in zip(PROMPTS, completions, strict=True)]
    told = torch.from_numpy(np.concatenate([c.logprobs for cs in completions for c in cs]))
    scores = [m.score(groups, reference=m.without_adapters()) for m in (lm, oracle)]
    atol, rtol = (1e-5, 1e-3) if dtype == torch.float32 else (0.05, 0.1)
    torch.testing.assert_close(told, scores[0].logprobs_S.detach(), atol=atol, rtol=0)
    torch.testing.assert_close(scores[0].logprobs_S, scores[1].logprobs_S, atol=atol, rtol=0)
    for each in scores:
        assert each.kl_S is not None
        (each.logprobs_S.sum() + each.kl_S.sum()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        if parameter.grad is not None:
            want = plain.get_parameter(name).grad
            assert want is not None and parameter.grad.dtype == torch.float32
            assert (parameter.grad - want).norm() <= rtol * want.norm(), name


def test_four_bit_weights_compute_in_one_precision(tmp_path: Path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = load_model(save_tiny_llama(tmp_path, hidden_size=64), dtype=torch.bfloat16, four_bit=True)
    with pytest.raises(ValueError, match=r"loaded to compute in torch\.bfloat16"):
        GenericLM(model, torch.float32, True)


def test_weights_that_a_model_wants_in_fp32_stay_so():
    model = adapted(fresh(llama))
    model._keep_in_fp32_modules_strict = {"layers.*.input_layernorm"}
    assert base_dtype(model) == torch.float32
    copied = cast_copy(model, torch.bfloat16, trainable=True)
    kept = {name for name, p in copied.named_parameters() if p.dtype == torch.float32 and ".lora_" not in name}
    assert kept == {"model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"}
    assert all(p.dtype == torch.float32 for name, p in copied.named_parameters() if ".lora_" in name)
    assert copied.get_submodule("model.rotary_emb").inv_freq.dtype == torch.float32
    assert base_dtype(copied) == torch.bfloat16 and base_dtype(model) == torch.float32


def test_trained_weights_must_be_fp32():
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is torch\.bfloat16.*as float32"):
        GenericLM(fresh(llama).bfloat16(), torch.bfloat16, trainable=True)
    GenericLM(fresh(llama).bfloat16(), torch.bfloat16, trainable=False)


def test_models_that_cannot_run_are_refused():
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=V, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="encoder-decoder"):
        GenericLM(t5, torch.float32, False)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ValueError, match="transformers Cache"):
        GenericLM(mamba, torch.float32, False)


def test_errors_name_the_setting():
    lm, greedy, none = lm_of(gpt2), SamplingParams(60, temperature=0), np.empty((0, 0), np.float32)
    with pytest.raises(ValueError, match=r"64 positions.*max_new_tokens"):
        lm.generate([(1,) * 5], 1, greedy, none)
    with pytest.raises(ValueError, match="64 positions"):
        lm.score([PromptGroup((1,) * 60, ((2,) * 5,))])
    with pytest.raises(ValueError, match="at least one token"):
        lm.generate([()], 1, greedy, none)
    with pytest.raises(ValueError, match=r"uniforms must be.*\(2, 3\)"):
        lm.generate([(1,)], 2, SamplingParams(3), none)
    with pytest.raises(ValueError, match="banned_ids"):
        lm.generate([(1,)], 1, SamplingParams(3, temperature=0, banned_ids=(V,)), none)


# choose


def test_choose_by_hand():
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log().repeat(4, 1)
    ids, logprobs = choose(logits, SamplingParams(1), torch.tensor([0.0, 0.49, 0.51, 0.71]))
    assert ids.tolist() == [0, 0, 1, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.5, 0.2, 0.3]))
    # Token 0 banned: 1 and 2 share 0.4 : 0.6, yet the log-probability stays the model's own.
    ids, logprobs = choose(logits, SamplingParams(1, banned_ids=(0,)), torch.tensor([0.0, 0.39, 0.41, 1.0]))
    assert ids.tolist() == [1, 1, 2, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.2, 0.2, 0.3, 0.3]))
    # top-k 2 and top-p 0.6 both keep tokens 0 and 2.
    for params in (SamplingParams(1, top_k=2), SamplingParams(1, top_p=0.6)):
        ids, _ = choose(logits, params, torch.tensor([0.0, 0.62, 0.63, 0.99]))
        assert ids.tolist() == [0, 0, 2, 2]
    ids, logprobs = choose(logits, SamplingParams(1, temperature=0, banned_ids=(0,)), None)
    assert ids.tolist() == [2] * 4
    torch.testing.assert_close(logprobs.exp(), torch.full((4,), 0.3))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
    temperature=st.floats(0.2, 3.0),
)
def test_choose_draws_from_the_distribution_transformers_filters(seed, top_k, top_p, temperature):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(seed)) * 2
    scores = TemperatureLogitsWarper(temperature)(torch.zeros(1, 1), logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(torch.zeros(1, 1), scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(torch.zeros(1, 1), scores)
    grid = (torch.arange(4000) + 0.5) / 4000  # an even grid of uniforms draws each token in proportion
    ids, logprobs = choose(logits.expand(4000, -1), SamplingParams(1, temperature, top_p, top_k), grid)
    drawn = torch.bincount(ids, minlength=10) / 4000
    torch.testing.assert_close(drawn, torch.softmax(scores, -1)[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(logprobs, torch.log_softmax(logits[0] / temperature, -1)[ids])


def test_choose_needs_uniforms():
    with pytest.raises(ValueError, match="uniforms"):
        choose(torch.zeros(1, 3), SamplingParams(1), None)
