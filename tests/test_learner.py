"""The learner: budgets, minibatches, epochs, clipping, and what a diverged step leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from scripted import Recorder, nudged, relative_error, tiny_llama
from sparring.batching import Example, pack, sequence_sum
from sparring.dealing import factors, minibatches
from sparring.learner import DivergedError, ExactKL, Learner, SampledKL, Update
from sparring.lm.generic import GenericLM
from sparring.lm.load import open_lm
from sparring.losses import k1, k3

LENGTHS = ((3, (4, 9, 1, 6)), (7, (2, 2, 12, 5)), (5, (8, 3, 10, 7)))


def make_examples(scale: float = 1.0) -> list[Example]:
    """Three prompts, four completions each, every length different enough to need several buckets."""
    rng = np.random.default_rng(0)
    count = sum(len(lengths) for _, lengths in LENGTHS)
    examples = []
    for prompt_length, lengths in LENGTHS:
        prompt = tuple(rng.integers(3, 97, prompt_length).tolist())
        for length in lengths:
            ids = tuple(rng.integers(3, 97, length).tolist())
            advantage, logprobs = scale * float(rng.normal()), np.full(length, -2.0, np.float32)
            examples.append(Example(prompt, ids, advantage, 1 / count, logprobs, "solver"))
    return examples


def make_learner(settings: Update, optimizer: str = "record") -> Learner:
    reference, model = tiny_llama(0), nudged(tiny_llama(0), 0.02)
    choices = {
        "record": lambda: Recorder(model.parameters()),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.1),
    }
    return Learner(
        model,
        open_lm(model, torch.float32, trainable=True),
        open_lm(reference, torch.float32, trainable=False),
        choices[optimizer](),
        settings,
    )


def recorded(learner: Learner) -> list[list[Tensor]]:
    assert isinstance(learner.optimizer, Recorder)
    return learner.optimizer.steps


def parameters_of(model: PreTrainedModel) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def unchanged(before: Sequence[Tensor], model: PreTrainedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


PLAIN = Update(0.05, SampledKL(k3), max_grad_norm=None)


@pytest.mark.parametrize("kl", [SampledKL(k3), ExactKL()])
def test_the_gradient_does_not_depend_on_the_token_budget(kl) -> None:
    gradients, losses = [], []
    budgets = (1, 30, 150, 10_000)
    for budget in budgets:
        learner = make_learner(replace(PLAIN, kl=kl, token_budget=budget))
        losses.append(learner.update(make_examples(), 1.0)["loss"])
        gradients += recorded(learner)
    assert len({len(pack(make_examples(), budget)) for budget in budgets}) == 4
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    for gradient in gradients[1:]:
        assert relative_error(gradient, gradients[0]) < 1e-5


def test_minibatches_see_every_example_once_and_average_to_the_whole() -> None:
    whole, parts = make_learner(PLAIN), make_learner(replace(PLAIN, minibatches=3))
    whole.update(make_examples(), 1.0)
    figures = parts.update(make_examples(), 1.0)
    (full,), steps = recorded(whole), recorded(parts)
    assert len(steps) == 3
    # The recorder never moves the parameters, so the ratio stays 1 and the three steps' mean is the one step.
    mean = [torch.stack(same).mean(0) for same in zip(*steps, strict=True)]
    assert relative_error(mean, full) < 1e-5
    assert figures["tokens/trained"] == sum(sum(lengths) for _, lengths in LENGTHS)


def role_examples(solvers: int, challengers: int) -> list[Example]:
    """One Challenger prompt and `solvers` Solver prompts of two completions; α = 0.3."""
    ids, logprobs = (7, 8), np.full(2, -2.0, np.float32)
    asked = [Example((5,), ids, 1.0, 0.3 / challengers, logprobs, "challenger") for _ in range(challengers)]
    answered = [Example((6, n), ids, 1.0, 0.5 / solvers, logprobs, "solver") for n in range(solvers) for _ in range(2)]
    return [*asked, *answered]


@pytest.mark.parametrize(("count", "solvers", "challengers"), [(2, 4, 4), (3, 4, 5), (4, 2, 6), (2, 1, 2)])
def test_every_minibatch_weighs_the_roles_as_the_batch_does(count: int, solvers: int, challengers: int) -> None:
    learner = make_learner(replace(PLAIN, beta=0.0, kl=None, minibatches=count))
    learner.update(role_examples(solvers, challengers), 1.0)
    whole = make_learner(replace(PLAIN, beta=0.0, kl=None))
    whole.update(role_examples(solvers, challengers), 1.0)
    steps, (full,) = recorded(learner), recorded(whole)
    assert len(steps) == count
    if solvers % 2 == 0 and count == 2:  # equal shares of like prompts: the Challenger's part is the same in each
        mean = [torch.stack(same).mean(0) for same in zip(*steps, strict=True)]
        assert relative_error(mean, full) < 1e-5
    parts = minibatches(role_examples(solvers, challengers), count)
    for part, weighing in zip(parts, factors(parts), strict=True):
        for tag, total in (("challenger", 0.3), ("solver", 1.0)):
            assert sum(e.token_weight * weighing[tag] for e in part if e.tag == tag) == pytest.approx(total)


def test_a_tag_too_small_for_every_minibatch_keeps_its_weight_over_the_pass() -> None:
    parts = minibatches(role_examples(4, 3), 4)
    held = [[e for e in part if e.tag == "challenger"] for part in parts]
    assert [len(part) for part in held] == [1, 1, 1, 0]
    got = sum(e.token_weight * f["challenger"] for part, f in zip(held, factors(parts), strict=True) for e in part)
    assert got == pytest.approx(len(parts) * 0.3)


def test_whole_prompts_stay_together_where_there_are_enough() -> None:
    for part in minibatches(role_examples(6, 4), 3):
        solver = [e.prompt_ids for e in part if e.tag == "solver"]
        assert len(solver) == 4
        assert len(set(solver)) == 2


def test_the_generic_engine_scores_a_micro_batch_in_one_forward() -> None:
    model = tiny_llama(0)
    policy = GenericLM(model, torch.float32, trainable=True, score_tokens=60)
    learner = Learner(model, policy, None, Recorder(model.parameters()), Update(token_budget=60))
    forwards: list[tuple[int, ...]] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: forwards.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    learner.update(make_examples(), 1.0)
    assert len(forwards) == len(learner.pack(make_examples())) > 1
    assert all(rows * (width + 1) <= 60 for rows, width in forwards)


def test_more_epochs_use_the_ratio_to_the_start() -> None:
    settings = Update(clip_low=0.2, clip_high=0.2, epochs=3, max_grad_norm=None)
    learner = make_learner(settings, "sgd")
    start = copy.deepcopy(learner.model)
    examples = make_examples()
    figures = learner.update(examples, 0.05)

    # The same by hand: three steps of plain gradient descent on the clipped objective.
    by_hand = copy.deepcopy(start)
    losses = []
    for _ in range(3):
        loss = torch.zeros(())
        for e in examples:
            logprob_T, old_T = (logprobs(m, e) for m in (by_hand, start))
            ratio_T = (logprob_T - old_T.detach()).exp()
            gain_T = torch.minimum(ratio_T * e.advantage, ratio_T.clamp(0.8, 1.2) * e.advantage)
            loss = loss - e.token_weight * gain_T.sum()
        by_hand.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for p in by_hand.parameters():
                assert p.grad is not None
                p.sub_(0.05 * p.grad)
    assert figures["loss"] == pytest.approx(sum(losses) / 3, rel=1e-4)
    moved = [a - b for a, b in zip(learner.model.parameters(), start.parameters(), strict=True)]
    want = [a - b for a, b in zip(by_hand.parameters(), start.parameters(), strict=True)]
    assert relative_error(moved, want) < 1e-4
    assert losses[2] < losses[0]


def logprobs(model: PreTrainedModel, e: Example) -> Tensor:
    logits = model(input_ids=torch.tensor([[*e.prompt_ids, *e.completion_ids]])).logits[0]
    logp = logits[len(e.prompt_ids) - 1 : -1].log_softmax(-1)
    return logp.gather(1, torch.tensor(e.completion_ids)[:, None])[:, 0]


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_reported() -> None:
    free, held = make_learner(PLAIN), make_learner(replace(PLAIN, max_grad_norm=0.01))
    assert free.update(make_examples(), 1.0)["grad_norm"] == held.update(make_examples(), 1.0)["grad_norm"]
    (raw,), (clipped,) = recorded(free), recorded(held)
    assert torch.cat([g.flatten() for g in clipped]).norm().item() == pytest.approx(0.01, rel=1e-3)
    norm = torch.cat([g.flatten() for g in raw]).norm()
    assert relative_error([g * norm / 0.01 for g in clipped], raw) < 1e-3


@pytest.mark.parametrize("poison", ["advantage", "token_weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_step_is_not_applied(poison: str, value: float) -> None:
    learner = make_learner(replace(PLAIN, token_budget=30), "adamw")
    learner.update(make_examples(), 1e-3)  # the optimiser has moments to lose
    before, state = parameters_of(learner.model), copy.deepcopy(learner.optimizer.state_dict())
    examples = make_examples()
    examples[-1] = replace(examples[-1], **{poison: value})
    with pytest.raises(DivergedError, match=r"loss is (nan|-?inf)") as raised:
        learner.update(examples, 1e-3)
    assert examples[-1] in raised.value.examples
    assert unchanged(before, learner.model)
    after = learner.optimizer.state_dict()
    for index, moments in state["state"].items():
        assert all(torch.equal(moments[name], after["state"][index][name]) for name in moments)
    # No half gradient is left to leak into the next step.
    clean = make_learner(replace(PLAIN, token_budget=30), "adamw")
    clean.update(make_examples(), 1e-3)
    learner.update(make_examples(), 1e-3)
    clean.update(make_examples(), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(learner.model.parameters(), clean.model.parameters(), strict=True))


def test_an_infinite_gradient_is_caught_though_the_loss_is_finite() -> None:
    learner = make_learner(replace(PLAIN, beta=0.0, kl=None), "adamw")
    before = parameters_of(learner.model)
    # 1e38 · 1e-4 is a finite loss in float32; its gradient's squared norm is not.
    examples = [replace(e, advantage=1e38, token_weight=1e-4) for e in make_examples()]
    with pytest.raises(DivergedError, match="gradient's norm is inf"):
        learner.update(examples, 1e-3)
    assert unchanged(before, learner.model)


def test_nothing_to_learn_from_is_no_step() -> None:
    learner = make_learner(PLAIN, "adamw")
    before = parameters_of(learner.model)
    assert learner.update([], 1e-3) == {"loss": 0.0, "grad_norm": 0.0, "lr": 1e-3, "tokens/trained": 0.0}
    assert unchanged(before, learner.model)


def test_figures_by_tag() -> None:
    examples = [replace(e, tag="challenger" if i % 3 == 0 else "solver") for i, e in enumerate(make_examples())]
    learner = make_learner(PLAIN)
    figures = learner.update(examples, 1.0)
    reference = tiny_llama(0)
    for tag in ("challenger", "solver"):
        mine = [e for e in examples if e.tag == tag]
        with torch.no_grad():
            policy_S = torch.cat([logprobs(learner.model, e) for e in mine])
            kl = k3(policy_S, torch.cat([logprobs(reference, e) for e in mine])).mean().item()
        assert figures[f"kl/{tag}"] == pytest.approx(kl, rel=1e-4)
        assert figures[f"sampler_gap/{tag}"] == pytest.approx((policy_S + 2).abs().mean().item(), rel=1e-4)
        assert 0 < figures[f"entropy/{tag}"] < np.log(97)


def test_reference_logprobs_are_the_references() -> None:
    learner = make_learner(PLAIN)
    examples = make_examples()
    got = torch.from_numpy(np.concatenate(learner.reference_logprobs(examples)))
    with torch.no_grad():
        want = torch.cat([logprobs(tiny_llama(0), e) for e in examples])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert k1(want, got).abs().max() < 1e-5


def test_a_kl_without_a_reference_is_refused() -> None:
    model = tiny_llama(0)
    with pytest.raises(ValueError, match=r"beta > 0.*needs the frozen reference"):
        Learner(model, open_lm(model, torch.float32, trainable=True), None, Recorder(model.parameters()), PLAIN)


def test_the_update_lowers_the_loss_it_computes() -> None:
    """One small step along the gradient lowers the policy-gradient objective at the same tokens."""
    learner = make_learner(Update(max_grad_norm=None), "sgd")
    examples = make_examples()
    start = sum(e.token_weight * e.advantage * logprobs(learner.model, e).sum().item() for e in examples)
    learner.update(examples, 1e-2)
    end = sum(e.token_weight * e.advantage * logprobs(learner.model, e).sum().item() for e in examples)
    assert end > start
    assert sequence_sum([1] * 12, 1)[0] == examples[0].token_weight
