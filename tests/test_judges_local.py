"""A model here as the judge: its verdicts against transformers' own probabilities, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sparring.evaluation.judges.base import Cost, JudgeError, Pair, Verdict
from sparring.evaluation.judges.cache import VerdictCache
from sparring.evaluation.judges.frugal import FrugalJudge
from sparring.evaluation.judges.local import TOO_LONG, LocalModel, RankingJudge, TokenJudge, fingerprint
from sparring.evaluation.judges.templates import Template, open_template
from sparring.lm.load import load_tokenizer
from sparring.lm.lora import LoraSettings, add_lora, save_adapter
from sparring.rendering import Renderer
from sparring.settings import ModelConfig
from tiny_models import save_tiny_llama, save_tiny_qwen3

WORDS = ("Jupiter", "is", "the", "largest", "planet", "and", "a", "quick", "brown", "fox")
PLAIN = Template.parse("{instruction} m: {output_1} M: {output_2}", "plain")
FIRST = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
SECOND = "[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]"


def pairs(count: int) -> list[Pair]:
    """Of different lengths."""
    return [Pair(f"Question {n}?", " ".join(WORDS[: n % 7]), " ".join(WORDS[-1 - n % 9 :])) for n in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("judge") / "model", initializer_range=0.2)


def opened(folder: Path, **settings: object) -> LocalModel:
    return LocalModel.load(ModelConfig.model_validate({"path": str(folder), "dtype": "float32", **settings}))


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return opened(folder)


def oracle(folder: Path, asked: Sequence[Pair], template: Template) -> list[float]:
    """p(M) / (p(m) + p(M)), each pair by itself, by transformers."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = [tokenizer.encode(name, add_special_tokens=False)[0] for name in ("m", "M")]
    found: list[float] = []
    for pair in asked:
        ids = torch.tensor([Renderer(tokenizer).encode(template.fill(pair))])
        with torch.no_grad():
            first, second = model(ids).logits[0, -1].softmax(-1)[names].tolist()
        found.append(second / (first + second))
    return found


def preferences(verdicts: Sequence[Verdict]) -> list[float | None]:
    return [verdict.preference for verdict in verdicts]


@pytest.mark.parametrize("engine", ["auto", "generic"])
@pytest.mark.parametrize("save", [save_tiny_llama, save_tiny_qwen3])
def test_probabilities_are_the_models_own(tmp_path: Path, engine: str, save: Callable[..., Path]) -> None:
    folder = save(tmp_path / "m", initializer_range=0.2)
    judge = TokenJudge(replace(opened(folder, engine=engine), token_budget=1_500))
    asked = pairs(8)
    told: dict[int, Verdict] = {}
    verdicts = judge.judge(asked, lambda place, verdict: told.update({place: verdict}))
    wanted = oracle(folder, asked, open_template("weighted"))
    assert max(wanted) - min(wanted) > 0.02
    assert preferences(verdicts) == pytest.approx(wanted, abs=1e-4)
    assert [verdict.text for verdict in verdicts] == ["M" if share > 0.5 else "m" for share in wanted]
    assert told == dict(enumerate(verdicts))


def test_a_prompts_tokens_are_known_exactly(model: LocalModel) -> None:
    judge, asked = TokenJudge(model), pairs(5)
    verdicts = judge.judge(asked)
    assert judge.estimate(asked) == Cost(5, sum(verdict.prompt_tokens for verdict in verdicts), 0)
    assert verdicts[0].completion_tokens == 0


@pytest.mark.parametrize("kind", [TokenJudge, RankingJudge])
def test_a_pair_beyond_the_context_is_not_judged(model: LocalModel, kind: type[TokenJudge | RankingJudge]) -> None:
    long = Pair("Why?", "fox " * 2_000, "Jupiter")
    short = pairs(2)[1]
    judge = kind(model, PLAIN)
    assert judge.judge([long, short, long])[::2] == [TOO_LONG, TOO_LONG]
    assert judge.judge([long]) == [TOO_LONG]
    assert judge.judge([long, short])[1] == judge.judge([short])[0] != TOO_LONG
    assert judge.judge([]) == []


def test_a_model_that_needs_two_tokens_for_a_name_is_refused(model: LocalModel) -> None:
    class Spelling:
        tokenizer = type("T", (), {"encode": lambda self, name, add_special_tokens: [1, 2]})()

    with pytest.raises(JudgeError, match="writes 'm' with 2 tokens: take --judge-style ranked"):
        TokenJudge(replace(model, renderer=Spelling()))  # pyright: ignore[reportArgumentType]


def test_an_untrained_model_ranks_nothing(model: LocalModel) -> None:
    told: list[int] = []
    judge = RankingJudge(model, max_tokens=12)
    judge.at_once = 2
    asked = pairs(5)
    verdicts = judge.judge(asked, lambda place, verdict: told.append(place))
    assert preferences(verdicts) == [None] * 5
    assert any(verdict.text for verdict in verdicts)
    assert told == list(range(5))
    assert judge.estimate(asked) == Cost(5, sum(verdict.prompt_tokens for verdict in verdicts), 60)


def test_a_model_that_writes_a_ranking_is_read(folder: Path, tmp_path: Path) -> None:
    """Taught two pairs by heart."""
    tokenizer = load_tokenizer(folder)
    taught = [(pairs(2)[0], FIRST), (pairs(2)[1], SECOND)]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for pair, text in taught:
        prompt = list(Renderer(tokenizer).encode(PLAIN.fill(pair)))
        answer = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        rows.append((torch.tensor([prompt + answer]), torch.tensor([[-100] * len(prompt) + answer])))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        loss = torch.stack([model(input_ids=ids, labels=labels).loss for ids, labels in rows]).sum()
        if loss.item() < 0.01:
            break
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "taught")
    tokenizer.save_pretrained(tmp_path / "taught")
    judge = RankingJudge(opened(tmp_path / "taught"), PLAIN)
    verdicts = judge.judge([pair for pair, _ in taught])
    assert [(verdict.preference, verdict.text) for verdict in verdicts] == [(0.0, FIRST), (1.0, SECOND)]


# What is kept of a local judge's verdicts


def test_identity_is_the_models_content_and_not_its_place(folder: Path, tmp_path: Path) -> None:
    def identities(folder: Path, **settings: object) -> list[str | None]:
        model = opened(folder, **settings)
        return [TokenJudge(model).identity, TokenJudge(model, PLAIN).identity, RankingJudge(model).identity]

    here = identities(folder)
    assert None not in here
    assert len(set(here)) == 3
    assert identities(save_tiny_llama(tmp_path / "elsewhere", initializer_range=0.2)) == here
    assert not set(identities(save_tiny_llama(tmp_path / "other", seed=1, initializer_range=0.2))) & set(here)
    assert not set(identities(folder, template_kwargs={"enable_thinking": False})) & set(here)
    assert RankingJudge(opened(folder), max_tokens=50).identity != here[2]


def test_a_changed_weight_changes_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    copy = save_tiny_llama(tmp_path / "copy", initializer_range=0.2)
    assert fingerprint(copy) == fingerprint(folder)
    weights = load_file(copy / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy) != fingerprint(folder)


def test_a_story_told_anew_leaves_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    copy = save_tiny_llama(tmp_path / "copy", initializer_range=0.2)
    for finished in ("noon", "night"):
        (copy / "lineage.json").write_text(finished)
        (copy / "README.md").write_text(finished)
        assert fingerprint(copy) == fingerprint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_changed_file_changes_the_fingerprint(folder: Path, tmp_path: Path, name: str) -> None:
    copy = save_tiny_llama(tmp_path / "copy", initializer_range=0.2)
    with (copy / name).open("a") as file:
        file.write(" ")
    assert fingerprint(copy) != fingerprint(folder)


def test_an_adapters_fingerprint_has_its_bases(tmp_path: Path) -> None:
    base = save_tiny_llama(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    add_lora(model, LoraSettings(2, 4.0), 0)
    save_adapter(model, tmp_path / "adapter", str(base))
    before = fingerprint(tmp_path / "adapter")
    save_tiny_llama(base, seed=5)
    assert fingerprint(tmp_path / "adapter") != before


def test_nothing_is_judged_twice(model: LocalModel, tmp_path: Path) -> None:
    first = FrugalJudge(TokenJudge(model), VerdictCache(tmp_path / "c"))
    verdicts = first.judge(pairs(4))
    first.close()
    again = FrugalJudge(TokenJudge(model), VerdictCache(tmp_path / "c"), max_calls=0)
    assert again.judge(pairs(4)) == verdicts
    again.close()
