"""A reward model served by a real vLLM gives the scores that it gives when it is loaded here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripted import turn_of
from sparring.lm.base import SamplingParams
from sparring.lm.load import load_tokenizer
from sparring.rewards.base import Reward, RewardError
from sparring.rewards.preference import PreferenceModel
from sparring.rewards.scale import Scaled, Sigmoid
from sparring.rewards.served import ServedPreference
from sparring.roles import Role
from sparring.types import Turn
from tiny_models import save_tiny_reward
from vllm_server import start_vllm

pytestmark = pytest.mark.vllm

LONGEST = 96
WORDS = ("Jupiter", "is", "the", "largest", "planet", "and", "a", "quick", "brown", "fox", "knows", "it", "well")
ANSWERS = [" ".join(WORDS[(n + i) % len(WORDS)] for i in range(n)) for n in (3, 0, 30, 1, 12, 60, 7, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # vLLM's CPU attention wants heads of 32 at least; the spread makes scores of several units.
    config = {"head_dim": 32, "initializer_range": 0.1, "max_position_embeddings": LONGEST}
    return save_tiny_reward(tmp_path_factory.mktemp("reward") / "model", spread=5.0, **config)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with start_vllm(folder, "--runner", "pooling", "--served-model-name", "judge") as address:
        yield address


@pytest.fixture
def served(url: str, folder: Path) -> Iterator[Reward]:
    reward = Reward(ServedPreference.load(url, folder, model="judge"))
    yield reward
    reward.close()


def turns(answers: list[str]) -> list[Turn]:
    role = Role("solver", "Answer: {{ query }}", SamplingParams(8))
    return [turn_of(role, role.prompt(query="q", info={"query_text": "Which planet?"}), text) for text in answers]


def scores(reward: Reward, answers: list[str]) -> list[float | None]:
    return reward(["q"] * len(answers), turns(answers))


def known(given: list[float | None]) -> list[float]:
    return [score for score in given if score is not None]


def test_served_and_local_scores_agree(served: Reward, folder: Path) -> None:
    local = scores(Reward(PreferenceModel.load(folder)), ANSWERS)
    remote = scores(served, ANSWERS)
    assert max(known(local)) - min(known(local)) > 1
    assert min(known(local)) < 0 or max(known(local)) > 1, "logits, no sigmoid of them"
    assert [score is None for score in remote] == [score is None for score in local] == [n == 60 for n in lengths()]
    assert known(remote) == pytest.approx(known(local), abs=1e-3)
    assert served.drain() == {"over_long": 1 / len(ANSWERS)}


def lengths() -> list[int]:
    return [len(answer.split()) for answer in ANSWERS]


def test_the_longest_conversation_is_scored_and_no_longer_one(served: Reward, folder: Path) -> None:
    local = Reward(PreferenceModel.load(folder))
    growing = [" ".join("a" * n) for n in range(20, LONGEST)]
    remote = scores(served, growing)
    fitting = sum(score is not None for score in remote)
    assert 0 < fitting < len(growing)
    assert known(remote) == pytest.approx(known(scores(local, growing)), abs=1e-3)


def test_they_agree_where_conversations_end_with_the_padding_token(url: str, folder: Path) -> None:
    """transformers then scores one token earlier; vLLM scores at the last token that it is sent."""
    local = PreferenceModel.load(folder)
    plain = known(scores(Reward(local), ANSWERS))
    eos = local._config.eos_token_id
    local._config.pad_token_id = eos
    earlier = known(scores(Reward(local), ANSWERS))
    assert max(abs(a - b) for a, b in zip(plain, earlier, strict=True)) > 0.1
    remote = Reward(ServedPreference(url, load_tokenizer(folder), pad_token_id=eos))
    assert known(scores(remote, ANSWERS)) == pytest.approx(earlier, abs=1e-3)
    remote.close()


def test_many_at_once_under_a_scale(url: str, folder: Path) -> None:
    answers = [" ".join(WORDS[(n * i) % len(WORDS)] for i in range(1 + n % 17)) + f" {n}" for n in range(100)]
    local = Reward(Scaled(PreferenceModel.load(folder), Sigmoid()))
    remote = Reward(Scaled(ServedPreference.load(url, folder, concurrency=4), Sigmoid()))
    assert known(scores(remote, answers)) == pytest.approx(known(scores(local, answers)), abs=1e-3)
    assert remote.drain() == pytest.approx(local.drain(), abs=1e-3)
    remote.close()


def test_a_server_with_another_model_is_refused(url: str, folder: Path) -> None:
    with pytest.raises(RewardError, match=r"'other' is not served there; served: judge; check game\.reward\.url"):
        ServedPreference.load(url, folder, model="other")
