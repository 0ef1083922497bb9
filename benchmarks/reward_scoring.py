"""Reward scoring: PreferenceModel beside what TRL's GRPOTrainer does with a reward model, on the same conversations.

    python benchmarks/reward_scoring.py --json reward_scoring.json

8 queries of 26 to 65 tokens, 8 answers each, their lengths geometric and cut at the longest allowed; a random Llama
sequence classifier with one label. TRL's side is `GRPOTrainer._calculate_rewards` itself, of a trainer with that reward
model: every text padded to the longest of the batch, one forward over all. Both sides take turns in processes of their
own (see sides.py), one thread each. Needs TRL: pip install 'sparring[oracle]'.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from common import SIZES, STOP_SHARE, VOCAB, Clock, Size
from sides import Turn, alternate, ratios, summary
from sparring.rewards.preference import PreferenceModel
from sparring.types import Message

WORDS = ("<pad>", "<bos>", "<eot>", "<user>", "<assistant>")
TEMPLATE = "<bos> {% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <eot> {% endfor %}"


@dataclass(frozen=True)
class Case:
    """One comparison: the classifier's size and precision, how many conversations, the longest answer in tokens."""

    size: str
    dtype: str
    tokens: int
    queries: int = 8
    answers: int = 8

    @property
    def name(self) -> str:
        """Short, for tables."""
        return f"{self.size}-{self.tokens}-{self.dtype}"


def make_conversations(case: Case) -> list[list[Message]]:
    """A query and an answer each, query by query, the same for every run."""
    rng = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(len(WORDS), VOCAB, length))

    conversations: list[list[Message]] = []
    for _ in range(case.queries):
        query = text(int(rng.integers(26, 66)))
        for length in np.minimum(rng.geometric(STOP_SHARE, case.answers), case.tokens):
            answer = text(int(length))
            conversations.append([{"role": "user", "content": query}, {"role": "assistant", "content": answer}])
    return conversations


def save_reward_model(size: Size, folder: Path) -> None:
    """A random fp32 classifier and a word-level tokenizer whose chat template marks roles and ends."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(_config(size.hidden, size.layers))
    with torch.no_grad():
        model.score.weight.mul_(10)  # scores a few units apart, as a reward model's are
    model.save_pretrained(folder)
    words = {word: i for i, word in enumerate(WORDS)} | {f"w{i}": i for i in range(len(WORDS), VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eot>", chat_template=TEMPLATE
    ).save_pretrained(folder)


def _config(hidden: int, layers: int) -> LlamaConfig:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype="float32",
    )
    config.num_labels = 1
    return config


class Forwards:
    """A model's forward passes, timed as a phase, their padded tokens counted."""

    def __init__(self, model: Any, clock: Clock) -> None:
        self.clock, self.tokens = clock, 0
        self._forward = model.forward
        model.forward = self

    def __call__(self, **inputs: Any) -> Any:
        self.tokens += inputs["input_ids"].numel()
        with self.clock.phase("forward"):
            return self._forward(**inputs)

    def step(self, score: Any) -> dict[str, Any]:
        """One call of `score`: its scores, the seconds by phase, the padded tokens."""
        self.tokens = 0
        start = self.clock.now()
        scores = score()
        seconds = self.clock.take(self.clock.now() - start, "encode")
        return {"scores": scores, "padded_tokens": self.tokens, "seconds": seconds}


def sparring_side(turn: Turn, case: Case, folder: Path, token_budget: int) -> None:
    """PreferenceModel, as a run calls it."""
    reward = PreferenceModel.load(folder, dtype=getattr(torch, case.dtype), token_budget=token_budget)
    forwards = Forwards(reward._model, Clock(cpu=True))
    conversations = make_conversations(case)
    queries, answers = ([c[i]["content"] for c in conversations] for i in (0, 1))
    while turn.begin():
        turn.end(forwards.step(lambda: reward(queries, answers, conversations)))


def trl_side(turn: Turn, case: Case, folder: Path, token_budget: int) -> None:
    """The rewards of a GRPOTrainer that has the reward model; its policy is a stub."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, case.dtype))
    forwards = Forwards(model, Clock(cpu=True))
    conversations = make_conversations(case)
    trainer = GRPOTrainer(
        model=LlamaForCausalLM(_config(32, 1)),
        reward_funcs=[model],
        reward_processing_classes=[tokenizer],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=len(conversations),
            num_generations=case.answers,
            bf16=False,
            use_cpu=True,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": c[:1]} for c in conversations]),
        processing_class=tokenizer,
    )
    prompts, completions = [c[:1] for c in conversations], [c[1:] for c in conversations]
    ids = [tokenizer.encode(c[0]["content"]) for c in completions]
    inputs = [{"prompt": prompt} for prompt in prompts]

    def score() -> list[float]:
        return trainer._calculate_rewards(inputs, prompts, completions, ids)[:, 0].tolist()

    while turn.begin():
        turn.end(forwards.step(score))


def compare(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One case: medians of both sides, ratios, how far the scores are apart."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_reward_model(SIZES[case.size], folder)
        runs = alternate(
            {"trl": trl_side, "sparring": sparring_side}, (case, folder, args.token_budget), steps=args.steps
        )
    tokens = sum(len(m["content"].split()) + 2 for c in make_conversations(case) for m in c)
    row: dict[str, Any] = {"case": case.name, **asdict(case), "token_budget": args.token_budget, "real_tokens": tokens}
    for name, steps in runs.items():
        row[name] = summary(steps)
        row[name]["padded_tokens"] = steps[0]["padded_tokens"]
        row[name]["tokens_per_cpu_second"] = tokens / row[name]["cpu"]
    row["ratio"] = ratios(row["trl"], row["sparring"])
    scores = np.array([runs[name][0]["scores"] for name in ("trl", "sparring")])
    row["scores"] = {"spread": float(scores[0].std()), "largest_gap": float(np.abs(scores[0] - scores[1]).max())}
    return row


def print_row(row: dict[str, Any]) -> None:
    """A few lines for people."""
    print(
        f"\n{row['case']}: TRL / Sparring {row['ratio']['cpu']:.2f} by CPU time, {row['ratio']['wall']:.2f} by the wall"
    )
    print(f"  {row['real_tokens']} tokens; scores (spread {row['scores']['spread']:.2f}) "
          f"at most {row['scores']['largest_gap']:.1e} apart")  # fmt: skip
    for name in ("trl", "sparring"):
        side = row[name]
        print(
            f"  {name:9} {side['cpu']:7.3f} s CPU ({side['seconds']['forward']:.3f} forward), "
            f"{side['wall']:7.3f} s wall, {side['padded_tokens']:6d} padded, "
            f"{side['tokens_per_cpu_second']:8.0f} tokens/s, "
            f"peak {side['peak_memory'] / 2**20:5.0f} MiB ({side['held_memory'] / 2**20:.0f} before the first step)",
            flush=True,
        )


def main() -> None:
    """Compare, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["s", "m"])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[256, 1024], help="longest answer")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a side")
    parser.add_argument("--token-budget", type=int, default=2_048, help="game.reward.token_budget")
    parser.add_argument("--quick", action="store_true", help="one tiny case: that it runs, not what it takes")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.dtypes, args.tokens, args.steps, args.token_budget = ["xs"], ["float32"], [48], 1, 512
    print(f"TRL {version('trl')}, torch {version('torch')}, transformers {version('transformers')}")
    rows = []
    cases = [Case(size, dtype, tokens) for size in args.sizes for tokens in args.tokens for dtype in args.dtypes]
    for case in cases:
        rows.append(compare(case, args))
        print_row(rows[-1])
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
