"""Memory of one GPU by part and phase, in bytes.

    held      masters 4 P, compute copies c P, Adam's moments 8 P, reference c P, reward model
    sampling  held + key/value cache + the larger of a prefill's activations and the logits; not what a server writes
    reward    held + the reward model's activations
    update    held + activations + gradients, at the worst moment of a micro-batch

P parameters trained, c bytes of a number in compute precision (2 in bfloat16). Under LoRA the frozen base is c P once
(0.516 P in 4 bits) and is its own reference; masters, copies, moments and gradients are the adapter's alone. On several
GPUs, where parallel.strategy shards, all of these are cut evenly, as FSDP2 does, while two layers (one at work, one on
its way) and the embeddings are gathered in compute precision; else they are whole on each. The reward model always is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sparring.lm.llama_generate import GROWTH
from sparring.plan.activations import FUSED, WIDE, Engine, Fast, Generic, Pass, prompts_pass, scoring_pass
from sparring.plan.model import Linear
from sparring.plan.setup import Setup
from sparring.plan.workload import Call, Workload

# NF4, blocks of 64 with a byte of scale each, whose own scale is a float32 every 256: QLoRA, arXiv 2305.14314.
FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
GENERATE_TOKENS = 2**18  # of lm.generic.GenericLM

Parts = dict[str, int]


@dataclass(frozen=True)
class Phase:
    """One phase at its worst moment: bytes by part."""

    name: str
    moment: str
    parts: Parts

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


def phases(setup: Setup, work: Workload) -> list[Phase]:
    """The peaks of sampling (of what this GPU's own engine writes), reward (where it is loaded here) and update."""
    engine: Engine = Fast() if setup.fast else Generic()
    base = held(setup)
    found: list[Phase] = []
    if calls := written_here(setup, work):
        found.append(_worst("sampling", base, [sampling(setup, engine, call) for call in calls]))
    if setup.reward is not None:
        found.append(Phase("reward", "scoring the answers", base | rewarding(setup, work)))
    return [*found, _worst("update", base, updating(setup, engine, work))]


def written_here(setup: Setup, work: Workload) -> list[Call]:
    """The calls that this process's own engine answers."""
    return [call for call in work.calls if (setup.writes if call.trained else setup.grades)]


def held(setup: Setup) -> Parts:
    """What is there throughout."""
    policy, c, shards = setup.policy, setup.compute, setup.shards
    frozen = 0
    if setup.four_bit:
        frozen = int(FOUR_BIT * policy.body) + c * (policy.parameters - policy.body)
    elif setup.adapted:
        frozen = c * policy.parameters
    copies = 0
    if setup.copied:
        copies = c * (adapter_copies(setup) if setup.adapted else policy.parameters)
    reference = c * setup.reference.parameters if setup.reference is not None else 0
    sharded = {
        "frozen base": frozen,
        "masters": WIDE * setup.trained,
        "compute copies": copies,
        "moments": 2 * WIDE * setup.trained,
        "reference": reference,
    }
    parts = {name: math.ceil(size / shards) for name, size in sharded.items()}
    parts["gathered layers"] = c * (2 * policy.layer + policy.embeddings) if shards > 1 else 0
    parts["vLLM"] = c * policy.parameters + setup.vllm if setup.vllm else 0
    parts["reward model"] = setup.reward_compute * setup.reward.parameters if setup.reward is not None else 0
    return {name: size for name, size in parts.items() if size}


def adapter_copies(setup: Setup) -> int:
    """Numbers in the fast path's copies of the adapter: fused projections have their B as blocks on a diagonal."""
    widths = {key: sum(linear.out for linear in group) for key, group in _fused(setup.policy.linears).items()}
    total = 0
    for key, group in _fused(setup.adapted).items():
        total += setup.rank * len(group) * (group[0].into + widths[key])
    return total


def sampling(setup: Setup, engine: Engine, call: Call) -> tuple[str, Parts]:
    """The worst moment of one role's sampling.

    A batch holds as many prompts as cache_tokens allows. Keys and values take 2 · layers · k · c bytes a token (k the
    width of all key heads): on the fast path the prompt's once and a completion's in slots that grow by a quarter, old
    and new side by side as they do; on the generic path for every completion. Logits are a few fp32 forms of
    rows x vocabulary.
    """
    m, c = setup.policy, setup.compute
    prompts = max(1, min(call.prompts, setup.cache_tokens // (call.prompt_tokens + call.answers * call.tokens)))
    rows = prompts * call.answers
    distinct = min(prompts, call.distinct)
    token = 2 * m.layers * m.key_width * c
    # Log-probabilities old and new, probabilities and their running sum; sorting holds values, order and more.
    logits = rows * m.vocab * ((32 if setup.filtered else 12) + c)
    if setup.fast:
        prefix = distinct * call.prompt_tokens * token
        grown, last = _growth(call.tokens - 1)
        decoding = {"cache": prefix + rows * last * token, "logits": logits}
        growing = {"cache": prefix + rows * grown * token, "logits": rows * m.vocab * (WIDE + c)}
        if sum(growing.values()) > sum(decoding.values()):
            decoding = growing
    else:
        fit = max(1, GENERATE_TOKENS // (call.answers * (call.prompt_tokens + call.tokens)))
        distinct, rows = min(distinct, fit), min(rows, fit * call.answers)
        prefix = distinct * call.prompt_tokens * token
        layer = rows * (call.prompt_tokens + call.tokens) * token // m.layers
        decoding = {"cache": rows * (call.prompt_tokens + call.tokens) * token + layer, "logits": logits}
    first = prompts_pass(distinct, call.prompt_tokens)
    prefill = {"cache": prefix, "activations": engine.forward(setup, first) + engine.indices(setup, first)}
    if sum(prefill.values()) > sum(decoding.values()):
        return f"reading the {call.role}'s prompts", prefill
    return f"writing the {call.role}'s turns", decoding


def rewarding(setup: Setup, work: Workload) -> Parts:
    """The reward model's forward pass, transformers' own: one layer's MLP, c (3 D + 3 F) a token, and its mask."""
    m, c = setup.reward, setup.reward_compute
    assert m is not None
    longest = work.scored_tokens
    rows = max(1, min(work.scored, setup.reward_budget // longest))
    token = max(c * (3 * m.hidden + 3 * m.feed_forward), c * 2 * m.hidden + 2 * WIDE * m.hidden)
    return {"activations": rows * longest * (token + longest)}


def updating(setup: Setup, engine: Engine, work: Workload) -> Iterator[tuple[str, Parts]]:
    """Moments of the update, each of which may be the worst.

    Activations are largest as the backward pass begins, and the compute copies' gradients (c P) as it ends; from the
    second micro-batch on the masters' (4 P) are there all the time. With checkpointing a layer keeps its input alone,
    and everything else of one layer at a time.
    """
    batches = work.micro_batches(setup.token_budget, shared_prompts=setup.fast)
    several = len(batches) > setup.minibatches
    for batch in {scoring_pass(batch, shared_prompts=setup.fast) for batch in batches}:
        yield from _micro_batch(setup, engine, batch, several)
    yield "stepping", {"gradients": math.ceil(WIDE * setup.trained / setup.shards)}


def _micro_batch(setup: Setup, engine: Engine, batch: Pass, several: bool) -> Iterator[tuple[str, Parts]]:
    m, c, shards = setup.policy, setup.compute, setup.shards
    layer, indices = engine.kept(setup, batch), engine.indices(setup, batch)
    inputs = c * batch.tokens * m.hidden
    kept = indices + m.layers * (inputs if setup.checkpointing else layer)
    scored = 2 * c * batch.scored * m.hidden  # the final norm's and the head's, of scored positions alone
    again = layer if setup.checkpointing else 0
    working = engine.backward(setup, batch) + inputs
    masters = math.ceil(WIDE * setup.trained / shards)
    done = masters if several else 0
    whole, head = _gradients(setup, masters)
    end = done + whole if setup.copied or shards > 1 else max(done, whole)
    if setup.penalised and not setup.exact_kl:
        passing = engine.forward(setup, batch) + indices
        yield "scoring by the reference", {"activations": kept + scored + passing, "gradients": done}
    workspace = head_workspace(setup, batch.scored)
    yield "backward through the head", {"activations": kept + scored, "gradients": done + head, "head": workspace}
    begun = whole if shards > 1 else head
    yield "backward through the last layer", {"activations": kept + again + working, "gradients": done + begun}
    # A tied embedding's gradient joins the head's in a third tensor; one of its own comes last of all.
    first = end if m.tied or shards > 1 else end - head
    yield "backward through the first layer", {"activations": indices + layer + working, "gradients": first}
    yield "backward through the embedding", {"activations": inputs, "gradients": end + (2 * head if m.tied else 0)}
    if setup.copied and shards == 1:
        # The copies go one by one as the masters' are filled; the last one is the head, where it has one of its own.
        yield "handing the gradients over", {"gradients": masters + (0 if m.tied else head)}


def _gradients(setup: Setup, masters: int) -> tuple[int, int]:
    """Gradients in compute precision, before they are added to the masters' (bytes): (of all that has them at once, of
    the head). On one GPU the copies keep theirs to the end of a micro-batch; on several a layer's are sharded as soon
    as they are there. On the generic path without copies the masters' own grow instead."""
    m, c = setup.policy, setup.compute
    head = 0 if setup.adapted else c * m.head
    if setup.shards > 1:
        return (0 if setup.adapted else c * (2 * m.layer + m.embeddings)), head
    if not setup.copied:
        return masters, head
    return c * (adapter_copies(setup) if setup.adapted else m.parameters), head


def head_workspace(setup: Setup, scored: int) -> int:
    """The head's logits, one chunk of them at a time, in the forms that its backward pass holds (`lm.head`)."""
    vocab, c = setup.policy.vocab, setup.compute
    chunk = max(2**20 if setup.device == "cpu" else 2**24, 64 * vocab)
    numbers = min(scored * vocab, chunk)
    forms = 4 if setup.exact_kl else 2
    hidden = scored * setup.policy.hidden * (WIDE + 2 * c)
    return numbers * (forms * WIDE + c) + hidden


def _growth(slots: int) -> tuple[int, int]:
    """(slots held at the worst growth, old and new; slots at the end) of a cache that ends with this many."""
    have = worst = 0
    while have < slots:
        more = min(max(GROWTH, have // 4), slots - have)
        worst = max(worst, 2 * have + more)
        have += more
    return worst, have


def _fused(linears: Sequence[Linear]) -> dict[tuple[str, str], list[Linear]]:
    """Matrices by the module and the fused projection that they are part of."""
    groups: dict[tuple[str, str], list[Linear]] = defaultdict(list)
    for linear in linears:
        module, _, last = linear.name.rpartition(".")
        groups[module, FUSED.get(last, last)].append(linear)
    return groups


def _worst(name: str, base: Parts, moments: Iterable[tuple[str, Parts]]) -> Phase:
    found = [Phase(name, moment, base | {part: x for part, x in parts.items() if x}) for moment, parts in moments]
    return max(found, key=lambda phase: phase.peak)
