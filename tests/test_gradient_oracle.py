"""The whole gradient of LSP and LSP-Zero against the paper's formula, written out, by autograd.

arXiv 2509.07414, Algorithm 1, with transformers' own forward, one sequence at a time, and nothing of the
project but the texts that were sampled:

    L_Sol = −(1/NG) Σ_i Σ_j Σ_t [ρ_t A_Sol(q_i, a_i^j) − β KL_t]
    L_Ch  = −(1/N) Σ_i Σ_t [ρ_t A_Ch(q_i) − β KL_t]
    L     = L_Sol + α L_Ch
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from scripted import STOP, Recorder, ScriptedSampler, ids_of, nudged, relative_error, tiny_llama
from sparring.batching import pack, sequence_sum, to_examples
from sparring.build import KL_TERMS
from sparring.domains import Query, Task
from sparring.games.lsp import LSP, LSPZero
from sparring.games.quality import ProgramQuality
from sparring.learner import Learner, Update
from sparring.lm.base import SamplingParams
from sparring.lm.load import open_lm
from sparring.rewards.base import Reward
from sparring.roles import Role

N, G, ALPHA, BETA = 4, 3, 0.3, 0.05
ASK = "write one for {{ task }}"
TASK = Task("sums", "", "sums")
QUERIES = ["one and two", "three", "four and five and six", "three"]  # two equal questions stay two
ANSWERS = ["3", "three", "12", "3!", "33", "it is 3", "15", "x", "4 5 6", "0", "three", "?"]


def reward(query: str, answer: str) -> float:
    """R: anything with spread."""
    return len(query) % 5 / 4 + len(answer) / 7


def quality(query: str, answer: str) -> float:
    """R_Q: anything else with spread."""
    return (len(set(query)) * len(set(answer)) % 8) / 7


def log_probabilities(model: PreTrainedModel, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> Tensor:
    """log π over the vocabulary at each completion token [T, V], by the plain forward of one sequence."""
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0] / temperature
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def exact(logp_TV: Tensor, ref_TV: Tensor, ids: Tensor) -> Tensor:
    return (logp_TV.exp() * (logp_TV - ref_TV)).sum(-1)


def k2(logp_TV: Tensor, ref_TV: Tensor, ids: Tensor) -> Tensor:
    return (logp_TV - ref_TV).gather(1, ids[:, None])[:, 0] ** 2 / 2


def k3(logp_TV: Tensor, ref_TV: Tensor, ids: Tensor) -> Tensor:
    d = (ref_TV - logp_TV).gather(1, ids[:, None])[:, 0]
    return d.exp() - d - 1


KLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"exact": exact, "k2": k2, "k3": k3}


def paper_loss(
    policy: PreTrainedModel, reference: PreTrainedModel, kl: str, with_quality: bool, temperature: float
) -> Tensor:
    """L, from the texts alone."""
    answers = [ANSWERS[i * G : (i + 1) * G] for i in range(N)]
    R = [[reward(q, a) for a in row] for q, row in zip(QUERIES, answers, strict=True)]
    R_Q = [[quality(q, a) * with_quality for a in row] for q, row in zip(QUERIES, answers, strict=True)]
    V, V_Q = [sum(row) / G for row in R], [sum(row) / G for row in R_Q]
    paid_Ch = [-v + v_q for v, v_q in zip(V, V_Q, strict=True)]

    def term(prompt: str, text: str, advantage: float) -> Tensor:
        prompt_ids, ids = (1, *ids_of(prompt)), (*ids_of(text), STOP)
        logp_TV = log_probabilities(policy, prompt_ids, ids, temperature)
        with torch.no_grad():
            ref_TV = log_probabilities(reference, prompt_ids, ids, temperature)
        chosen_T = logp_TV.gather(1, torch.tensor(ids)[:, None])[:, 0]
        ratio_T = (chosen_T - chosen_T.detach()).exp()
        return (ratio_T * advantage - BETA * KLS[kl](logp_TV, ref_TV, torch.tensor(ids))).sum()

    L_Sol = L_Ch = torch.zeros(())
    for i, query in enumerate(QUERIES):
        L_Ch = L_Ch - term("write one for sums", query, paid_Ch[i] - sum(paid_Ch) / N) / N
        for j, answer in enumerate(answers[i]):
            A_Sol = R[i][j] + R_Q[i][j] - V[i] - V_Q[i]
            L_Sol = L_Sol - term(query, answer, A_Sol) / (N * G)
    return L_Sol + ALPHA * L_Ch


def make_game(with_quality: bool, temperature: float) -> LSPZero:
    """The same game, by the project."""
    params = SamplingParams(32, temperature)
    parts = {
        "challenger": Role("challenger", ASK, params, ALPHA),
        "solver": Role("solver", "{{ query }}", params),
        "tasks": (TASK,),
        "read_query": lambda text, task, complete: Query(text),
        "reward": Reward(lambda queries, answers: [reward(q, a) for q, a in zip(queries, answers, strict=True)]),
        "n_queries": N,
        "n_answers": G,
    }
    if not with_quality:
        return LSPZero(**parts)
    program = ProgramQuality(lambda queries, answers: [quality(q, a) for q, a in zip(queries, answers, strict=True)])
    return LSP(**parts, quality=program)


@pytest.mark.parametrize("engine", ["auto", "generic"])
@pytest.mark.parametrize(
    ("kl", "with_quality", "temperature", "token_budget"),
    [
        ("exact", True, 1.0, 16_384),
        ("exact", True, 0.8, 100),
        ("k3", True, 1.0, 120),
        ("k3", False, 1.0, 1),
        ("k2", True, 1.0, 60),
    ],
)
def test_gradient_is_the_papers(
    engine: Literal["auto", "generic"], kl: str, with_quality: bool, temperature: float, token_budget: int
) -> None:
    reference = tiny_llama(0, kv_heads=2)
    brute = nudged(tiny_llama(0, kv_heads=2), 0.02)
    loss = paper_loss(brute, reference, kl, with_quality, temperature)
    loss.backward()
    want = [p.grad for p in brute.parameters() if p.grad is not None]

    game = make_game(with_quality, temperature)
    turns = game.play(ScriptedSampler({"challenger": QUERIES, "solver": ANSWERS}))
    examples = to_examples(turns, game.baseline(turns, game.payoffs(turns)), sequence_sum)
    model = nudged(tiny_llama(0, kv_heads=2), 0.02)
    recorder = Recorder(model.parameters())
    settings = Update(BETA, KL_TERMS[kl], temperature, max_grad_norm=None, token_budget=token_budget)
    learner = Learner(
        model,
        open_lm(model, torch.float32, trainable=True, path=engine),
        open_lm(reference, torch.float32, trainable=False, path=engine),
        recorder,
        settings,
    )
    figures = learner.update(examples, 1.0)

    assert token_budget > 1000 or len(pack(examples, token_budget)) > 1
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert relative_error(recorder.steps[0], want) < 1e-5
