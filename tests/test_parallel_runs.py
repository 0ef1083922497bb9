"""Whole runs on two ranks: the same as in one process, and continued by any number of ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import Recorder, small_run, untimed
from ranks import Started, on_ranks
from sparring.lm.weights import weight_files
from sparring.models import locate
from sparring.rewards.base import Reward
from sparring.run import read_config, resume, train
from sparring.runfolder import RunFolder
from tiny_models import save_tiny_qwen3, save_tiny_reward

GENERIC = "model.engine=generic"
KINDS = {
    ("replicate", "full"): ("parallel.strategy=replicate",),
    ("shard", "full"): (GENERIC,),  # what auto is
    ("replicate", "lora"): ("model.tuning=lora", "model.lora.rank=4"),  # what auto is
    ("shard", "lora"): ("model.tuning=lora", "model.lora.rank=4", "parallel.strategy=shard", GENERIC),
}


def run(name: str, out: Path, settings: Sequence[str]) -> dict[str, Any]:
    """A run from its start; what its observer saw."""
    seen = Recorder()
    evaluation = train(small_run(name, *settings), out, observer=seen)
    return {
        "messages": seen.messages,
        "texts": [turn.text for turn in seen.steps[1][1]] if seen.steps else None,
        "overall": None if evaluation is None else evaluation.overall.accuracy,
    }


def go_on(out: Path) -> list[str]:
    seen = Recorder()
    resume(out, observer=seen)
    return seen.messages


def assert_close(left: Path, right: Path, steps: int, tolerance: float = 1e-4) -> None:
    """Metrics within the tolerance, and the first step's turns word by word."""
    a, b = RunFolder(left), RunFolder(right)
    rows, others = untimed(a.read_metrics()), untimed(b.read_metrics())
    assert [row["step"] for row in rows] == [row["step"] for row in others] == list(range(steps + 1))
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert other[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (row["step"], name)
    texts = [[row["text"] for row in folder.read_turns([1])] for folder in (a, b)]
    assert texts[0] == texts[1]


def assert_same_weights(left: Path, right: Path) -> None:
    """The exported models lie together, measured by the way that training took them."""
    start, one, two = map(load_model, (read_config(RunFolder(left)).model.path, str(left), str(right)))
    assert start.keys() == one.keys() == two.keys()
    moved = float((flat(one) - flat(start)).norm())
    assert moved > 0.01
    assert float((flat(one) - flat(two)).norm()) < 1e-3 * moved


def load_model(path: str) -> dict[str, Tensor]:
    return {name: tensor for file in weight_files(Path(locate(path))) for name, tensor in load_file(file).items()}


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize(
    ("game", "kind"),
    [
        ("lsp", ("shard", "full")),
        ("lsp", ("replicate", "lora")),
        ("grpo", ("replicate", "full")),
        ("grpo", ("shard", "lora")),
        pytest.param("lsp", ("replicate", "full"), marks=pytest.mark.slow),
        pytest.param("lsp", ("shard", "lora"), marks=pytest.mark.slow),
        pytest.param("grpo", ("shard", "full"), marks=pytest.mark.slow),
        pytest.param("grpo", ("replicate", "lora"), marks=pytest.mark.slow),
    ],
)
def test_a_run_on_two_ranks_is_that_of_one_process(game: str, kind: tuple[str, str], tmp_path: Path) -> None:
    settings = ("steps=4", "evaluation.every=2", *KINDS[kind])
    alone = run(game, tmp_path / "alone", settings)
    both = on_ranks(2, tmp_path, run, game, tmp_path / "both", settings)
    assert_close(tmp_path / "alone", tmp_path / "both", 4)
    assert both[0]["texts"] == alone["texts"]
    assert both[1]["texts"] is None  # only rank 0 is watched
    assert both[1]["messages"] == []
    assert both[0]["overall"] == both[1]["overall"] == alone["overall"]
    assert_same_weights(tmp_path / "alone", tmp_path / "both")
    lineage = json.loads((tmp_path / "both" / "lineage.json").read_text())
    assert lineage["stages"][0]["results"]["steps"] == 4
    assert not list((tmp_path / "both").rglob("*.partial*"))


@pytest.mark.parametrize(
    ("kind", "first", "then"),
    [
        (("shard", "full"), 2, 1),
        (("shard", "full"), 1, 2),
        pytest.param(("replicate", "lora"), 2, 1, marks=pytest.mark.slow),
        pytest.param(("shard", "lora"), 1, 2, marks=pytest.mark.slow),
        pytest.param(("shard", "full"), 3, 2, marks=pytest.mark.slow),
        pytest.param(("replicate", "full"), 1, 3, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(
    kind: tuple[str, str], first: int, then: int, tmp_path: Path
) -> None:
    settings = ("steps=2", "evaluation.every=0", *KINDS[kind])
    whole, out = tmp_path / "whole", tmp_path / "run"
    run("lsp", whole, ("steps=4", *settings[1:]))
    _on(first, tmp_path, run, "lsp", out, settings)
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("steps: 2\n", "steps: 4\n", 1))
    (messages, *_) = _on(then, tmp_path, go_on, out)
    assert "resuming after step 2" in messages
    assert_close(whole, out, 4)
    assert_same_weights(whole, out)


def _on(size: int, folder: Path, function: Any, *args: Any) -> list[Any]:
    return [function(*args)] if size == 1 else on_ranks(size, folder, function, *args)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(
    "more",
    [
        # Standardised, groups that differ by the KL's rounding alone would have advantages of rounding's making.
        ("learner.kl=k1", "learner.beta=0.1", "game.advantage=centred"),
        ("learner.minibatches=2", "learner.epochs=2", "learner.clip_low=0.2", "learner.clip_high=0.2"),
        ("model.gradient_checkpointing=true", "learner.kl=k3"),
        ("game.n_queries=1", "game.challenge.frozen_share=0"),
        ("game.challenger.max_new_tokens=1", "game.n_queries=3"),  # no valid query at all
        ("learner.token_budget=150",),  # many micro-batches, not equally many on each rank
    ],
)
def test_other_settings_too(kind: tuple[str, str], more: tuple[str, ...], tmp_path: Path) -> None:
    settings = ("steps=3", "evaluation.every=0", *KINDS[kind], *more)
    run("lsp", tmp_path / "alone", settings)
    on_ranks(2, tmp_path, run, "lsp", tmp_path / "both", settings)
    assert_close(tmp_path / "alone", tmp_path / "both", 3)


def test_no_valid_query_on_two_ranks(tmp_path: Path) -> None:
    settings = ("steps=2", "evaluation.every=0", "game.challenger.max_new_tokens=1", *KINDS["shard", "full"])
    run("lsp", tmp_path / "alone", settings)
    on_ranks(2, tmp_path, run, "lsp", tmp_path / "both", settings)
    assert_close(tmp_path / "alone", tmp_path / "both", 2)
    assert RunFolder(tmp_path / "both").read_metrics()[1]["game/valid_share"] == 0


@pytest.mark.slow
def test_untied_embeddings_in_bfloat16_with_a_reward_model(tmp_path: Path) -> None:
    model = save_tiny_qwen3(tmp_path / "model")
    reward = save_tiny_reward(tmp_path / "reward")
    settings = (
        f"model.path={model}",
        "game.domain=text",
        f"game.reward.model={reward}",
        "game.quality.source=reference",
        "game.challenge.frozen_share=0",
        "game.challenger.max_new_tokens=16",
        "game.solver.max_new_tokens=16",
        "game.grader.max_new_tokens=4",
        "steps=2",
        "evaluation.every=0",
        "learner.aggregation=sum",
        *KINDS["shard", "full"],
    )
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.05)):
        given = (f"game.prompts={_prompts(tmp_path)}", f"model.dtype={dtype}", *settings)
        alone, both = tmp_path / f"{dtype}-alone", tmp_path / f"{dtype}-both"
        run("grpo", alone, given)
        on_ranks(2, tmp_path, run, "grpo", both, given)
        assert_close(alone, both, 2, tolerance)


def _prompts(folder: Path) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Which planet is number {k}?"}) + "\n" for k in range(7)))
    return file


REWARD = """
import random
random.seed()
calls = 0
def reward(queries, answers):
    global calls
    calls += 1
    if calls == {fails}:
        raise RuntimeError("the reward is out of service")
    return [random.random() for _ in answers]
"""


def test_a_random_reward_of_the_users_is_the_same_on_both_and_its_error_ends_both(tmp_path: Path) -> None:
    file, out = tmp_path / "score.py", tmp_path / "run"
    file.write_text(REWARD.format(fails=3))
    settings = ("steps=4", "evaluation.every=0", f"game.reward.function={file}:reward", *KINDS["shard", "full"])
    results = Started(2, tmp_path, run, "grpo", out, settings).results()
    for error in results:
        assert type(error).__name__ == "RewardError"
        assert "raised RuntimeError: the reward is out of service" in str(error)
    folder = RunFolder(out)
    assert [row["step"] for row in folder.read_metrics()] == [0, 1, 2]
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000002"]  # saved before it ended
    file.write_text(REWARD.format(fails=-1))
    messages = on_ranks(2, tmp_path, go_on, out)[0]
    assert "resuming after step 2" in messages
    assert len(folder.read_metrics()) == 5


def own_game(out: Path) -> None:
    """A game whose author drew from a generator of their own."""
    from sparring.build import build_game
    from sparring.games.dataset import Dataset

    built = build_game(small_run("grpo"))
    assert isinstance(built, Dataset)

    def odd(queries: list[str], answers: list[Any]) -> list[float]:
        return [(os.getpid() + index) % 7 / 7 for index in range(len(answers))]

    built.reward = Reward(odd)
    train(small_run("grpo", "steps=2", "evaluation.every=0"), out, game=built)


def test_ranks_that_part_are_stopped(tmp_path: Path) -> None:
    for error in Started(2, tmp_path, own_game, tmp_path / "run").results():
        assert type(error).__name__ == "RankError"
        assert "ranks 1 and rank 0 disagree about what step 1 learns" in str(error)
