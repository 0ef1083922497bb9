"""A real vLLM server as the judge: its protocol, and the same verdicts as the model gives when it is loaded here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from sparring.evaluation.judges.base import Cost, JudgeError, Pair
from sparring.evaluation.judges.cache import VerdictCache
from sparring.evaluation.judges.endpoint import EndpointJudge
from sparring.evaluation.judges.frugal import FrugalJudge
from sparring.evaluation.judges.local import LocalModel, RankingJudge, TokenJudge
from sparring.evaluation.judges.styles import Ranked, Weighted
from sparring.evaluation.judges.templates import open_template
from sparring.lm.load import load_tokenizer, save_model
from sparring.rendering import Renderer
from sparring.settings import ModelConfig
from tiny_models import chat_tokenizer, sizes
from vllm_rollout import SHAPE
from vllm_server import start_vllm

pytestmark = pytest.mark.vllm

WORDS = ("Jupiter", "is", "the", "largest", "planet", "and", "a", "quick", "brown", "fox")
PAIRS = [Pair(f"Question {n}?", " ".join(WORDS[: n % 7]), " ".join(WORDS[-1 - n % 9 :]), key=f"{n}") for n in range(24)]
LONG = Pair("Why?", "fox " * 2_000, "Jupiter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All logits are 0 but those of m and M, of which either, both or none are above 0, depending on the pair."""
    tokenizer = chat_tokenizer("llama3")
    torch.manual_seed(3)
    shape = sizes(tokenizer, **{**SHAPE, "max_position_embeddings": 1_024, "tie_word_embeddings": False})
    model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    with torch.no_grad():
        last_BD = torch.stack([model.model(ids).last_hidden_state[0, -1] for ids in prompts(tokenizer)])
        # Across what all prompts have in common, along what tells them apart most.
        mean_D = last_BD.mean(0)
        varied_BD = last_BD - last_BD @ mean_D[:, None] / mean_D.dot(mean_D) * mean_D
        varied_BD -= varied_BD.mean(0)
        _, spread, axes = torch.linalg.svd(varied_BD, full_matrices=False)
        model.lm_head.weight.zero_()
        model.lm_head.weight[names(tokenizer)] = axes[:2] * (2 * len(PAIRS) ** 0.5 / spread[:2, None])
    made = tmp_path_factory.mktemp("judge") / "model"
    save_model(model, tokenizer, made)
    return made


def prompts(tokenizer: PreTrainedTokenizerBase) -> list[torch.Tensor]:
    template = open_template("weighted")
    return [torch.tensor([Renderer(tokenizer).encode(template.fill(pair))]) for pair in PAIRS]


def names(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [tokenizer.encode(name, add_special_tokens=False)[0] for name in ("m", "M")]


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with start_vllm(folder, "--served-model-name", "judge") as address:
        yield address


@pytest.fixture(scope="module")
def local(folder: Path) -> LocalModel:
    return LocalModel.load(ModelConfig(path=str(folder), dtype="float32"))


def logits(folder: Path) -> list[tuple[float, float]]:
    """Those of m and M after each prompt, by transformers."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = [model(ids).logits[0, -1][names(tokenizer)].tolist() for ids in prompts(tokenizer)]
    return [(first, second) for first, second in found]


def wanted(first: float, second: float) -> float | None:
    """By hand: all other tokens have logit 0, so a name is among the top five where its own is above 0."""
    if first <= 0 and second <= 0:
        return None
    if min(first, second) <= 0:
        return float(second > 0)
    return torch.tensor(second - first).sigmoid().item()


def test_weighted_verdicts_are_the_models_own(url: str, folder: Path, local: LocalModel) -> None:
    judge = EndpointJudge("judge", Weighted(), url=url)
    verdicts = judge.judge(PAIRS)
    judge.close()
    by_hand = [wanted(*both) for both in logits(folder)]
    assert {None, 0.0, 1.0} < set(by_hand), "every case is there"
    assert [verdict.preference for verdict in verdicts] == pytest.approx(by_hand, abs=1e-3)
    assert all(verdict.completion_tokens == 1 for verdict in verdicts)
    here = TokenJudge(local).judge(PAIRS)
    assert [verdict.prompt_tokens for verdict in verdicts] == [verdict.prompt_tokens for verdict in here]


def test_ranked_verdicts_are_what_the_model_writes(url: str, local: LocalModel) -> None:
    judge = EndpointJudge("judge", Ranked(max_tokens=8), url=url)
    verdicts = judge.judge(PAIRS[:6])
    judge.close()
    here = RankingJudge(local, max_tokens=8).judge(PAIRS[:6])
    assert [verdict.text for verdict in verdicts] == [verdict.text for verdict in here]
    assert [verdict.preference for verdict in verdicts] == [None] * 6


def test_what_is_kept_is_not_asked_again_and_what_is_too_long_is_unparsed(url: str, tmp_path: Path) -> None:
    judge = FrugalJudge(EndpointJudge("judge", Weighted(), url=url), VerdictCache(tmp_path / "c"))
    verdicts = judge.judge([*PAIRS[:3], LONG])
    assert verdicts[-1].preference is None
    assert "context length" in verdicts[-1].text
    assert judge.estimate([*PAIRS[:3], LONG]) == Cost(0, 0, 0, saved=4)
    judge.close()


def served(url: str) -> int:
    """Requests that the server has answered so far, by its own count."""
    lines = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text.splitlines()
    return round(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total{")))


def test_a_command_killed_half_way_asks_nothing_twice(url: str, tmp_path: Path) -> None:
    """`sparring eval win-rate` before the server: kill -9 among the verdicts, then the same command again."""
    count, at_once = 60, 2
    for name in ("mine", "base"):
        rows = [{"instruction": f"Q{n}?", "output": f"{name} {n}", "generator": name} for n in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    asked = [json.dumps({"prompt": f"Q{n}?"}) for n in range(count)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(asked))
    words = ["eval", "win-rate", "mine.json", "--base", "base.json", "--prompts", "prompts.jsonl", "--out", "out"]
    words += ["--judge", "judge", "--judge-url", url, "--concurrency", str(at_once)]
    command = [sys.executable, "-m", "sparring", *words]
    before = served(url)
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while served(url) - before < 20:
        assert process.poll() is None
    process.kill()
    process.wait(30)
    assert not list((tmp_path / "out").glob("win-rate*.json"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 2 * count <= served(url) - before <= 2 * count + at_once  # those in flight may be asked again
    after = served(url)
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert served(url) == after


def test_a_model_that_is_not_there_is_named(url: str) -> None:
    judge = EndpointJudge("gpt-4o", Weighted(), url=url)
    with pytest.raises(JudgeError, match=r"the model 'gpt-4o' is not there .*check --judge"):
        judge.judge(PAIRS[:1])
    judge.close()


def test_a_key_that_is_wrong_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", "wrong")
    with start_vllm(folder, "--served-model-name", "judge", "--api-key", "right") as url:
        judge = EndpointJudge("judge", Weighted(), url=url, key="JUDGE_TEST_KEY")
        with pytest.raises(JudgeError, match="doesn't take the key in the environment variable JUDGE_TEST_KEY"):
            judge.judge(PAIRS[:1])
        judge.close()
        monkeypatch.setenv("JUDGE_TEST_KEY", "right")
        judge = EndpointJudge("judge", Weighted(), url=url, key="JUDGE_TEST_KEY")
        assert len(judge.judge(PAIRS[:1])) == 1
        judge.close()
