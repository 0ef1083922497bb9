"""FastLlama against transformers: the same tokens, log-probabilities, KL, entropy and gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sparring.lm import llama_score
from sparring.lm.base import PromptGroup, SamplingParams
from sparring.lm.llama import FastLlama

VOCAB = 97
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def llama_tied(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True, pad_token_id=3))


def llama_grouped(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(**SMALL, num_key_value_heads=2, head_dim=24, rope_parameters=LLAMA3_ROPE)
    return LlamaForCausalLM(config)


def qwen2(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1))
    return randomise(model, "bias")


def qwen3(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True)
    model = Qwen3ForCausalLM(config)
    return randomise(model, "norm")


def randomise(model: PreTrainedModel, part: str) -> PreTrainedModel:
    """Biases start at 0 and norms at 1: a forgotten one would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


FAMILIES = [llama_tied, llama_grouped, qwen2, qwen3]
family = pytest.mark.parametrize("build", FAMILIES)
Build = Callable[..., PreTrainedModel]


def ragged_prompts(seed: int = 0, lengths: tuple[int, ...] = (5, 1, 9)) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, VOCAB, n).tolist()) for n in lengths]


def uniforms(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, width), dtype=np.float32)


def plain_logprobs(model: PreTrainedModel, prompt: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
    """log π [len(ids), V] by a plain transformers forward."""
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


@family
def test_greedy_matches_transformers(build: Build) -> None:
    model = build()
    prompts = [*ragged_prompts(), ragged_prompts()[0]]
    stop = (
        FastLlama(model, torch.float32, False)
        .generate(prompts[:1], 1, SamplingParams(max_new_tokens=8, temperature=0), np.zeros((0, 0)))[0][0]
        .ids[5]
    )
    params = SamplingParams(max_new_tokens=40, temperature=0, stop_ids=(stop,))
    ours = FastLlama(model, torch.float32, False).generate(prompts, 2, params, np.zeros((0, 0)))
    for prompt, completions in zip(prompts, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for completion in completions:
            assert list(completion.ids) == theirs
            assert completion.finish == ("stop" if theirs[-1] == stop else "length")
    assert ours[0][0].finish == "stop"


@family
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_match_teacher_forcing(build: Build, temperature: float) -> None:
    model = build()
    params = SamplingParams(
        max_new_tokens=45, temperature=temperature, top_k=60, top_p=0.95, stop_ids=(1, 2), banned_ids=(7,)
    )
    prompts = ragged_prompts()
    answers = FastLlama(model, torch.float32, True).generate(prompts, 3, params, uniforms(9, 45))
    for prompt, completions in zip(prompts, answers, strict=True):
        for completion in completions:
            with torch.no_grad():
                logits = plain_logprobs(model, prompt, completion.ids) / temperature
            expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-5)
            assert completion.logprobs.dtype == np.float32
            assert 7 not in completion.ids
            assert not set(completion.ids[:-1]) & {1, 2}
            assert (completion.finish == "stop") == (completion.ids[-1] in {1, 2})


def plain_scores(
    model: PreTrainedModel, reference: PreTrainedModel, groups: list[PromptGroup], temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logprobs, kls, entropies = [], [], []
    for group in groups:
        for ids in filter(None, group.completions):
            log_pi = (plain_logprobs(model, group.prompt_ids, ids) / temperature).log_softmax(-1)
            with torch.no_grad():
                log_ref = (plain_logprobs(reference, group.prompt_ids, ids) / temperature).log_softmax(-1)
            logprobs.append(log_pi.gather(1, torch.tensor(ids)[:, None])[:, 0])
            kls.append((log_pi.exp() * (log_pi - log_ref)).sum(-1))
            entropies.append(-(log_pi.exp() * log_pi).sum(-1))
    return torch.cat(logprobs), torch.cat(kls), torch.cat(entropies)


shapes = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=0, max_size=4)), min_size=1, max_size=4
).filter(lambda groups: any(sum(lengths) for _, lengths in groups))


@family
@settings(max_examples=8, deadline=None, derandomize=True)
@given(shape=shapes, temperature=st.sampled_from([1.0, 0.8]), keep_weights=st.booleans())
def test_scores_and_gradients_match_transformers(
    build: Build, shape: list[tuple[int, list[int]]], temperature: float, keep_weights: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_score, "KEPT_WEIGHTS", 2**29 if keep_weights else 0)
        check_against_transformers(build, shape, temperature)


def check_against_transformers(build: Build, shape: list[tuple[int, list[int]]], temperature: float) -> None:
    model, reference = build(), build(seed=1)
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCAB, n).tolist())

    groups = [PromptGroup(draw(p), tuple(draw(n) for n in lengths)) for p, lengths in shape]
    engine, frozen = FastLlama(model, torch.float32, True), FastLlama(reference, torch.float32, False)
    scores = engine.score(groups, temperature=temperature, reference=frozen, entropy=True)
    logprobs, kl, entropy = plain_scores(model, reference, groups, temperature)
    assert scores.kl_S is not None
    assert scores.entropy_S is not None
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
        assert theirs is not None
        assert parameter.grad is not None, name
        scale = theirs.abs().max().item()
        assert (parameter.grad - theirs).abs().max().item() <= 1e-5 * scale + 1e-7, name


def test_gradients_add_up_and_clear() -> None:
    model = llama_grouped()
    engine = FastLlama(model, torch.float32, True)
    groups = [PromptGroup((1, 2, 3), ((4, 5), (6,)))]
    engine.score(groups).logprobs_S.sum().backward()
    engine.collect_gradients()
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    engine.collect_gradients()
    engine.score(groups).logprobs_S.sum().backward()
    engine.collect_gradients()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name])


@family
def test_a_completion_does_not_depend_on_its_neighbours(build: Build) -> None:
    engine = FastLlama(build(), torch.float32, False)
    prompts = ragged_prompts(lengths=(4, 11, 2))
    params = SamplingParams(max_new_tokens=50, stop_ids=(1, 2, 3, 4))
    draws = uniforms(9, 50)
    together = engine.generate(prompts, 3, params, draws)
    for p, prompt in enumerate(prompts):
        for j in range(3):
            alone = engine.generate([prompt], 1, params, draws[3 * p + j][None])[0][0]
            assert alone.ids == together[p][j].ids
            assert alone.finish == together[p][j].finish
            np.testing.assert_allclose(alone.logprobs, together[p][j].logprobs, atol=1e-5)


def test_same_prompt_twice_is_two_rows() -> None:
    engine = FastLlama(qwen3(), torch.float32, False)
    draws = uniforms(4, 12)
    twice = engine.generate([(5, 6), (5, 6)], 2, SamplingParams(12), draws)
    once = engine.generate([(5, 6)], 4, SamplingParams(12), draws)
    assert [c.ids for cs in twice for c in cs] == [c.ids for c in once[0]]


def test_generation_is_deterministic() -> None:
    engine = FastLlama(qwen2(), torch.float32, True)
    params = SamplingParams(max_new_tokens=20)
    runs = [engine.generate(ragged_prompts(), 2, params, uniforms(6, 20)) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert [c.ids for c in first] == [c.ids for c in second]
        np.testing.assert_array_equal([c.logprobs for c in first], [c.logprobs for c in second])


def test_refresh_follows_the_optimiser() -> None:
    model = qwen3()
    engine = FastLlama(model, torch.float32, True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.005)
    groups = [PromptGroup((1, 2, 3), ((4, 5, 6), (7, 8)))]
    before = engine.score(groups).logprobs_S
    (-before.sum()).backward()
    engine.collect_gradients()
    optimiser.step()
    optimiser.zero_grad()
    torch.testing.assert_close(engine.score(groups).logprobs_S, before)
    engine.refresh()
    after = engine.score(groups).logprobs_S
    assert after.sum().item() > before.sum().item() + 0.1
    torch.testing.assert_close(after, plain_scores(model, model, groups, 1.0)[0], atol=1e-5, rtol=0)
    params = SamplingParams(max_new_tokens=10)
    fresh = FastLlama(model, torch.float32, False).generate([(1, 2)], 2, params, uniforms(2, 10))
    answers = engine.generate([(1, 2)], 2, params, uniforms(2, 10))
    assert [c.ids for c in answers[0]] == [c.ids for c in fresh[0]]


@family
def test_bfloat16_is_close_to_float32(build: Build) -> None:
    model = build()
    exact, rough = FastLlama(model, torch.float32, True), FastLlama(model, torch.bfloat16, True)
    prompts = ragged_prompts()
    answers = rough.generate(prompts, 3, SamplingParams(max_new_tokens=40), uniforms(9, 40))
    groups = [PromptGroup(p, tuple(c.ids for c in cs)) for p, cs in zip(prompts, answers, strict=True)]
    gradients = []
    for engine in (exact, rough):
        scores = engine.score(groups)
        scores.logprobs_S.sum().backward()
        engine.collect_gradients()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad(set_to_none=True)
        sampled = np.concatenate([c.logprobs for cs in answers for c in cs])
        assert np.abs(scores.logprobs_S.detach().numpy() - sampled).max() < 0.15
    assert gradients[1].dtype == torch.float32
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_nothing_to_score() -> None:
    scores = FastLlama(llama_tied(), torch.float32, True).score([PromptGroup((1, 2), ((), ()))], entropy=True)
    assert scores.logprobs_S.shape == (0,)
    assert scores.entropy_S is not None
    assert scores.kl_S is None


def test_bad_input_is_named() -> None:
    engine = FastLlama(llama_tied(), torch.float32, True)
    with pytest.raises(ValueError, match="group 1 has an empty prompt"):
        engine.score([PromptGroup((1,), ((2,),)), PromptGroup((), ((2,),))])
    with pytest.raises(ValueError, match=r"token ids must lie in \[0, 97\)"):
        engine.score([PromptGroup((1,), ((97,),))])
    with pytest.raises(ValueError, match=r"uniforms must be \[2, 4\]"):
        engine.generate([(1,)], 2, SamplingParams(4), uniforms(1, 4))
    with pytest.raises(ValueError, match=r"uniforms must lie in \[0, 1\)"):
        engine.generate([(1,)], 1, SamplingParams(4), np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="banned_ids leaves no token"):
        engine.generate([(1,)], 1, SamplingParams(4, banned_ids=tuple(range(97))), uniforms(1, 4))
    with pytest.raises(ValueError, match="stop_ids must lie"):
        engine.generate([(1,)], 1, SamplingParams(4, stop_ids=(97,)), uniforms(1, 4))
    with pytest.raises(TypeError, match="must be a FastLlama"):
        engine.score([PromptGroup((1,), ((2,),))], reference=object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)), "is not one of"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, attention_bias=True)), "o_proj has a bias"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, mlp_bias=True)), "gate_proj has a bias"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, hidden_act="gelu")), "hidden_act is 'gelu'"),
        (lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2)), "sliding_window is 4096"),
        (
            lambda: Qwen2ForCausalLM(
                Qwen2Config(**SMALL, num_key_value_heads=2, use_sliding_window=True, max_window_layers=1)
            ),
            "sliding window",
        ),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
            ),
            "rope type 'dynamic'",
        ),
    ],
)
def test_unsupported_says_why(model: Callable[[], PreTrainedModel], reason: str) -> None:
    built = model()
    assert reason in (FastLlama.unsupported(built) or "")
    with pytest.raises(ValueError, match="Use the generic engine"):
        FastLlama(built, torch.float32, False)


def test_adapters_are_unsupported() -> None:
    model = llama_tied()
    layer = model.get_decoder().layers[0].self_attn

    class Adapter(torch.nn.Linear):
        """Any subclass, as LoRA layers are."""

    layer.q_proj = Adapter(64, 64, bias=False)
    assert "q_proj is a Adapter" in (FastLlama.unsupported(model) or "")


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None))


@pytest.mark.parametrize("build", [*FAMILIES, mistral])
def test_covered_models_are_supported(build: Build) -> None:
    assert FastLlama.unsupported(build()) is None
