"""sparring.lm.vision against transformers' own forward and generate, on tiny random Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedModel

from sparring.advantages import centred
from sparring.batching import sequence_mean, to_examples
from sparring.images import Picture
from sparring.learner import ExactKL, Learner, Update
from sparring.lm.base import Completion, PromptGroup, SamplingParams
from sparring.lm.engines import open_frozen, open_lm, open_reference
from sparring.lm.generic import GenericLM
from sparring.lm.hub import LoadError, check_language_model
from sparring.lm.load import load_model, load_tokenizer, save_model
from sparring.lm.lora import LoraSettings, add_lora
from sparring.lm.vision import VisionLM
from sparring.lm.vision_files import Processor, load_processor
from sparring.lm.vision_parts import freeze_vision, language_lora, vision_tokens
from sparring.rendering import Renderer
from sparring.roles import Role
from sparring.sampling.local import LocalSampler
from tiny_models import save_tiny_llama
from tiny_vision import (
    VISION,
    image_processor,
    picture,
    save_tiny_qwen3vl,
    save_tiny_qwen25vl,
    tiny_qwen3vl,
    tiny_qwen25vl,
    tiny_store,
    vision_tokenizer,
)

MAKERS = [tiny_qwen25vl, tiny_qwen3vl]
each_family = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
STORE = tiny_store()
RENDERER = Renderer(vision_tokenizer(), images=STORE)
STOP = vision_tokenizer().eos_token_id
Make = Callable[..., PreTrainedModel]


@cache
def built(make: Make, seed: int = 0) -> PreTrainedModel:
    """Shared: don't change it."""
    return make(seed)


def fresh(make: Make, seed: int = 0) -> PreTrainedModel:
    return copy.deepcopy(built(make, seed))


def lm_of(model: PreTrainedModel, trainable: bool = True, dtype: torch.dtype = torch.float32, **more: Any) -> VisionLM:
    return VisionLM(model, dtype, trainable, STORE, **more)


def ask(text: str, *shown: Picture) -> tuple[int, ...]:
    parts = [*({"type": "image", "image": each} for each in shown), {"type": "text", "text": text}]
    return RENDERER.encode([{"role": "user", "content": parts if shown else text}])


SMALL, TALL, WIDE = picture(16, 16, 0), picture(16, 48, 1), picture(56, 24, 2)
PROMPTS = [
    ask("What is it?", SMALL),
    ask("Which of these is the larger one?", WIDE, TALL),
    ask("No image here."),
    ask("What is it?", SMALL),
    ask("Twice the same?", SMALL, SMALL),
]
GROUPS = [
    PromptGroup(PROMPTS[0], ((20, 21, STOP), (30,), ())),
    PromptGroup(PROMPTS[1], ((40, 41, 42, 43, STOP), (44, 45))),
    PromptGroup(PROMPTS[2], ((50, 51, 52),)),
    PromptGroup(PROMPTS[4], ((60,),)),
    PromptGroup(PROMPTS[0], ()),
]
TEXT = [GROUPS[2], PromptGroup(ask("Another one, longer than the first."), ((7, 8), (9, 9, 9, 9)))]


def shown_in(prompt: tuple[int, ...]) -> list[int]:
    """Handles of a prompt's images, by the start tokens that stand before them."""
    start = vision_tokenizer().convert_tokens_to_ids(VISION[0])
    return [after for token, after in pairwise(prompt) if token == start]


def inputs_of(model: PreTrainedModel, prompt: tuple[int, ...], completion: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """What transformers' processor would make of a prompt."""
    ids_BT = torch.tensor([[*prompt, *completion]])
    inputs = {"input_ids": torch.where(ids_BT < 0, model.config.image_token_id, ids_BT)}
    inputs |= {"mm_token_type_ids": (ids_BT < 0).int(), "attention_mask": torch.ones_like(ids_BT)}
    patches = [STORE.patches(handle) for handle in shown_in(prompt)]
    if patches:
        inputs["pixel_values"] = torch.cat([each.pixel_values for each in patches])
        inputs["image_grid_thw"] = torch.tensor([each.grid_thw for each in patches])
    return inputs


def teacher_forced(model: PreTrainedModel, groups: list[PromptGroup], temperature: float = 1.0) -> Tensor:
    """Log-softmax rows [S, V] by transformers' own forward, one unpadded row at a time."""
    rows = []
    for group in groups:
        for ids in group.completions:
            if ids:
                logits = model(**inputs_of(model, group.prompt_ids, ids), use_cache=False).logits[0]
                first = len(group.prompt_ids) - 1
                rows.append(torch.log_softmax(logits[first : first + len(ids)] / temperature, -1))
    return torch.cat(rows)


def chosen(logp_SV: Tensor, groups: list[PromptGroup]) -> Tensor:
    ids = torch.tensor([token for group in groups for row in group.completions for token in row])
    return logp_SV.gather(1, ids[:, None]).squeeze(1)


def uniforms(rows: int, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, steps), dtype=np.float32)


def told(sampled: list[list[Completion]]) -> Tensor:
    return torch.from_numpy(np.concatenate([c.logprobs for cs in sampled for c in cs]))


def groups_of(prompts: list[tuple[int, ...]], sampled: list[list[Completion]]) -> list[PromptGroup]:
    return [PromptGroup(p, tuple(c.ids for c in cs)) for p, cs in zip(prompts, sampled, strict=True)]


@contextmanager
def towers(*lms: VisionLM) -> Iterator[list[int]]:
    """Images a pass, of every pass through the towers of these models."""
    passes: list[int] = []
    handles = [
        lm._module.get_submodule("model.visual").register_forward_pre_hook(
            lambda _, args, kwargs: passes.append(len(kwargs["grid_thw"])), with_kwargs=True
        )
        for lm in lms
    ]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


# Agreement with transformers


@each_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sampled_logprobs_equal_score_and_transformers(make: Make, attention: str) -> None:
    model = fresh(make)
    model.set_attn_implementation(attention)
    lm, params = lm_of(model), SamplingParams(7, temperature=0.8, stop_ids=tuple(range(300)))
    sampled = lm.generate(PROMPTS, 3, params, uniforms(15, 7))
    assert len({len(c.ids) for cs in sampled for c in cs}) > 2, "the test wants rows that end at different times"
    groups = groups_of(PROMPTS, sampled)
    scored = lm.score(groups, temperature=0.8).logprobs_S.detach()
    want = chosen(teacher_forced(built(make), groups, 0.8), groups).detach()
    torch.testing.assert_close(scored, want, atol=1e-5, rtol=0)
    torch.testing.assert_close(told(sampled), want, atol=1e-4, rtol=0)


@each_family
def test_images_matter(make: Make) -> None:
    lm = lm_of(built(make))
    groups = [PromptGroup(ask("What is it?", picture(16, 16, seed)), ((20, 21, 22),)) for seed in range(3)]
    a, b, c = lm.score(groups).logprobs_S.detach().view(3, 3)
    assert (a - b).abs().max() > 0.01 and (b - c).abs().max() > 0.01
    flipped = [PromptGroup(ask("Which?", *two), ((20, 21),)) for two in ((WIDE, TALL), (TALL, WIDE))]
    one, other = lm.score(flipped).logprobs_S.detach().view(2, 2)
    assert (one - other).abs().max() > 0.01


@each_family
def test_greedy_equals_transformers(make: Make) -> None:
    model, steps = built(make), 8
    params = SamplingParams(steps, temperature=0, stop_ids=(STOP,))
    ours = lm_of(model).generate(PROMPTS, 2, params, np.empty((0, 0), np.float32))
    never = vision_tokens(model)
    for prompt, completions in zip(PROMPTS, ours, strict=True):
        theirs = model.generate(
            **inputs_of(model, prompt), max_new_tokens=steps, do_sample=False, suppress_tokens=list(never)
        )
        assert [list(c.ids) for c in completions] == [theirs[0, len(prompt) :].tolist()] * 2


@each_family
@pytest.mark.parametrize("budget", [1, 60, 2**14])
def test_shared_prompts_score_and_learn_as_rows_of_transformers_do(make: Make, budget: int) -> None:
    """All parameters' gradients, those of the tower and projector among them."""
    model, plain, other = fresh(make), fresh(make), built(make, 1)
    lm = lm_of(model, score_tokens=budget)
    scores = lm.score(GROUPS, temperature=0.7, reference=lm_of(other, trainable=False), entropy=True)
    logp_SV = teacher_forced(plain, GROUPS, 0.7)
    kl_S = (logp_SV.exp() * (logp_SV - teacher_forced(other, GROUPS, 0.7).detach())).sum(-1)
    want_S = chosen(logp_SV, GROUPS)
    assert lm.shares_prompts and scores.kl_S is not None and scores.entropy_S is not None
    torch.testing.assert_close(scores.logprobs_S, want_S, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.kl_S, kl_S, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(scores.entropy_S, -(logp_SV.exp() * logp_SV).sum(-1).detach(), atol=1e-5, rtol=1e-5)
    pull = torch.linspace(-1, 1, len(want_S))
    ((scores.logprobs_S * pull).sum() + 0.3 * scores.kl_S.sum()).backward()
    lm.collect_gradients()
    ((want_S * pull).sum() + 0.3 * kl_S.sum()).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-7, name
    assert model.get_parameter("model.visual.patch_embed.proj.weight").grad.norm() > 0


@each_family
def test_text_alone_scores_without_the_tower(make: Make) -> None:
    model = fresh(make)
    lm = lm_of(model)
    with towers(lm) as passes:
        scores = lm.score(TEXT)
    want = chosen(teacher_forced(built(make), TEXT), TEXT)
    torch.testing.assert_close(scores.logprobs_S, want, atol=1e-5, rtol=0)
    scores.logprobs_S.sum().backward()
    assert passes == []
    assert model.get_parameter("model.visual.patch_embed.proj.weight").grad is None


@each_family
def test_in_lockstep_every_pass_goes_through_the_tower_once(make: Make) -> None:
    model = fresh(make)
    lm, plain = lm_of(model, lockstep=True), lm_of(fresh(make))
    with towers(lm) as passes:
        for groups in (TEXT, GROUPS):
            scores = lm.score(groups)
            torch.testing.assert_close(scores.logprobs_S, plain.score(groups).logprobs_S, atol=1e-6, rtol=0)
        with torch.no_grad():
            lm.score(GROUPS)
    assert passes == [1, 3, 3]
    lm.score(TEXT).logprobs_S.sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    assert not any(grad.any() for name, grad in grads.items() if name.startswith("model.visual."))


# What does not depend on what


@settings(max_examples=12, deadline=None)
@given(
    make=st.sampled_from(MAKERS),
    sizes=st.lists(st.lists(st.tuples(st.integers(4, 70), st.integers(4, 70)), max_size=2), min_size=2, max_size=4),
)
def test_neither_a_score_nor_a_completion_depends_on_its_batch(make: Make, sizes: list[list[tuple[int, int]]]) -> None:
    lm, params = lm_of(built(make), trainable=False), SamplingParams(4, stop_ids=tuple(range(200)))
    prompts = [ask("What" * (i + 1), *(picture(*size, seed=i) for size in each)) for i, each in enumerate(sizes)]
    draws = uniforms(2 * len(prompts), 4)
    together = lm.generate(prompts, 2, params, draws)
    scored = lm.score(groups_of(prompts, together)).logprobs_S
    alone = [lm.generate([p], 2, params, draws[2 * i : 2 * i + 2])[0] for i, p in enumerate(prompts)]
    for a, b in zip(together, alone, strict=True):
        for mine, theirs in zip(a, b, strict=True):
            assert mine.ids == theirs.ids
            np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-5)
    apart = [lm.score([PromptGroup(p, (c.ids,))]).logprobs_S for p, cs in zip(prompts, alone, strict=True) for c in cs]
    torch.testing.assert_close(scored, torch.cat(apart), atol=1e-5, rtol=0)
    torch.testing.assert_close(scored, told(together), atol=1e-5, rtol=0)


@each_family
def test_what_stands_for_an_image_is_never_drawn(make: Make) -> None:
    model = fresh(make)
    never = vision_tokens(model)
    assert set(never) == set(vision_tokenizer().convert_tokens_to_ids(list(VISION)))
    with torch.no_grad():  # they would be nearly all that is drawn
        model.get_output_embeddings().weight[list(never)] *= 8
    lm = lm_of(model)
    for params in (SamplingParams(20, temperature=5.0, banned_ids=(5,)), SamplingParams(20, temperature=0)):
        sampled = lm.generate(PROMPTS[:2], 8, params, uniforms(16, 20))
        assert not set(never) & {token for cs in sampled for c in cs for token in c.ids}
        groups = groups_of(PROMPTS[:2], sampled)
        scored = lm.score(groups, temperature=params.temperature or 1.0).logprobs_S.detach()
        torch.testing.assert_close(told(sampled), scored, atol=1e-4, rtol=1e-5)
    unbanned = GenericLM(model, torch.float32, False).generate(
        [PROMPTS[2]], 8, SamplingParams(20, 5.0), uniforms(8, 20)
    )
    assert set(never) & {token for c in unbanned[0] for token in c.ids}


# How often an image is encoded


@each_family
def test_an_image_is_encoded_once(make: Make) -> None:
    model = fresh(make)
    lm, params = lm_of(model), SamplingParams(3)
    with towers(lm) as passes:
        sampled = lm.generate(PROMPTS, 8, params, uniforms(40, 3))
        assert passes == [3], "three distinct images for forty answers"
        groups = groups_of(PROMPTS, sampled)
        with torch.no_grad():
            lm.score(groups)
        lm.generate(PROMPTS, 1, params, uniforms(5, 3))
        assert passes == [3], "kept while the weights stand"
        for _ in range(2):
            passes.clear()
            lm.score(groups).logprobs_S.sum().backward()
            assert passes == [3], "once a pass with gradient"
        before = lm.generate(PROMPTS[:1], 1, params, uniforms(1, 3))
        with torch.no_grad():
            for parameter in model.get_submodule("model.visual").parameters():
                parameter.mul_(-1.5)
        lm.refresh()
        passes.clear()
        after = lm.generate(PROMPTS[:1], 1, params, uniforms(1, 3))
        assert passes == [1] and not np.array_equal(before[0][0].logprobs, after[0][0].logprobs)


@each_family
def test_a_frozen_tower_encodes_once_for_the_whole_run(make: Make) -> None:
    model = fresh(make)
    freeze_vision(model, tower=True, projector=True)
    for dtype in (torch.float32, torch.bfloat16):
        lm = lm_of(model, dtype=dtype)
        with towers(lm) as passes:
            for _ in range(2):
                lm.generate(PROMPTS, 2, SamplingParams(3), uniforms(10, 3))
                lm.score(GROUPS).logprobs_S.sum().backward()
                lm.collect_gradients()
                lm.refresh()
        assert passes == [3]
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("model.visual.")}


@each_family
def test_tower_and_projector_are_frozen_apart(make: Make) -> None:
    model, projector = fresh(make), "merger"
    freeze_vision(model, tower=True, projector=False)
    lm = lm_of(model)
    lm.score(GROUPS).logprobs_S.sum().backward()
    graded = {name for name, p in model.named_parameters() if p.grad is not None and name.startswith("model.visual.")}
    assert graded == {name for name, _ in model.named_parameters() if projector in name}
    freeze_vision(model, tower=False, projector=True)
    learning = {name for name, p in model.named_parameters() if p.requires_grad and name.startswith("model.visual.")}
    assert learning and not graded & learning


def test_kept_features_are_bounded() -> None:
    lm = lm_of(built(tiny_qwen25vl), trainable=False, feature_bytes=4 * 32 * 4)  # the four tokens of SMALL
    with towers(lm) as passes:
        for group in (GROUPS[0], GROUPS[0], GROUPS[1], GROUPS[0]):
            lm.score([group])
    assert passes == [1, 2], "a small image stays; larger ones are used and forgotten"


def test_a_copy_of_masters_that_train_forgets_what_it_encoded() -> None:
    model = fresh(tiny_qwen25vl)
    lm = lm_of(model, trainable=False, dtype=torch.bfloat16)
    before = lm.score(GROUPS[:1]).logprobs_S
    with torch.no_grad():
        for parameter in model.get_submodule("model.visual").parameters():
            parameter.mul_(-1.5)
    assert torch.equal(lm.score(GROUPS[:1]).logprobs_S, before)
    lm.refresh()
    assert not torch.equal(lm.score(GROUPS[:1]).logprobs_S, before)


# Adapters, checkpointing, precision


def adapted(model: PreTrainedModel) -> PreTrainedModel:
    """The model with adapters on its language part that do something."""
    add_lora(model, language_lora(model, LoraSettings(4, 6.0, ("q_proj", "down_proj"))), seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@each_family
def test_adapters_learn_and_their_base_is_the_reference(make: Make) -> None:
    model, plain, base = adapted(fresh(make)), adapted(fresh(make)), built(make)
    assert all(".lora_" not in name for name, _ in model.get_submodule("model.visual").named_parameters())
    lm = lm_of(model)
    reference = open_reference(lm, model, torch.float32)
    assert isinstance(reference, VisionLM) and reference._module is lm._module
    with towers(lm) as passes:
        scores = lm.score(GROUPS, reference=reference)
    assert passes == [3], "the frozen tower is the reference's too"
    logp_SV, base_SV = teacher_forced(plain, GROUPS), teacher_forced(base, GROUPS).detach()
    kl_S = (logp_SV.exp() * (logp_SV - base_SV)).sum(-1)
    assert scores.kl_S is not None
    torch.testing.assert_close(scores.logprobs_S, chosen(logp_SV, GROUPS), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.kl_S, kl_S, atol=2e-5, rtol=1e-5)
    (scores.logprobs_S.sum() + scores.kl_S.sum()).backward()
    (chosen(logp_SV, GROUPS).sum() + kl_S.sum()).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is not None) == (".lora_" in name), name
        if ours.grad is not None and theirs.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-7, name
    params, draws = SamplingParams(6), uniforms(10, 6)
    written = [m.generate(PROMPTS, 2, params, draws) for m in (reference, lm_of(base), lm)]
    ids = [[c.ids for cs in each for c in cs] for each in written]
    assert ids[0] == ids[1] != ids[2]


def test_adapters_are_for_the_language_model() -> None:
    model = fresh(tiny_qwen25vl)
    every = language_lora(model, LoraSettings(4, 6.0)).targets
    assert len(every) == 3 * 7 and all(name.startswith("model.language_model.layers.") for name in every)
    with pytest.raises(ValueError, match=r"language model is called qkv; it has down_proj"):
        language_lora(model, LoraSettings(4, 6.0, ("q_proj", "qkv")))
    add_lora(model, LoraSettings(4, 6.0, ("qkv",)), seed=0)
    with pytest.raises(ValueError, match="adapters are for the language model alone"):
        lm_of(model)


@each_family
@pytest.mark.parametrize("lora", [False, True])
def test_checkpointing_changes_memory_and_nothing_else(make: Make, lora: bool) -> None:
    saved: list[int] = []
    grads: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model, kept = adapted(fresh(make)) if lora else fresh(make), 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        lm = lm_of(model, checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = lm.score(GROUPS, reference=open_reference(lm, model, torch.float32))
        assert scores.kl_S is not None
        (scores.logprobs_S.sum() + scores.kl_S.sum()).backward()
        saved.append(kept)
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert saved[1] < saved[0]
    assert grads[0].keys() == grads[1].keys() and grads[0]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-5, msg=name)


@each_family
def test_bfloat16_copies_of_fp32_masters(make: Make) -> None:
    model = fresh(make)
    lm = lm_of(model, dtype=torch.bfloat16)
    assert {p.dtype for p in lm._module.parameters()} == {torch.bfloat16} and lm._module is not model
    sampled = lm.generate(PROMPTS, 2, SamplingParams(5), uniforms(10, 5))
    groups = groups_of(PROMPTS, sampled)
    scores = lm.score(groups)
    want = chosen(teacher_forced(built(make), groups), groups)
    torch.testing.assert_close(told(sampled), scores.logprobs_S.detach(), atol=0.2, rtol=0)
    torch.testing.assert_close(scores.logprobs_S.detach(), want.detach(), atol=0.3, rtol=0.05)
    scores.logprobs_S.sum().backward()
    lm.collect_gradients()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert all(p.grad is not None for p in model.parameters())


# Opening, loading, saving


def test_engines_open_it() -> None:
    model = fresh(tiny_qwen25vl)
    lm = open_lm(model, torch.float32, trainable=True, images=STORE)
    assert isinstance(lm, VisionLM)
    reference = open_reference(lm, model, torch.float32)
    frozen = open_frozen(model, torch.bfloat16, images=STORE)
    assert isinstance(reference, VisionLM) and reference.images is STORE and isinstance(frozen, VisionLM)
    before = reference.score(GROUPS).logprobs_S
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    lm.refresh()
    assert torch.equal(reference.score(GROUPS).logprobs_S, before) and not before.requires_grad
    with pytest.raises(ValueError, match="open it with the image store"):
        open_lm(model, torch.float32, trainable=True)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    lm, greedy, none = lm_of(built(tiny_qwen25vl)), SamplingParams(2, temperature=0), np.empty((0, 0), np.float32)
    with pytest.raises(ValueError, match="no picture with the handle -77"):
        lm.generate([(1, -77, 2)], 1, greedy, none)
    with pytest.raises(ValueError, match=rf"3 tokens in a row for the image {SMALL.handle}, which takes 4"):
        lm.score([PromptGroup((1, *[SMALL.handle] * 3, 2), ((3, 4),))])
    with pytest.raises(ValueError, match=r"1024 positions.*max_new_tokens"):
        lm.generate([PROMPTS[0]], 1, SamplingParams(1020, temperature=0), none)
    llama = load_model(save_tiny_llama(tmp_path))
    with pytest.raises(TypeError, match="needs a VisionLM as its reference"):
        lm.score(GROUPS, reference=GenericLM(llama, torch.float32, False))
    with pytest.raises(ValueError, match="LlamaForCausalLM is no vision model"):
        lm_of(llama)
    with pytest.raises(ValueError, match=r"model\.reference reads text only"):
        open_reference(lm, llama, torch.float32)
    with pytest.raises(ValueError, match=r"patches of \(8, 2, 2\).*the model reads \(4, 2, 2\)"):
        VisionLM(built(tiny_qwen25vl), torch.float32, False, tiny_store(patch_size=8, max_pixels=4096, min_pixels=256))


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("llava", "LlavaForConditionalGeneration"),
        ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("qwen3_5", "Qwen3_5ForConditionalGeneration"),
    ],
)
def test_other_vision_families_are_refused(kind: str, architecture: str) -> None:
    config = {"model_type": kind, "architectures": [architecture]}
    with pytest.raises(LoadError, match=rf"a vision model of type '{kind}'.*supported: qwen2_5_vl, qwen3_vl"):
        check_language_model("it", config, remote_code=False, four_bit=False)


def test_text_models_of_families_that_can_see_are_not_refused() -> None:
    for kind, architecture in (("qwen3_5", "Qwen3_5ForCausalLM"), ("gemma3_text", "Gemma3ForCausalLM")):
        config = {"model_type": kind, "architectures": [architecture]}
        check_language_model("it", config, remote_code=False, four_bit=False)


@pytest.mark.parametrize("save", [save_tiny_qwen25vl, save_tiny_qwen3vl])
def test_a_saved_model_is_the_same_again_here_and_for_transformers(tmp_path: Path, save: Callable[..., Path]) -> None:
    first = save(tmp_path / "first", tie_word_embeddings=False)
    tokenizer = load_tokenizer(first)
    processor = load_processor(first, tokenizer, min_pixels=128, max_pixels=1024)
    save_model(load_model(first), Processor(tokenizer, processor.image_processor, {"video.json": "{}"}), tmp_path / "b")
    again = tmp_path / "b"
    assert (again / "video.json").read_text() == "{}"
    model = AutoModelForImageTextToText.from_pretrained(again).eval()
    loaded = load_model(again)
    groups = GROUPS[:3]
    assert torch.equal(teacher_forced(loaded, groups), teacher_forced(model, groups))
    torch.testing.assert_close(
        lm_of(loaded, trainable=False).score(groups).logprobs_S,
        chosen(teacher_forced(load_model(first), groups), groups).detach(),
        atol=1e-5,
        rtol=0,
    )
    theirs = AutoImageProcessor.from_pretrained(again, backend="pil")
    assert type(theirs) is type(image_processor())
    assert dict(theirs.size) == {"shortest_edge": 128, "longest_edge": 1024}
    assert AutoTokenizer.from_pretrained(again).chat_template == vision_tokenizer().chat_template
    if importlib.util.find_spec("torchvision"):  # their whole processor prepares videos too, which needs it
        assert type(AutoProcessor.from_pretrained(again)).__name__.endswith("VLProcessor")


def test_a_processor_s_old_chat_template_file_is_read(tmp_path: Path) -> None:
    folder = save_tiny_qwen25vl(tmp_path)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages[0].role }}"}')
    assert load_tokenizer(folder).chat_template == "{{ messages[0].role }}"
    assert load_tokenizer(folder, "mine").chat_template == "mine"


def test_a_folder_without_an_image_processor(tmp_path: Path) -> None:
    folder = save_tiny_qwen25vl(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(LoadError, match=r"no preprocessor_config\.json or processor_config\.json"):
        load_processor(folder, vision_tokenizer())


# In the engine around it


@each_family
def test_a_step_of_learning_from_what_was_seen(make: Make) -> None:
    model = fresh(make)
    lm = lm_of(model)
    reference = open_reference(lm, model, torch.float32)
    sampler = LocalSampler(lm, reference, RENDERER, stop_ids=(STOP,), context=1024)
    role = Role("perceiver", "{{ query }}", SamplingParams(6))
    prompts = [role.prompt(query="What?", images=(SMALL,)), role.prompt(query="And?", images=(TALL, WIDE))]
    turns = sampler.sample(role, prompts, n=4)
    assert all(turn.prompt_ids.count(SMALL.handle) == 4 for turn in turns[:4])
    advantages = dict(zip(turns, np.tile(centred([0.0, 1.0, 2.0, 3.0]), 2).tolist(), strict=True))
    examples = to_examples(turns, advantages, sequence_mean)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = Learner(model, lm, reference, optimizer, Update(beta=0.1, kl=ExactKL(), token_budget=200))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    figures = learner.update(examples, 0.1)
    assert figures["sampler_gap/perceiver"] < 1e-4 and figures["kl/perceiver"] < 1e-5 and figures["grad_norm"] > 0
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
