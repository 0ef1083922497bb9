"""A vision model sharded over two ranks scores, learns and writes as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ranks import on_ranks
from sparring.lm.base import PromptGroup, SamplingParams
from sparring.lm.vision import VisionLM
from sparring.lm.vision_sharded import ShardedVisionLM
from sparring.parallel.launch import connected
from sparring.parallel.sharding import shard
from sparring.parallel.team import Team
from sparring.parallel.tensors import whole
from test_vision_lm import GROUPS, MAKERS, PROMPTS, STORE, TEXT, fresh, uniforms

# A pass is text alone on the second rank, then on both.
SHARES: list[list[list[PromptGroup]]] = [[GROUPS[:2], TEXT], [GROUPS[1:], GROUPS[:1]], [TEXT, GROUPS[2:3]]]
PARAMS = SamplingParams(5)


def sharded() -> list[dict[str, Any]]:
    found = []
    with connected() as ranks:
        assert isinstance(ranks, Team)
        ranks.prepare("cpu", 60)
        for make in MAKERS:
            for checkpointing in (False, True):
                model = shard(fresh(make), ranks, torch.float32, "cpu")
                lm = ShardedVisionLM(model, torch.float32, True, STORE, checkpointing=checkpointing)
                with torch.no_grad():
                    scored = lm.score(GROUPS if ranks.rank else TEXT).logprobs_S
                for share in SHARES:
                    lm.score(share[ranks.rank], reference=lm).logprobs_S.sum().backward()
                lm.refresh()
                gradients = {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
                with lm.gathered():
                    prompts = PROMPTS[ranks.rank :: 2]
                    written = lm.generate(prompts, 2, PARAMS, uniforms(2 * len(prompts), 5))
                found.append(
                    {"scored": scored, "gradients": gradients, "written": [[c.ids for c in row] for row in written]}
                )
    return found


def test_two_ranks_do_what_one_process_does(tmp_path: Path) -> None:
    both = on_ranks(2, tmp_path, sharded)
    for index, make in enumerate(make for make in MAKERS for _ in range(2)):
        model = fresh(make)
        lm = VisionLM(model, torch.float32, True, STORE)
        for share in SHARES:
            for groups in share:
                lm.score(groups).logprobs_S.sum().backward()
        for rank in range(2):
            got = both[rank][index]
            want = lm.score(GROUPS if rank else TEXT).logprobs_S.detach()
            torch.testing.assert_close(got["scored"], want, atol=1e-5, rtol=0)
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                gap = (got["gradients"][name] - parameter.grad).norm()
                assert gap <= 1e-4 * parameter.grad.norm() + 1e-6, name
            prompts = PROMPTS[rank::2]
            written = lm.generate(prompts, 2, PARAMS, uniforms(2 * len(prompts), 5))
            assert got["written"] == [[c.ids for c in row] for row in written]
