"""Two ranks do what one process does: the parts, one batch's update, samples, scores, files."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from conftest import small_run
from ranks import on_ranks
from scripted import Recorder, relative_error
from sparring.batching import Example, sequence_sum, to_examples
from sparring.build import build_game
from sparring.dealing import shares
from sparring.learner import DivergedError, ExactKL, Learner, SampledKL, Update
from sparring.lm.base import SamplingParams
from sparring.losses import k3
from sparring.models import Models, build_models
from sparring.parallel import ALONE, RankError, Ranks, connected, deal, parts, speaks
from sparring.parallel.parts import FromFirst, TensorFiles, write_tensors
from sparring.parallel.tensors import fingerprint, placed_like, whole
from sparring.rewards.base import RewardError
from sparring.rewards.parallel import FirstReward, SplitPreference
from sparring.roles import Role
from sparring.sampling.local import LocalWriter
from sparring.sampling.parallel import ParallelWriter, spread
from sparring.sampling.seeds import Draws
from sparring.sampling.turns import TurnSampler
from sparring.settings import RunConfig
from sparring.types import Prompt, Turn
from tiny_models import save_tiny_llama

CASES = [(strategy, tuning) for strategy in ("replicate", "shard") for tuning in ("full", "lora")]
GENERIC = ("model.engine=generic",)  # what sharded models run on: the same arithmetic in one process


# --- dealing -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 9))
def test_work_is_dealt_whole_and_evenly(costs: list[int], hands: int) -> None:
    dealt = deal(costs, hands)
    assert sorted(index for indices in dealt for index in indices) == list(range(len(costs)))
    assert all(indices == sorted(indices) for indices in dealt)
    loads = [sum(costs[index] for index in indices) for indices in dealt]
    assert max(loads) - min(loads) <= max(costs, default=0)
    assert dealt == deal(costs, hands)


def example(prompt: int, length: int) -> Example:
    return Example((prompt, 1, 2), tuple(range(3, 3 + length)), 1.0, 1.0, np.zeros(length, np.float32), "solver")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30)), max_size=30), st.integers(1, 5))
def test_a_batch_is_dealt_to_ranks_by_prompt(rows: list[tuple[int, int]], ranks: int) -> None:
    examples = [example(prompt, length) for prompt, length in rows]
    dealt = shares(examples, ranks)
    assert len(dealt) == ranks
    assert sorted(id(e) for share in dealt for e in share) == sorted(map(id, examples))
    assert dealt == shares(examples, ranks)


def test_small_prompts_stay_whole_and_a_large_one_is_cut() -> None:
    small = [example(prompt, 4) for prompt in range(4) for _ in range(3)]
    for share in shares(small, 2):
        assert len(share) == 6
        assert len({e.prompt_ids for e in share}) == 2
    alone = [example(0, 10) for _ in range(8)]
    assert [len(share) for share in shares(alone, 4)] == [2, 2, 2, 2]


# --- meetings ----------------------------------------------------------------------------------------


def test_one_process_is_alone() -> None:
    with connected() as ranks:
        assert ranks is ALONE
    assert ALONE.leads
    assert speaks()
    assert ALONE.gather("anything", 3) == [3]
    assert ALONE.together("anything", lambda: 4) == [4]
    assert ALONE.first("anything", lambda: 5) == 5
    assert ALONE.share([1, 2, 3]) == [0, 1, 2]
    assert ALONE.settle(ValueError("whatever"))
    one = torch.ones(3)
    ALONE.sum_([one])
    ALONE.broadcast_(one)
    assert one.tolist() == [1, 1, 1]


def test_a_rank_without_its_launchers_variables_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"RANK, .*is not: start with torchrun"), connected():
        raise AssertionError


class OddError(ValueError):
    """An error that can't be rebuilt from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def meet() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(2):  # ranks may part and meet again in one process
        with connected() as ranks:
            ranks.prepare("cpu", 30)
            found = meet_once(ranks)
    return found


def meet_once(ranks: Ranks) -> dict[str, Any]:
    errors: dict[str, Any] = {}
    for name, error in {
        "plain": KeyError("k"),
        "odd": OddError("a", "b"),
        "full": OSError(errno.ENOSPC, "full"),
    }.items():

        def fail(error: Exception = error) -> None:
            if ranks.rank == 1:
                raise error

        try:
            ranks.together("failing", fail)
        except Exception as caught:  # noqa: BLE001
            errors[name] = (type(caught).__name__, str(caught), getattr(caught, "errno", None), caught.__notes__)
    try:
        ranks.first("failing", lambda: 1 / 0)
    except ZeroDivisionError as caught:
        errors["first"] = str(caught)
    diverged = DivergedError("nan", [example(0, 2)])
    try:
        ranks.first("diverging", lambda: (_ for _ in ()).throw(diverged))
    except DivergedError as caught:
        errors["diverged"] = (str(caught), caught.examples[0].completion_ids)
    mine = [torch.full((2, 2), float(ranks.rank + 1)), torch.arange(3.0) * (ranks.rank + 1)]
    ranks.sum_(mine)
    sent = torch.tensor([ranks.rank + 7.0])
    ranks.broadcast_(sent)
    ranks.same("sums", fingerprint(mine))
    return {
        "gathered": ranks.gather("rank", ranks.rank),
        "together": ranks.together("squares", lambda: ranks.rank**2),
        "first": ranks.first("who", lambda: ranks.rank),
        "share": ranks.share([3, 2, 2]),
        "summed": [tensor.tolist() for tensor in mine],
        "sent": sent.tolist(),
        "settled": ranks.settle(ValueError("all fail alike")),
        "errors": errors,
        "speaks": speaks(),
    }


def test_two_ranks_meet(tmp_path: Path) -> None:
    found = on_ranks(2, tmp_path, meet)
    for rank, mine in enumerate(found):
        assert mine["gathered"] == [0, 1]
        assert mine["together"] == [0, 1]
        assert mine["first"] == 0
        assert mine["share"] == [[0], [1, 2]][rank]
        assert mine["summed"] == [[[3, 3], [3, 3]], [0, 3, 6]]
        assert mine["sent"] == [7]
        assert mine["settled"] is True
        assert mine["speaks"] is (rank == 0)
        errors = mine["errors"]
        assert errors["plain"][:2] == ("KeyError", "'k'")
        assert errors["odd"][0] == ("ValueError" if rank == 0 else "OddError")  # the nearest that can be rebuilt
        assert "ab" in errors["odd"][1]
        assert errors["full"][2] == errno.ENOSPC
        assert all("rank 1" in errors[name][3][0] for name in ("plain", "odd", "full"))
        assert errors["first"] == "division by zero"
        assert errors["diverged"] == ("nan", (3, 4))


# --- one batch ---------------------------------------------------------------------------------------


def settings(strategy: str, tuning: str, *more: str) -> RunConfig:
    lora = ("model.lora.rank=4",) if tuning == "lora" else ()
    given = (f"parallel.strategy={strategy}", f"model.tuning={tuning}", *lora, *GENERIC, *more)
    return small_run("lsp", "model.dtype=float32", *given)


def played(game: str) -> list[Example]:
    """The examples of one real step."""
    config = small_run(game, *GENERIC)
    models = build_models(config)
    sampler = TurnSampler(
        LocalWriter(models.policy, models.reference), models.renderer, stop_ids=models.stop_ids, context=models.context
    ).at(1)
    built = build_game(config)
    turns = built.play(sampler)
    return to_examples(turns, built.baseline(turns, built.payoffs(turns)), sequence_sum)


UPDATES = {
    "sampled": Update(0.05, SampledKL(k3), max_grad_norm=0.5, token_budget=300),
    "exact": Update(0.05, ExactKL(), max_grad_norm=None, token_budget=300),
    "several": Update(
        0.05, SampledKL(k3), minibatches=2, epochs=2, clip_low=0.2, clip_high=0.2, token_budget=300, importance_cap=1.5
    ),
}


def update(ranks: Ranks, config: RunConfig, examples: list[Example], update: Update) -> dict[str, Any]:
    """The figures and gradients of one update of a policy that has left its start."""
    models = build_models(config, ranks=ranks)
    parameters = models.weights.parameters()
    step = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            noise = torch.randn(parameter.shape, generator=step) * 0.02
            parameter.add_(placed_like(noise, parameter))
    models.policy.refresh()
    optimizer = Recorder(parameters.values())
    learner = Learner(
        models.model, models.policy, models.reference, optimizer, update, ranks=ranks, lockstep=models.sharded
    )
    figures = learner.update(examples, 1.0)
    return {"figures": figures, "gradients": [[whole(g).clone() for g in step] for step in optimizer.steps]}


def updates(examples: dict[str, list[Example]], cases: list[tuple[str, str]]) -> dict[Any, Any]:
    with connected() as ranks:
        ranks.prepare("cpu", 60)
        return {
            (strategy, tuning, name, kind): update(ranks, settings(strategy, tuning), batch, UPDATES[kind])
            for strategy, tuning in cases
            for name, batch in examples.items()
            for kind in (UPDATES if name in ("lsp", "grpo") else ["sampled"])
        }


def batches() -> dict[str, list[Example]]:
    found = {"lsp": played("lsp"), "grpo": played("grpo")}
    by_prompt: dict[tuple[int, ...], list[Example]] = {}
    for e in found["grpo"]:
        by_prompt.setdefault(e.prompt_ids, []).append(e)
    groups = list(by_prompt.values())
    found["three prompts"] = [e for group in groups[:3] for e in group]
    found["one example"] = groups[0][:1]
    return found


def test_an_update_on_two_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    examples = batches()
    assert {e.tag for e in examples["lsp"]} == {"challenger", "solver"}
    both = on_ranks(2, tmp_path, updates, examples, CASES)
    alone = {
        (tuning, name, kind): update(ALONE, settings("replicate", tuning), batch, UPDATES[kind])
        for tuning in ("full", "lora")
        for name, batch in examples.items()
        for kind in (UPDATES if name in ("lsp", "grpo") else ["sampled"])
    }
    for case, got in both[0].items():
        want = alone[case[1:]]
        assert both[1][case]["figures"] == got["figures"], case
        assert got["figures"].keys() == want["figures"].keys()
        for name, value in want["figures"].items():
            # Over several steps the loss is a sum of terms that nearly cancel.
            tolerance = 1e-5 if name in ("loss", "grad_norm") and case[3] != "several" else 1e-4
            assert got["figures"][name] == pytest.approx(value, rel=tolerance, abs=1e-7), (case, name)
        assert want["figures"]["grad_norm"] > 1e-3
        for mine, theirs in zip(got["gradients"], want["gradients"], strict=True):
            # The second step's gradient is at parameters that differ by the first one's rounding.
            assert relative_error(mine, theirs) < (1e-4 if case[3] == "several" else 1e-5), case


def diverging(poisoned: list[Example]) -> list[str]:
    said = []
    with connected() as ranks:
        ranks.prepare("cpu", 60)
        for strategy in ("replicate", "shard"):
            try:
                update(ranks, settings(strategy, "full"), poisoned, UPDATES["sampled"])
            except DivergedError as error:
                said.append(f"{strategy} {error} {len(error.examples) > 0}")
    return said


def test_a_loss_that_is_nan_on_one_rank_is_so_on_both(tmp_path: Path) -> None:
    examples = played("grpo")
    poisoned = [*examples[:-1], replace(examples[-1], advantage=math.nan)]
    found = on_ranks(2, tmp_path, diverging, poisoned)
    assert found[0] == found[1] == ["replicate the loss is nan True", "shard the loss is nan True"]


# --- samples -----------------------------------------------------------------------------------------


def completions(models: Models, ranks: Ranks, counts: list[int], temperature: float) -> list[Any]:
    found = []
    writer = spread(LocalWriter(models.policy, models.reference), models)
    assert isinstance(writer, ParallelWriter) is (ranks.size > 1)
    for total in counts:
        prompts = [models.renderer.encode([{"role": "user", "content": "ab" * k}]) for k in range(1, total + 1)]
        draws = Draws(0, 1, "sample/test", 0, total, tuple(range(total)))
        for model in ("policy", "reference"):
            rows = writer.complete(model, prompts, 3, SamplingParams(12, temperature, stop_ids=models.stop_ids), draws)
            found.append([[(c.ids, c.finish, c.logprobs) for c in row] for row in rows])
    return found


def sampled(counts: list[int]) -> list[Any]:
    with connected() as ranks:
        ranks.prepare("cpu", 60)
        return [
            completions(build_models(settings(strategy, tuning), ranks=ranks), ranks, counts, temperature)
            for strategy, tuning in CASES
            for temperature in (1.0, 0.0)
        ]


def test_two_ranks_sample_what_one_process_samples(tmp_path: Path) -> None:
    counts = [5, 1, 0]  # uneven, fewer prompts than ranks, none
    both = on_ranks(2, tmp_path, sampled, counts)
    alone = [
        completions(build_models(settings("replicate", tuning)), ALONE, counts, temperature)
        for _, tuning in CASES
        for temperature in (1.0, 0.0)
    ]
    for got in both:
        for mine, theirs in zip(got, alone, strict=True):
            for rows, others in zip(mine, theirs, strict=True):
                assert [[c[:2] for c in row] for row in rows] == [[c[:2] for c in row] for row in others]
                for row, other in zip(rows, others, strict=True):
                    for (_, _, logprobs), (_, _, wanted) in zip(row, other, strict=True):
                        np.testing.assert_allclose(logprobs, wanted, atol=2e-5)


class Broken:
    """A writer that fails on one rank."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def complete(self, *_: Any) -> list[Any]:
        if self._ranks.rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [[]]


def breaking() -> str:
    with connected() as ranks:
        writer: Any = Broken(ranks)
        spread_out = ParallelWriter(writer, ranks, lambda _: nullcontext())
        try:
            spread_out.complete("policy", [(1,), (2,)], 1, SamplingParams(2), Draws(0, 1, "x", 0, 2, (0, 1)))
        except RuntimeError as error:
            return f"{type(error).__name__}: {error} {error.__notes__}"
    return "nothing"


def test_a_rank_that_runs_out_of_memory_while_sampling_is_named_on_both(tmp_path: Path) -> None:
    for said in on_ranks(2, tmp_path, breaking):
        assert said.startswith("MemoryExhaustedError: out of memory while sampling (CUDA out of memory): lower")
        assert "This was on rank 1" in said


# --- scores ------------------------------------------------------------------------------------------


class Counting:
    """A reward that remembers how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, queries: list[str], answers: list[str]) -> list[float]:
        self.calls += 1
        if answers == ["bad"]:
            raise ValueError("no score for that")
        return [float(len(answer)) for answer in answers]

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def restore(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]

    def drain(self) -> dict[str, float]:
        return {"calls": float(self.calls)}


def turn(text: str) -> Turn:
    role = Role("solver", "{{ query }}", SamplingParams(4))
    return Turn(role, Prompt(({"role": "user", "content": "q"},)), (1,), (2,), np.zeros(1, np.float32), text, "stop")


def rewarded() -> dict[str, Any]:
    with connected() as ranks:
        counting = Counting()
        reward = FirstReward(counting, "counting", ranks)
        found: dict[str, Any] = {"scores": reward(["q", "q"], [turn("a"), turn("bcd")]), "drained": reward.drain()}
        try:
            reward(["q"], [turn("bad")])
        except RewardError as error:
            found["error"] = str(error)
        found |= {"state": reward.state(), "called here": counting.calls}
        reward.restore({"calls": 40})
        found |= {"restored": reward.state(), "restored here": counting.calls}
        reward.close()
    return found


def test_a_reward_of_the_users_is_asked_of_rank_0_alone(tmp_path: Path) -> None:
    for rank, found in enumerate(on_ranks(2, tmp_path, rewarded)):
        assert found["scores"] == [1.0, 3.0]
        assert found["drained"] == {"calls": 1.0}
        assert "reward 'counting' raised ValueError: no score for that" in found["error"]
        assert found["state"] == {"calls": 2}
        assert found["called here"] == (2 if rank == 0 else 0)
        assert found["restored"] == {"calls": 40}
        assert found["restored here"] == (40 if rank == 0 else 0)


def lengths(queries: Any, answers: Any, conversations: Any) -> list[float | None]:
    """A stand-in for a reward model: the answer's length; over 6 is over-long."""
    return [float(len(answer)) if len(answer) <= 6 else None for answer in answers]


def split(counts: list[int]) -> list[Any]:
    with connected() as ranks:
        scored: list[int] = []

        def counted(queries: Any, answers: Any, conversations: Any) -> list[float | None]:
            scored.append(len(answers))
            return lengths(queries, answers, conversations)

        preference = SplitPreference(counted, ranks)
        found = []
        for count in counts:
            answers = ["x" * k for k in range(1, count + 1)]
            chats = [[{"role": "assistant", "content": answer}] for answer in answers]
            found.append(preference(answers, answers, chats))
        return [found, preference.drain(), preference.drain(), sum(scored)]


def test_a_reward_models_work_is_shared(tmp_path: Path) -> None:
    results = on_ranks(2, tmp_path, split, [9, 1, 0])
    for found, drained, again, _ in results:
        assert found[0] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None, None, None]
        assert found[1:] == [[1.0], []]
        assert drained == {"over_long": 0.3}
        assert again == {}
    assert sum(result[3] for result in results) == 10
    assert max(result[3] for result in results) <= 6


# --- files -------------------------------------------------------------------------------------------


@pytest.fixture
def tensors() -> Iterator[dict[str, Tensor]]:
    torch.manual_seed(0)
    yield {
        "a.weight": torch.randn(5, 3),
        "half": torch.randn(4).bfloat16(),
        "step": torch.tensor(7.0),
        "none": torch.empty(0, 3),
        "count": torch.arange(4),
    }


def test_tensors_written_are_safetensors(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    digests = write_tensors(tmp_path, "model", tensors, ALONE)
    (file,) = tmp_path.iterdir()
    assert digests == {"model.safetensors": (file.stat().st_size, digests["model.safetensors"][1])}
    read = load_file(file)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    files = TensorFiles([file])
    assert files.kind("half") == ((4,), torch.bfloat16)
    again = FromFirst(files, ALONE, torch.device("cpu"))
    assert all(torch.equal(again[name], tensors[name]) for name in again)
    assert len(again) == len(files) == len(tensors)


def test_a_tensor_that_cant_be_written_is_an_error(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_tensors(tmp_path / "absent", "model", tensors, ALONE)


def shards(folder: Path) -> dict[str, Any]:
    with connected() as ranks:
        ranks.prepare("cpu", 60)
        models = build_models(settings("shard", "full"), ranks=ranks)
        digests = models.weights.save(folder)
        before = [whole(p).clone() for p in models.weights.parameters().values()]
        with torch.no_grad():
            for parameter in models.weights.parameters().values():
                parameter.zero_()
        models.weights.restore(folder)
        models.policy.refresh()
        after = [whole(p) for p in models.weights.parameters().values()]
        held = sum(p.to_local().numel() for p in models.model.parameters())  # pyright: ignore
        return {"digests": digests, "same": [torch.equal(a, b) for a, b in zip(before, after, strict=True)], "n": held}


def test_a_sharded_model_is_saved_as_a_plain_folder_by_both_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    found = on_ranks(2, tmp_path, shards, folder)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert found[0]["digests"] == found[1]["digests"]
    assert {name: size for name, (size, _) in found[0]["digests"].items()} == {
        name: (folder / name).stat().st_size for name in files
    }
    assert all(found[0]["same"] + found[1]["same"])
    start = build_models(settings("replicate", "full")).model
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert loaded.config.architectures == start.config.architectures
    wanted = dict(start.named_parameters())
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in loaded.named_parameters())
    total = sum(parameter.numel() for parameter in wanted.values())
    assert found[0]["n"] + found[1]["n"] == total
    assert max(result["n"] for result in found) < 0.55 * total
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def full(folder: Path) -> str:
    with connected() as ranks:
        ranks.prepare("cpu", 60)
        models = build_models(settings("shard", "full"), ranks=ranks)
        if ranks.rank == 1:  # the second rank's disk is full

            class Full(parts._Part):
                def _write(self, data: Any) -> None:
                    self._error = OSError(errno.ENOSPC, "No space left on device")

            parts._Part = Full
        try:
            models.weights.save(folder)
        except OSError as error:
            return f"{error.errno} {error}"
    return "saved"


def test_a_full_disk_under_one_rank_is_told_on_both(tmp_path: Path) -> None:
    said = on_ranks(2, tmp_path, full, tmp_path)
    assert said == [f"{errno.ENOSPC} [Errno {errno.ENOSPC}] No space left on device"] * 2


# --- refused -----------------------------------------------------------------------------------------


def refused(folder: Path) -> list[str]:
    said = []
    with connected() as ranks:
        for device in ("mps", "cuda:1"):
            try:
                ranks.prepare(device, 60)
            except ValueError as error:
                said.append(str(error))
        ranks.prepare("cpu", 60)
        for given in (("shard", "qlora"), ("shard", "full", "model.remote_code=arena")):
            try:
                build_models(settings(*given), ranks=ranks)
            except ValueError as error:
                said.append(str(error))
        try:
            build_models(settings("shard", "full", f"model.path={folder}"), ranks=ranks)
        except ValueError as error:
            said.append(str(error))
        try:
            ranks.same("the weather", ranks.rank)
        except RankError as error:
            said.append(str(error))
    return said


def test_what_ranks_cant_do_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.extra"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = on_ranks(2, tmp_path, refused, folder)[0]
    for message, wanted in zip(
        said,
        (
            "cpu or cuda, not on mps",
            "cuda:1 is one GPU",
            "4-bit weights",
            "models that transformers has",
            "model.norm.weight, model.extra",
            "ranks 1 and rank 0 disagree about the weather",
        ),
        strict=True,
    ):
        assert wanted in message, message
