"""Answers are kept as they come: an interruption loses none, and what they depend on names their file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.config import resolve
from sparring.data import PromptSet, Row
from sparring.evaluation import answers as module
from sparring.evaluation.alpaca_eval.data import read_outputs
from sparring.evaluation.answers import Answerer, Question, answerer, answering, chat_text, questions_from
from sparring.recipes import recipe
from sparring.settings import RunConfig
from sparring.types import Turn
from tiny_models import save_tiny_llama

QUESTIONS = [Question(f"What is {number} and {number}?", "odd" if number % 2 else "even") for number in range(5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=256)


def config(model: Path, *overrides: str, temperature: float = 1.0, tokens: int = 6, seed: int = 0) -> RunConfig:
    given = resolve(recipe("lsp", "paper"), None, (f"model.path={model}", "model.dtype=float32", *overrides))
    return answering(given, temperature=temperature, tokens=tokens, seed=seed)


def quiet(_: str) -> None:
    pass


def made(asked: RunConfig, folder: Path, say: Callable[[str], None] = quiet, n: int = 1) -> Answerer:
    whole = answerer(asked, QUESTIONS, folder, say)
    return whole if n == 1 else Answerer(asked, whole._role, whole._prompts, folder=folder, say=say, n=n)


def test_a_file_of_alpaca_evals_form(model: Path, tmp_path: Path) -> None:
    kept = made(config(model), tmp_path / "new")
    texts = kept.all()
    rows = json.loads(kept.file.read_text())
    assert [list(row) for row in rows] == [["dataset", "instruction", "output", "generator", "finish"]] * 5
    assert [(row["instruction"], row["dataset"]) for row in rows] == [(q.text, q.subset) for q in QUESTIONS]
    assert [[row["output"]] for row in rows] == texts
    assert {row["generator"] for row in rows} == {str(model)}
    assert {row["finish"] for row in rows} <= {"stop", "length"}
    assert len({row["output"] for row in rows}) == 5
    assert [row.output for row in read_outputs(kept.file)] == [text for (text,) in texts]


@pytest.mark.parametrize("n", [1, 2])
def test_what_an_interruption_leaves_is_gone_on_with(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "PATIENCE", -1.0)  # every part is told
    whole = made(config(model), tmp_path / "whole", n=n)
    texts = whole.all()
    assert [len(each) for each in texts] == [n] * 5

    def stop(message: str) -> None:
        if message.startswith("2 of 5"):
            raise KeyboardInterrupt

    broken = made(config(model), tmp_path / "broken", stop, n=n)
    with pytest.raises(KeyboardInterrupt):
        broken.all()
    assert len(json.loads(broken.file.read_text())) == 2 * n
    said: list[str] = []
    assert made(config(model), tmp_path / "broken", said.append, n=n).all() == texts
    assert said[0] == f"{model} answers 5 questions (2 are there)"
    assert broken.file.name == whole.file.name
    assert broken.file.read_bytes() == whole.file.read_bytes()


def test_a_quick_model_tells_of_its_end_alone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "PATIENCE", 1e9)
    said: list[str] = []
    made(config(model), tmp_path, said.append).all()
    assert [text for text in said if text.endswith("answered")] == ["5 of 5 answered"]


def test_a_part_that_is_not_whole_is_written_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older version with smaller parts would leave it."""
    monkeypatch.setattr(module, "AT_ONCE", 2)
    kept = made(config(model), tmp_path)
    texts = kept.all()
    whole = kept.file.read_bytes()
    kept.file.write_text(json.dumps(json.loads(whole)[:3]))
    assert made(config(model), tmp_path).all() == texts
    assert kept.file.read_bytes() == whole


def test_nothing_is_loaded_where_all_is_there(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = made(config(model), tmp_path).all()
    monkeypatch.delattr(module, "build_models")
    assert made(config(model), tmp_path).all() == texts


def test_the_model_goes_with_the_last_answer(model: Path, tmp_path: Path) -> None:
    kept = made(config(model), tmp_path)
    kept.all()
    assert kept._sampler is None


def test_what_answers_depend_on_names_the_file(model: Path, tmp_path: Path) -> None:
    template, prompt = tmp_path / "chat.jinja", tmp_path / "solver.txt"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    prompt.write_text("Answer: {{ query }}")
    other = save_tiny_llama(tmp_path / model.name, seed=5, max_position_embeddings=256)
    files = [
        made(asked, tmp_path, n=n).file.name
        for asked, n in [
            (config(model), 1),
            (config(model), 2),
            (config(model, temperature=0.5), 1),
            (config(model, tokens=7), 1),
            (config(model, seed=1), 1),
            (config(model, "model.dtype=bfloat16"), 1),
            (config(model, "model.engine=generic"), 1),
            (config(model, "model.template_kwargs={a: 1}"), 1),
            (config(model, f"model.chat_template={template}"), 1),
            (config(model, "game.solver.system=Be brief."), 1),
            (config(model, "game.solver.top_p=0.5"), 1),
            (config(model, f"game.solver.prompt={prompt}"), 1),
            (config(other), 1),
        ]
    ]
    fewer = answerer(config(model), QUESTIONS[:4], tmp_path, quiet).file.name
    assert len({*files, fewer}) == len(files) + 1
    assert made(config(model, "game.n_queries=3", "steps=9"), tmp_path / "elsewhere").file.name == files[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[0]], "holds other answers than its name says; remove it"),
        (lambda rows: [{**rows[0], "instruction": "x"}], "holds other answers than its name says; remove it"),
        (lambda rows: [{"instruction": rows[0]["instruction"], "output": "a"}], "item 1 has no 'finish'"),
        (lambda rows: [{**rows[0], "output": 3}], "item 1: 'output' must be text"),
    ],
)
def test_a_file_that_somebody_changed_is_named(
    model: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    kept = made(config(model), tmp_path)
    kept.all()
    kept.file.write_text(json.dumps(change(json.loads(kept.file.read_text()))))
    with pytest.raises(ValueError, match=message) as refused:
        made(config(model), tmp_path)
    assert kept.file.name in str(refused.value)


def test_a_prompt_too_long_for_the_context(model: Path, tmp_path: Path) -> None:
    questions = [Question("word " * 300), Question("Short?")]
    said: list[str] = []
    for _ in range(2):  # once written, once read
        kept = answerer(config(model), questions, tmp_path, said.append)
        turns: list[Turn] = kept.sample(kept._role, kept._prompts)
        assert [bool(turn.info.get("too_long")) for turn in turns] == [True, False]
        assert turns[0].text == "" and turns[0].finish == "length"
    assert answerer(config(model), questions, tmp_path, said.append).all()[0] == [""]
    assert "1 prompts left no room in the model's context" in said[-1]


def test_no_questions_and_no_model(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to answer"):
        answerer(config(model), [], tmp_path, quiet)
    with pytest.raises(ValueError, match="no such folder"):
        answerer(config(tmp_path / "none"), QUESTIONS, tmp_path, quiet)


# --- questions ---------------------------------------------------------------------------------------


def test_questions_from_rows() -> None:
    talk = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"})
    rows = [
        Row("Who?", talk, {"kind": "a/b", "answer": 3}),
        Row("Who?", None, {"kind": " ", "answer": 4}),
        Row("Why?", ({"role": "user", "content": "Why?"},), {"kind": 7}),
    ]
    found = questions_from(PromptSet(rows, "rows"), "kind")
    assert [question.text for question in found] == ["[system]\nBe brief.\n\n[user]\nWho?", "Who?", "Why?"]
    assert [question.subset for question in found] == ["a-b", "-", "7"]
    assert [question.messages for question in found] == [talk, None, rows[2].messages]
    assert found[0].columns["answer"] == 3
    assert [question.subset for question in questions_from(PromptSet(rows, "rows"), None)] == [None] * 3


def test_questions_that_are_refused() -> None:
    rows = [Row("one", None, {"a": 1}), Row("two", None, {"b": 1}), Row("one", None, {"a": 1})]
    with pytest.raises(ValueError, match=r"--subset: p\.jsonl has no column 'a' in the row 'two' \(b\)"):
        questions_from(PromptSet(rows, "p.jsonl"), "a")
    with pytest.raises(ValueError, match=r"--prompts: p\.jsonl asks 'one' twice"):
        questions_from(PromptSet(rows, "p.jsonl"), None)
    assert len(questions_from(PromptSet(rows, "p.jsonl"), None, 2)) == 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1, max_size=4))
def test_a_chat_as_text_holds_every_message(messages: list[tuple[str, str]]) -> None:
    text = chat_text([{"role": role, "content": content} for role, content in messages])
    assert all(content in text for _, content in messages)
