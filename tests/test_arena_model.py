"""The shipped model: its hash, its tokenizer and chat template, and what it can do in each role."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparring.arena import model_path
from sparring.arena.language import (
    TASKS,
    answer,
    challenger_prompt,
    grader_prompt,
    parse_query,
    render_query,
    solver_prompt,
)
from sparring.arena.measure import complete
from sparring.arena.rubric import render_grade, score
from sparring.arena.split import DEV_SEED, test_set
from sparring.arena.tokenizer import SPECIAL, VOCABULARY, build_tokenizer
from sparring.arena.verifier import verify

RECORD: dict[str, Any] = json.loads((model_path() / "arena.json").read_text())
TOKENIZER = build_tokenizer()
WORDS = [token for token in VOCABULARY if token not in SPECIAL]


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(model_path())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(model_path())


def _agrees(right: int, n: int, recorded: float) -> bool:
    """Whether a count fits a recorded share; one false alarm in 10,000 tests."""
    share = min(max(recorded, 0.5 / n), 1 - 0.5 / n)
    return bool(binomtest(right, n, share).pvalue > 1e-4)


def test_files_are_those_recorded_and_small() -> None:
    weights = (model_path() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == RECORD["sha256"]
    assert len(weights) <= 4_000_000
    assert sum(file.stat().st_size for file in model_path().iterdir()) <= 8_000_000


@given(st.lists(st.sampled_from(WORDS)))
def test_the_tokenizer_loses_nothing(tokens: list[str]) -> None:
    text = "".join(tokens)
    ids = TOKENIZER.encode(text)
    assert ids == TOKENIZER.convert_tokens_to_ids(tokens)
    assert TOKENIZER.decode(ids) == text


def test_the_shipped_tokenizer_is_the_built_one(tokenizer: Any) -> None:
    text = "Grader:chain:Sorta|SbcaRoab=oab{}Sort>sort:{}"
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert tokenizer.unk_token_id in tokenizer.encode("Z")


@pytest.mark.parametrize(
    "content",
    [
        *(challenger_prompt(*pair) for pair in TASKS),
        solver_prompt("skip:abc"),
        grader_prompt("flip:bead", "daeb=ebfc"),
    ],
)
def test_the_chat_template_renders_every_role(tokenizer: Any, content: str) -> None:
    message = {"role": "user", "content": content}
    ids = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == content + "<go>"
    assert tokenizer.unk_token_id not in ids
    whole = [message, {"role": "assistant", "content": "abc"}]
    assert tokenizer.apply_chat_template(whole, tokenize=False) == content + "<go>abc<eos>"
    masked = tokenizer.apply_chat_template(whole, return_dict=True, return_assistant_tokens_mask=True)
    assert sum(masked["assistant_masks"]) == len("abc") + 1


def test_the_model_stops_and_pads_as_its_tokenizer_does(model: Any, tokenizer: Any) -> None:
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.num_parameters() == RECORD["parameters"]


@pytest.mark.parametrize("split", ["easy", "hard"])
def test_solver_is_as_good_as_recorded(model: Any, tokenizer: Any, split: Any) -> None:
    queries = test_set(split, DEV_SEED, 96)
    prompts = [solver_prompt(render_query(query)) for query in queries]
    written = complete(model, tokenizer, prompts, seed=None)
    right = sum(verify(render_query(query), given) for query, (given,) in zip(queries, written, strict=True))
    assert _agrees(int(right), len(queries), RECORD[split]["greedy"])


def test_sampling_finds_what_greedy_misses(model: Any, tokenizer: Any) -> None:
    queries = test_set("hard", DEV_SEED, 40)
    written = complete(model, tokenizer, [solver_prompt(render_query(q)) for q in queries], 16, seed=5)
    solved = sum(
        any(verify(render_query(query), given) for given in row) for query, row in zip(queries, written, strict=True)
    )
    assert _agrees(solved, len(queries), RECORD["hard"]["pass@16"])
    assert RECORD["hard"]["pass@16"] > RECORD["hard"]["greedy"] + 0.2


def test_challenger_and_grader_are_as_good_as_recorded(model: Any, tokenizer: Any) -> None:
    texts = [
        text
        for row in complete(model, tokenizer, [challenger_prompt(*pair) for pair in TASKS], 12, seed=6)
        for text in row
    ]
    valid = [query for query in map(parse_query, texts) if query is not None]
    assert _agrees(len(valid), len(texts), RECORD["challenger"]["valid"])
    pairs = [(render_query(query), answer(query)) for query in valid]
    grades = complete(model, tokenizer, [grader_prompt(*pair) for pair in pairs], seed=None)
    exact = sum(grade == render_grade(score(*pair)) for (grade,), pair in zip(grades, pairs, strict=True))
    assert exact >= 0.85 * len(pairs)
    assert RECORD["grader"]["exact"] > 0.9


@pytest.mark.slow
def test_pretraining_repeats_itself(tmp_path: Path) -> None:
    records = []
    for name in ("a", "b"):
        command = [
            sys.executable,
            "-m",
            "sparring.arena.pretrain",
            "--out",
            str(tmp_path / name),
            "--seed",
            "7",
        ]
        subprocess.run([*command, "--steps", "3", "--tests", "16"], check=True, capture_output=True)
        records.append(json.loads((tmp_path / name / "arena.json").read_text()))
    assert records[0]["sha256"] == records[1]["sha256"]
    assert {"easy", "hard", "challenger", "grader"} <= records[0].keys()
