"""What a base model can do in each role: the figures that `arena.json` records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparring.arena.language import (
    KIND,
    TASKS,
    Query,
    Split,
    challenger_prompt,
    grader_prompt,
    parse_query,
    render_query,
    solver_prompt,
)
from sparring.arena.rubric import parse_grade, render_grade, score
from sparring.arena.split import DEV_SEED, test_set
from sparring.arena.verifier import verify

MAX_NEW_TOKENS = 48
"""Enough for the longest answer: a chain at the highest level takes 45."""
ROWS = 512


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contents: Sequence[str],
    n: int = 1,
    *,
    seed: int | None,
) -> list[list[str]]:
    """n completions of every message: sampled at temperature 1, or greedy where the seed is None."""
    if seed is not None:
        torch.manual_seed(seed)
    texts = [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )
        for content in contents
    ]
    order = sorted(range(len(texts)), key=lambda i: texts[i])  # one family's rows end at about one time
    written: list[list[str]] = [[] for _ in texts]
    for at in range(0, len(order), max(ROWS // n, 1)):
        rows = order[at : at + max(ROWS // n, 1)]
        batch = tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True, return_token_type_ids=False)
        sampling: dict[str, Any] = {"do_sample": True, "top_k": 0, "num_return_sequences": n}
        ids_BT = cast(Any, model).generate(
            **batch, max_new_tokens=MAX_NEW_TOKENS, **(sampling if seed is not None else {"do_sample": False})
        )
        decoded = tokenizer.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for j, i in enumerate(rows):
            written[i] = list(decoded[j * n : (j + 1) * n])
    return written


def _mean_by(keys: Iterable[Any], values: Iterable[float]) -> dict[str, float]:
    groups: dict[str, list[float]] = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        groups[str(key)].append(value)
    return {key: round(float(np.mean(groups[key])), 3) for key in sorted(groups, key=lambda k: (len(k), k))}


def solver_measures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    *,
    seed: int,
    n: int,
    n_sampled: int,
) -> dict[str, Any]:
    """Greedy accuracy on n held-out queries; accuracy and pass@16 at temperature 1 on the first n_sampled."""
    queries = test_set(split, seed, n)
    prompts = [solver_prompt(render_query(query)) for query in queries]
    greedy = [
        verify(render_query(query), given)
        for query, (given,) in zip(queries, complete(model, tokenizer, prompts, seed=None), strict=True)
    ]
    some = queries[:n_sampled]
    right_NG = np.array(
        [
            [verify(render_query(query), given) for given in answers]
            for query, answers in zip(some, complete(model, tokenizer, prompts[:n_sampled], 16, seed=seed), strict=True)
        ]
    ).reshape(len(some), 16)
    cuts: dict[str, Callable[[Query], Any]] = {
        "kind": lambda query: KIND[query.family],
        "family": lambda query: query.family,
        "level": lambda query: query.level,
        "family_level": lambda query: f"{query.family} {query.level}",
    }
    return {
        "n": n,
        "n_sampled": n_sampled,
        "greedy": round(float(np.mean(greedy)), 4),
        "sampled": round(float(right_NG.mean()), 4),
        "pass@16": round(float(right_NG.max(1).mean()), 4),
        **{
            f"by_{name}": {
                "greedy": _mean_by(map(cut, queries), greedy),
                "sampled": _mean_by(map(cut, some), right_NG.mean(1)),
                "pass@16": _mean_by(map(cut, some), right_NG.max(1)),
            }
            for name, cut in cuts.items()
        },
    }


def role_measures(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int, n: int) -> dict[str, Any]:
    """The Challenger at temperature 1, n queries a task, and the greedy grader on sampled answers to them."""
    asked = complete(model, tokenizer, [challenger_prompt(*pair) for pair in TASKS], n, seed=seed)
    texts = [text for row in asked for text in row]
    parsed = [parse_query(text) for text in texts]
    valid = [query for query in parsed if query is not None]
    answers = [row[0] for row in complete(model, tokenizer, list(map(solver_prompt, texts)), seed=seed)]
    prompts = [grader_prompt(text, given) for text, given in zip(texts, answers, strict=True)]
    grades = [row[0] for row in complete(model, tokenizer, prompts, seed=None)]
    truth = [score(text, given) for text, given in zip(texts, answers, strict=True)]
    agreed = [
        np.mean([a == b for a, b in zip(grade[: len(points)].ljust(len(points)), map(str, points), strict=True)])
        for grade, points in zip(grades, truth, strict=True)
    ]
    exact = [grade == render_grade(points) for grade, points in zip(grades, truth, strict=True)]
    return {
        "challenger": {
            "n": len(texts),
            "valid": round(len(valid) / len(texts), 4),
            "valid_by_task": {
                task or "own": round(float(np.mean([parse_query(text) is not None for text in row])), 3)
                for (task, _), row in zip(TASKS, asked, strict=True)
            },
            "distinct": round(len(set(texts)) / len(texts), 4),
            "mean_level": round(float(np.mean([query.level for query in valid])), 3),
            "own_choice_families": len({query.family for query in map(parse_query, asked[-1]) if query}),
        },
        "grader": {
            "n": len(grades),
            "exact": round(float(np.mean(exact)), 4),
            "points": round(float(np.mean(agreed)), 4),
            "unreadable": round(float(np.mean([parse_grade(grade) is None for grade in grades])), 4),
        },
    }


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int = 500, n_sampled: int = 250
) -> dict[str, Any]:
    """All of it, on the test sets of DEV_SEED."""
    model.eval()
    with torch.inference_mode():
        return {
            "easy": solver_measures(model, tokenizer, "easy", seed=DEV_SEED, n=n, n_sampled=n_sampled),
            "hard": solver_measures(model, tokenizer, "hard", seed=DEV_SEED, n=n, n_sampled=n_sampled),
            **role_measures(model, tokenizer, seed=DEV_SEED, n=50),
        }
