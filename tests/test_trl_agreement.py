"""Loss and gradient of the GRPO recipe against TRL's GRPOTrainer, on the completions that TRL sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from scripted import STOP, VOCAB, Recorder, nudged, relative_error, tiny_llama
from sparring.batching import to_examples
from sparring.build import AGGREGATIONS, KL_TERMS, SCALES
from sparring.data import PromptSet, Row
from sparring.games.dataset import Dataset
from sparring.learner import Learner, Update
from sparring.lm.base import SamplingParams
from sparring.lm.load import open_lm
from sparring.rendering import Renderer
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.sampling.seeds import generator
from sparring.types import ModelName, Prompt, Turn

trl = pytest.importorskip("trl", reason="TRL is the oracle here: pip install 'sparring[oracle]'")
datasets = pytest.importorskip("datasets", reason="TRL reads its prompts from datasets")

N, G, LENGTH, BETA = 3, 4, 12, 0.04
QUERIES = ("w5 w6 w7", "w8 w9 w10 w11 w12 w13", "w20")
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w3 {% endif %}"


def reward_by_ids(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], bonus: Sequence[float],
                  **kwargs: Any) -> list[float]:  # fmt: skip
    """TRL's signature; a reward with spread: how many even ids, and the row's own column."""
    return [sum(i % 2 == 0 for i in ids) / 7 + b * len(ids) for ids, b in zip(completion_ids, bonus, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's folder (TRL loads it from there) with its tokenizer."""
    path = tmp_path_factory.mktemp("reference")
    words = {"<pad>": 0, "<bos>": 1, "<eos>": STOP} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=TEMPLATE,
    )
    fast.save_pretrained(path)
    model = tiny_llama(0, kv_heads=2)
    model.generation_config.eos_token_id = [STOP, *range(5, 16)]  # about one token in nine ends a completion
    model.save_pretrained(path)
    return path


def make_trainer(folder: Path, output: Path, loss_type: str, scale_rewards: str, temperature: float) -> Any:
    rows = [{"prompt": [{"role": "user", "content": q}], "bonus": 0.1 * i} for i, q in enumerate(QUERIES)]
    args = trl.GRPOConfig(
        output_dir=str(output),
        per_device_train_batch_size=N * G,
        num_generations=G,
        max_completion_length=LENGTH,
        beta=BETA,
        loss_type=loss_type,
        scale_rewards=scale_rewards,
        temperature=temperature,
        top_k=0,
        use_bias_correction_kl=False,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        seed=0,
    )
    model = nudged(LlamaForCausalLM.from_pretrained(folder), 0.02)
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=[reward_by_ids],
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
    )


class Replay:
    """A sampler that says again what TRL sampled, prompt by prompt."""

    step, seed = 1, 0

    def __init__(
        self, renderer: Renderer, prompts: Sequence[tuple[int, ...]], completions: list[tuple[int, ...]]
    ) -> None:
        self._renderer = renderer
        self._said: dict[tuple[int, ...], Iterator[tuple[int, ...]]] = {
            prompt: iter([c for p, c in zip(prompts, completions, strict=True) if p == prompt]) for prompt in prompts
        }

    def sample(self, role: Role, prompts: Sequence[Prompt], n: int = 1, model: ModelName = "policy") -> list[Turn]:
        return [self._turn(role, prompt) for prompt in prompts for _ in range(n)]

    def rng(self, purpose: str) -> np.random.Generator:
        return generator(self.seed, self.step, purpose)

    def _turn(self, role: Role, prompt: Prompt) -> Turn:
        prompt_ids = self._renderer.encode(prompt.messages)
        ids = next(self._said[prompt_ids])
        text = self._renderer.decode(ids)
        return Turn(role, prompt, prompt_ids, ids, np.zeros(len(ids), np.float32), text, "stop", info=prompt.info)


def unpadded(ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(ids_BT, mask_BT, strict=True)]


@pytest.mark.parametrize("scale", ["none", "group"])
@pytest.mark.parametrize(("loss_type", "temperature"), [("grpo", 1.0), ("dapo", 1.0), ("dr_grpo", 1.0), ("dapo", 0.7)])
@pytest.mark.filterwarnings("ignore")  # the warnings are the oracle's own
def test_loss_and_gradient_are_trls(
    folder: Path, tmp_path: Path, loss_type: str, scale: str, temperature: float
) -> None:
    trainer = make_trainer(folder, tmp_path, loss_type, scale, temperature)
    trainer.model.train()
    inputs = [dict(row) for row in trainer.train_dataset for _ in range(G)]
    batch = trainer._generate_and_score_completions(inputs)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    want = [parameter.grad for parameter in trainer.model.parameters()]
    prompts = unpadded(batch["prompt_ids"], batch["prompt_mask"])
    completions = unpadded(batch["completion_ids"], batch["completion_mask"])

    renderer = Renderer(PreTrainedTokenizerFast.from_pretrained(folder))
    role = Role("solver", "{{ query }}", SamplingParams(LENGTH, temperature))
    rows = [Row(q, None, {"bonus": 0.1 * i}) for i, q in enumerate(QUERIES)]
    baseline = SCALES["standardised" if scale == "group" else "centred"]
    game = Dataset(role, PromptSet(rows, "queries"), Reward(reward_by_ids), N, G, baseline)
    turns = game.play(Replay(renderer, prompts, completions))
    advantages = game.baseline(turns, game.payoffs(turns))
    model = nudged(LlamaForCausalLM.from_pretrained(folder), 0.02)
    reference = open_lm(LlamaForCausalLM.from_pretrained(folder), torch.float32, trainable=False)
    recorder = Recorder(model.parameters())
    settings = Update(BETA, KL_TERMS["k3"], temperature, max_grad_norm=None, token_budget=70)
    learner = Learner(model, open_lm(model, torch.float32, trainable=True), reference, recorder, settings)
    figures = learner.update(to_examples(turns, advantages, AGGREGATIONS[loss_type]), 1e-3)

    assert len({len(ids) for ids in completions}) > 1, "lengths must differ to tell the normalisers apart"
    by_ids = {turn.prompt_ids + turn.completion_ids: a for turn, a in advantages.items()}
    ours = [by_ids[p + c] for p, c in zip(prompts, completions, strict=True)]
    np.testing.assert_allclose(ours, batch["advantages"].numpy(), rtol=1e-5, atol=1e-5)
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    assert relative_error(recorder.steps[0], want) < 1e-5
