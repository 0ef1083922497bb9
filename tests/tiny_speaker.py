"""A tiny Llama that has learned to speak the natural-language game: it asks, answers and grades, all by rote.

Random models write nothing that a query reader or a grade reader accepts; this one does, most of the time.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as fn
from transformers import LlamaConfig, LlamaForCausalLM

from sparring.lm.load import save_model
from sparring.rendering import Renderer
from sparring.roles import Role
from sparring.text import TEXT
from tiny_models import chat_tokenizer, sizes

SAMPLING = None
SUBJECTS = ("planets", "numbers", "the dog", "the fox", "input text", "a map", "an essay", "the title")
VERBS = ("Explain", "Write about", "Name", "Describe", "Sum up")
ANSWERS = ("It is large.", "It is clear and useful.", "Jupiter is the largest.", "A text on maps.", "It is 5.")


def _exchanges(draw: random.Random, count: int) -> list[tuple[str, str]]:
    """(prompt, reply) of the three roles; a third of the grades contradict themselves."""
    pairs: list[tuple[str, str]] = []
    fill = {name: Role(name, getattr(TEXT, name), _params()) for name in ("challenger", "solver", "grader")}
    ask = str(fill["challenger"].prompt(task="", template="").messages[-1]["content"])
    for index in range(count):
        query = f"{draw.choice(VERBS)} {draw.choice(SUBJECTS)}."
        answer = draw.choice(ANSWERS)
        if index % 3 == 0:
            pairs.append((ask, f"<input>{query}</input>"))
        elif index % 3 == 1:
            pairs.append((str(fill["solver"].prompt(query=query).messages[-1]["content"]), answer))
        else:
            # Long answers are worth more: there is something to tell apart.
            points = [1] * 4 + [int(len(answer) > k) for k in (8, 16, 22)]
            shown = " + ".join(map(str, points))
            total = sum(points)
            reply = f"Fine. <calculation>{shown} = {total}</calculation> <score>{total}</score>"
            prompt = fill["grader"].prompt(query=query, answer=answer)
            pairs.append((str(prompt.messages[-1]["content"]), reply))
    return pairs


def _params():
    from sparring.lm.base import SamplingParams

    return SamplingParams(64)


@cache
def _trained(steps: int) -> LlamaForCausalLM:
    tokenizer = chat_tokenizer("llama3")
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes(
            tokenizer,
            hidden_size=64,
            intermediate_size=128,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    )
    model = LlamaForCausalLM(config).train()
    renderer = Renderer(tokenizer)
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        rows, masks = [], []
        for prompt, reply in _exchanges(draw, 12):
            ids = renderer.encode([{"role": "user", "content": prompt}])
            out = [*tokenizer(reply, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            rows.append([*ids, *out])
            masks.append([0] * len(ids) + [1] * len(out))
        longest = max(map(len, rows))
        ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask_BT = torch.tensor([mask + [0] * (longest - len(mask)) for mask in masks]).bool()
        logits_BTV = model(input_ids=ids_BT[:, :-1]).logits
        loss = fn.cross_entropy(logits_BTV[mask_BT[:, 1:]], ids_BT[:, 1:][mask_BT[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def save_tiny_speaker(folder: Path, steps: int = 150) -> Path:
    """The speaker with its tokenizer, in a folder."""
    save_model(_trained(steps), chat_tokenizer("llama3"), folder)
    return folder
