"""Pretrain the picture world's base model from nothing: one recipe, one core, some minutes.

    python -m sparring.pictures.pretrain --out DIR --seed 0 --threads 1

A Qwen2.5-VL of 760 thousand parameters first learns both roles from careful examples, then is cold-started on sloppy
ones (`corpus`). Plain next-token prediction on the responses, fp32. The same seed gives the same weights on the same
machine and thread count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from sparring.pictures.corpus import CAREFUL, SLOPPY, Habits, draw_look, draw_reading
from sparring.pictures.measure import measure
from sparring.pictures.network import build_image_processor, build_model, expand, grids, patches
from sparring.pictures.readme import readme
from sparring.pictures.tokenizer import END, build_tokenizer
from sparring.pictures.world import DEV_SEED, TEST_SEED

LOOKS, READINGS = 32, 24
"""Examples of each role in a step."""
CAREFUL_STEPS, SLOPPY_STEPS = 1400, 300
MATRIX_RATE, OUTER_RATE, SLOPPY_RATE = 6e-3, 3e-3, 6e-4
WARM_UP_STEPS = 50
TESTS = 1000
REPLY_WEIGHT = 4.0
"""Of each token after the description: a reply has far fewer tokens than a description, and matters as much."""


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right. weight_BT is 0 where nothing is learnt; pixel_values is None for readers."""

    ids_BT: torch.Tensor
    weight_BT: torch.Tensor
    pixel_values: torch.Tensor | None


class Encoder:
    """Examples to batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._perceiver = lru_cache(maxsize=64)(lambda question: self._prompt([{"type": "image"}, _text(question)]))

    def _prompt(self, content: list[dict[str, str]]) -> list[int]:
        message = [{"role": "user", "content": content}]
        text = str(self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
        return self.tokenizer.encode(expand(text))

    def _batch(self, prompts: list[list[int]], responses: list[str], pixels: torch.Tensor | None) -> Batch:
        (described,) = self.tokenizer.encode("</description>")
        encoded = self.tokenizer.backend_tokenizer.encode_batch_fast([text + END for text in responses])
        rows = list(zip(prompts, (response.ids for response in encoded), strict=True))
        longest = max(len(prompt) + len(response) for prompt, response in rows)
        ids_BT = torch.full((len(rows), longest), cast(int, self.tokenizer.pad_token_id))
        weight_BT = torch.zeros(len(rows), longest)
        for i, (prompt, response) in enumerate(rows):
            start, end = len(prompt), len(prompt) + len(response)
            ids_BT[i, :end] = torch.tensor(prompt + response)
            weight_BT[i, start:end] = REPLY_WEIGHT
            if described in response:
                weight_BT[i, start : start + response.index(described) + 1] = 1.0
        return Batch(ids_BT, weight_BT, pixels)

    def looks(self, habits: Habits, rng: np.random.Generator) -> Batch:
        """A step's examples of the perceiver."""
        drawn = [draw_look(habits, rng) for _ in range(LOOKS)]
        pixels = patches(np.stack([look.pixels for look in drawn]))
        return self._batch(
            [self._perceiver(look.question) for look in drawn], [look.response for look in drawn], pixels
        )

    def readings(self, rng: np.random.Generator) -> Batch:
        """A step's examples of the reader."""
        drawn = [draw_reading(rng) for _ in range(READINGS)]
        prompts = [self._prompt([_text(one.prompt)]) for one in drawn]
        return self._batch(prompts, [one.reply for one in drawn], None)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def weighted_loss(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """The weighted mean over the learnt tokens, in nats. Padding is on the right, so that causality is mask enough."""
    ids_BT = batch.ids_BT[:, :-1]
    if batch.pixel_values is None:
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    else:
        grid = grids(len(ids_BT))
        image_T = (ids_BT[:1] == model.config.image_token_id).int()
        # Every prompt begins with its picture: one row's positions are all rows'.
        position_3T, _ = cast(Any, model.model).get_rope_index(ids_BT[:1], image_T, grid[:1])
        logits_BTV = model(
            input_ids=ids_BT,
            position_ids=position_3T.expand(3, len(ids_BT), -1),
            pixel_values=batch.pixel_values,
            image_grid_thw=grid,
            use_cache=False,
        ).logits
    loss_BT = cross_entropy(logits_BTV.transpose(1, 2), batch.ids_BT[:, 1:], reduction="none")
    weight_BT = batch.weight_BT[:, 1:]
    return (loss_BT * weight_BT).sum() / weight_BT.sum()


Optimizers = list[torch.optim.Optimizer]


def careful_optimizers(model: Qwen2_5_VLForConditionalGeneration) -> Optimizers:
    """Muon for the matrices inside the layers, AdamW for embeddings, patches, biases and norms."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "head" not in name]
    chosen = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inner, lr=MATRIX_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=OUTER_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def sloppy_optimizers(model: Qwen2_5_VLForConditionalGeneration) -> Optimizers:
    """AdamW for all: habits change, abilities stay."""
    return [torch.optim.AdamW(model.parameters(), lr=SLOPPY_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


def batches(encoder: Encoder, habits: Habits, seed: np.random.SeedSequence) -> Iterator[tuple[Batch, Batch]]:
    """Steps' batches without end: the perceiver's and the reader's."""
    rng = np.random.default_rng(seed)
    while True:
        yield encoder.looks(habits, rng), encoder.readings(rng)


def train(
    model: Qwen2_5_VLForConditionalGeneration,
    stream: Iterator[tuple[Batch, Batch]],
    optimizers: Optimizers,
    steps: int,
    log: Callable[[str], object] = sys.stderr.write,
) -> float:
    """A linear warm-up, then a cosine to nothing; both roles weigh the same. Logs the losses now and then.

    Returns:
        CPU seconds spent.
    """
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / WARM_UP_STEPS, 1) * 0.5 * (1 + math.cos(math.pi * step / steps)),
        )
        for optimizer in optimizers
    ]
    start, losses = time.process_time(), []
    for step, (looks, readings) in enumerate(islice(stream, steps), 1):
        seen, read = weighted_loss(model, looks), weighted_loss(model, readings)
        (seen + read).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append((seen.item(), read.item()))
        if step % 50 == 0 or step == steps:
            seen_loss, read_loss = np.mean(losses[-50:], axis=0)
            seconds = time.process_time() - start
            log(f"step {step}/{steps}  perceiver {seen_loss:.4f}  reader {read_loss:.4f}  {seconds:.0f} CPU-s\n")
    return time.process_time() - start


def pretrain(
    out: Path,
    seed: int,
    steps: tuple[int, int] = (CAREFUL_STEPS, SLOPPY_STEPS),
    tests: int = TESTS,
) -> dict[str, Any]:
    """Train, save model, tokenizer and image processor to `out`, measure, and write `pictures.json` and a README."""
    tokenizer, processor = build_tokenizer(), build_image_processor()
    model, encoder = build_model(tokenizer, seed), Encoder(tokenizer)
    careful, sloppy = np.random.SeedSequence(seed).spawn(2)
    spent = train(model, batches(encoder, CAREFUL, careful), careful_optimizers(model), steps[0])
    before = measure(model, tokenizer, processor, n=tests)["greedy"]
    spent += train(model, batches(encoder, SLOPPY, sloppy), sloppy_optimizers(model), steps[1])
    for part in (model, tokenizer, processor):
        part.save_pretrained(out)
    record = {
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "seed": seed,
        "steps": list(steps),
        "threads": torch.get_num_threads(),
        "cpu_seconds": round(spent),
        "parameters": model.num_parameters(),
        "before_cold_start": before,
        "tests": [measure(model, tokenizer, processor, seed=test, n=tests) for test in (DEV_SEED, TEST_SEED)],
    }
    (out / "pictures.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "README.md").write_text(readme(record))
    return record


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pretrain the picture world's base model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and all that belongs to it")
    parser.add_argument("--seed", type=int, default=0, help="of weights and examples")
    parser.add_argument("--threads", type=int, default=1, help="torch's; they change the last bits of the weights")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=(CAREFUL_STEPS, SLOPPY_STEPS),
        metavar=("CAREFUL", "SLOPPY"),
        help=f"of {LOOKS} + {READINGS} examples each",
    )
    parser.add_argument("--tests", type=int, default=TESTS, help="held-out items to measure on")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = pretrain(options.out, options.seed, tuple(options.steps), options.tests)
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
