"""`sparring eval` and `sparring compare` as a user has them: models answer, judges are asked once, mistakes named."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from conftest import small_run
from scripted_chat import ChatServer, answers_of, status
from sparring.cli import main
from sparring.cli_evaluated import subject
from sparring.evaluation.alpaca_eval.verdicts import is_switched
from sparring.evaluation.document import KINDS
from tiny_models import save_tiny_llama, save_tiny_reward

ROOT = Path(__file__).parent.parent
PROMPTS = [
    {"prompt": "What is 2 + 2?", "kind": "sums"},
    {"prompt": "Name a planet.", "kind": "facts"},
    {"prompt": "What is 3 + 3?", "kind": "sums"},
]
SHORT = ("--max-new-tokens", 6)
JUDGE = "def longer(queries, answers):\n    return [float(len(answer)) for answer in answers]\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `one`, `two` and `scorer`; and `run`, of `one` from `two`."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_llama(folder / "one", max_position_embeddings=1024)
    save_tiny_llama(folder / "two", seed=5, max_position_embeddings=1024)
    save_tiny_reward(folder / "scorer")
    settings = small_run("grpo", f"model.path={folder / 'two'}", "game.domain=text", "model.dtype=float32")
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(settings.to_yaml())
    shutil.copytree(folder / "one", folder / "run" / "model")
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the models, prompts.jsonl and score.py; no key is set."""
    for name in ("one", "two", "scorer"):
        (tmp_path / name).symlink_to(models / name)
    shutil.copytree(models / "run", tmp_path / "run")
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    (tmp_path / "score.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path


@pytest.fixture
def server() -> Iterator[ChatServer]:
    server = ChatServer()
    server.usual = prefers_longer
    yield server
    server.stop()


def prefers_longer(handler: Any, request: dict[str, Any]) -> None:
    """p(M) grows with the second answer's characters; any answer may be blank."""
    from scripted_chat import weighted

    first, second = (len(answer) + 1 for answer in answers_of(request))
    handler.send(200, weighted(M=second / (first + second), m=first / (first + second)))


def call(*words: object) -> Result:
    with warnings.catch_warnings():
        return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


def refused(code: int, *words: object) -> str:
    """The one message of a refusal, on one line."""
    result = call(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.count("Error: ") == 1
    return " ".join(result.stderr.partition("Error: ")[2].split())


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def judged(server: ChatServer, *more: object) -> tuple[object, ...]:
    return (
        "win-rate",
        "one",
        "--base",
        "two",
        "--prompts",
        "prompts.jsonl",
        *SHORT,
        *more,
        "--judge",
        "j",
        *at(server),
    )


def at(server: ChatServer) -> tuple[str, str]:
    return "--judge-url", server.url


# --- win-rate ----------------------------------------------------------------------------------------


def test_a_win_rate_is_what_its_verdicts_say(here: Path, server: ChatServer) -> None:
    words = ("eval", *judged(server, "--temperature", 1, "--subset", "kind"))
    printed = done(*words).output
    folder = here / "evaluations" / "one"
    record, rows = read(folder / "win-rate-prompts.json"), read(folder / "win-rate-prompts-verdicts.json")
    assert [row["instruction"] for row in rows] == [row["prompt"] for row in PROMPTS]
    for row in rows:
        mine, base = (len(row[name]) + 1 for name in ("model_output", "base_output"))
        assert row["model_first"] == pytest.approx(mine / (mine + base))
        assert row["model_second"] == pytest.approx(mine / (mine + base))
    credit_N = [(row["model_first"] + row["model_second"]) / 2 for row in rows]
    assert record["overall"]["win_rate"] == pytest.approx(sum(credit_N) / 3)
    assert record["overall"]["n"] == 3
    assert record["subsets"]["facts"]["win_rate"] == pytest.approx(credit_N[1])
    assert record["subsets"]["sums"]["n"] == 2
    head = {"kind": "win-rate", "name": "win-rate-prompts", "metric": "win_rate", "model": "one", "base": "two"}
    assert head.items() <= record.items()
    asked = {"prompts": "prompts.jsonl", "subset": "kind", "judge": "j", "judge_style": "weighted", "temperature": 1}
    assert {**asked, "max_new_tokens": 6, "seed": 0, "judge_url": server.url}.items() <= record["settings"].items()
    assert "one against two, judged by j" in printed
    assert "Written to evaluations/one/win-rate-prompts.json" in printed
    # Both orders of three pairs, each once; and nothing is asked or answered again.
    assert len(server.requests) == 6
    before = {file: file.read_bytes() for file in folder.glob("*.json")}
    assert "6 pairs need none" in done(*words).output
    assert len(server.requests) == 6
    assert before == {file: file.read_bytes() for file in folder.glob("*.json")}


def test_a_run_is_compared_with_its_start(here: Path) -> None:
    words = ("win-rate", "run", "--prompts", "prompts.jsonl", "--judge", "function:score.py:longer")
    done("eval", *words, *SHORT, "--temperature", 1, "--n", 2, "--name", "by-length")
    record = read(here / "run" / "evaluations" / "by-length.json")
    assert (record["model"], record["base"]) == ("run", subject("run", ()).base)
    rows = read(here / "run" / "evaluations" / "by-length-verdicts.json")
    assert len(rows) == 2
    lengths = [(len(row["model_output"]), len(row["base_output"])) for row in rows]
    assert [row["model_first"] for row in rows] == [(a > b) + (a == b) / 2 for a, b in lengths]
    assert record["settings"]["judge"] == "function:score.py:longer"
    assert "judge_style" not in record["settings"]


@pytest.mark.parametrize("judge", ["local:one", "reward:scorer"])
def test_a_model_here_judges(here: Path, judge: str) -> None:
    words = ("win-rate", "one", "--base", "two", "--prompts", "prompts.jsonl", *SHORT, "--temperature", 1)
    done("eval", *words, "--judge", judge, "--n", 2)
    assert read(here / "evaluations" / "one" / "win-rate-prompts.json")["overall"]["n"] == 2


def test_answers_from_files(here: Path, server: ChatServer) -> None:
    for name, words in (("mine", "a longer answer"), ("theirs", "short")):
        rows = [{"instruction": row["prompt"], "output": words, "generator": name} for row in PROMPTS]
        (here / f"{name}.json").write_text(json.dumps(rows))
    words = ("win-rate", "mine.json", "--base", "theirs.json", "--prompts", "prompts.jsonl", "--judge", "j")
    done("eval", *words, *at(server))
    record = read(here / "evaluations" / "mine" / "win-rate-prompts.json")
    assert record["overall"]["win_rate"] == pytest.approx(16 / (16 + 6))
    (here / "theirs.json").write_text(json.dumps(rows[:1]))
    message = refused(1, "eval", *words, *at(server))
    assert message == "theirs.json: 2 of 3 prompts have no answer there, first 'Name a planet.'"


def test_a_judge_sees_a_whole_chat(here: Path, server: ChatServer) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    (here / "chats.json").write_text(json.dumps([{"messages": talk}]))
    words = ("win-rate", "one", "--base", "two", "--prompts", "chats.json", *SHORT, "--temperature", 1)
    done("eval", *words, "--judge", "j", *at(server))
    assert all("[system]\nBe brief.\n\n[user]\nWho?" in asked for asked in server.asked())


# --- interruptions -----------------------------------------------------------------------------------


def test_a_judge_that_fails_is_asked_for_the_rest_alone(here: Path, server: ChatServer) -> None:
    server.script = [prefers_longer, prefers_longer, status(403, b"enough")]
    result = call("eval", *judged(server, "--temperature", 1, "--concurrency", 1))
    assert result.exit_code == 1
    assert "status 403" in result.stderr
    assert "kept in evaluations/one: the same command goes on from there." in " ".join(result.stderr.split())
    assert len(server.requests) == 3
    assert not (here / "evaluations" / "one" / "win-rate-prompts.json").exists()
    done("eval", *judged(server, "--temperature", 1))
    asked = server.asked()
    assert len(asked) == 3 + 4 and len(set(asked)) == 6


def test_ctrl_c_while_judging(here: Path) -> None:
    (here / "stop.py").write_text("def stop(queries, answers):\n    raise KeyboardInterrupt\n")
    words = ("win-rate", "one", "--base", "two", "--prompts", "prompts.jsonl", *SHORT, "--temperature", 1)
    result = call("eval", *words, "--judge", "function:stop.py:stop")
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted\nWhat was answered and judged is kept in evaluations/one")
    assert "answers 3 questions" not in done("eval", *words, "--judge", "function:score.py:longer").output


@pytest.mark.slow
def test_killed_while_answering_and_while_judging(here: Path, server: ChatServer) -> None:
    """The same files as uninterrupted, and no pair asked twice but those under way."""
    rows = [{"prompt": f"What is {number} + {number}?"} for number in range(150)]
    (here / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [str(word) for word in judged(server, "--temperature", 1, "--concurrency", 2)]
    done("eval", *words, "--out", "whole")
    whole, server.requests[:] = len(server.requests), []
    out = here / "broken"
    server.usual = lambda handler, request: (time.sleep(0.01), prefers_longer(handler, request))[1]
    for reached in (
        lambda: any(out.glob("outputs-one-*.json")),
        lambda: any(out.glob("outputs-two-*.json")),
        lambda: len(server.requests) > 50,
        lambda: len(server.requests) > 150,
    ):
        kill_at(reached, "eval", *words, "--out", "broken")
    done("eval", *words, "--out", "broken")
    assert 250 < whole == len(set(server.asked()))  # a pair of equal answers needs no call
    assert len(server.requests) <= whole + 2 * 2
    files = sorted(file.name for file in (here / "whole").glob("*.json"))
    assert len(files) == 4
    for name in files:
        assert (here / "whole" / name).read_bytes() == (out / name).read_bytes()


def kill_at(reached: Callable[[], bool], *words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-m", "sparring", *words], env=environment, stdout=subprocess.DEVNULL)
    while not reached() and child.poll() is None:
        time.sleep(0.01)
    assert child.poll() is None, "it ended before it was killed"
    child.send_signal(signal.SIGKILL)
    child.wait()


# --- alpaca-eval -------------------------------------------------------------------------------------


@pytest.fixture
def instructions(here: Path) -> Path:
    """Instructions of both orders."""
    texts = [f"Say {number}" for number in range(6)]
    assert {is_switched(text) for text in texts} == {True, False}
    rows = [
        {"dataset": "koala" if number % 2 else "vicuna", "instruction": text, "ref_other/gpt": f"reference {text}"}
        for number, text in enumerate(texts)
    ]
    (here / "set.json").write_text(json.dumps(rows))
    return here / "set.json"


def test_alpaca_eval_gives_what_its_annotations_give(here: Path, server: ChatServer, instructions: Path) -> None:
    words = ("alpaca-eval", "run", "--instructions", instructions, *SHORT, "--temperature", 1)
    printed = json.loads(done("eval", *words, "--judge", "j", *at(server), "--json").stdout)
    folder = here / "run" / "evaluations"
    again = json.loads(
        done("eval", "alpaca-eval", "--annotations", folder / "alpaca_eval-annotations.json", "--json").stdout
    )
    assert printed == again
    record = read(folder / "alpaca_eval.json")
    assert record["alpaca_eval"] == printed
    assert record["overall"]["win_rate"] == pytest.approx(printed["win_rate"] / 100)
    assert record["overall"]["n"] == printed["n_total"] == 6
    assert record["subsets"].keys() == {"koala", "vicuna"}
    assert record["settings"]["n"] is None and record["settings"]["judge"] == "j"
    rows = read(folder / "alpaca_eval-annotations.json")
    fields = "dataset instruction output_1 generator_1 output_2 generator_2 annotator preference raw_completion"
    assert all(set(row) == set(fields.split()) for row in rows)
    assert {(row["generator_1"], row["generator_2"], row["annotator"]) for row in rows} == {
        (record["base"], "run", "j")
    }
    for row in rows:
        base, mine = len(row["output_1"]) + 1, len(row["output_2"]) + 1
        assert row["preference"] == pytest.approx(1 + mine / (base + mine))


def test_alpaca_evals_order(here: Path, server: ChatServer, instructions: Path) -> None:
    """The model's answer is shown first where AlpacaEval would, each pair once."""
    words = ("alpaca-eval", "one", "--instructions", instructions, *SHORT, "--temperature", 1)
    done("eval", *words, "--baseline", "other/gpt", "--judge", "j", *at(server))
    folder = here / "evaluations" / "one"
    assert read(folder / "alpaca_eval-other-gpt.json")["base"] == "other/gpt"
    assert len(server.requests) == 6
    for request in server.requests:
        first, second = answers_of(request)
        text = next(f"Say {number}" for number in range(6) if f"reference Say {number}" in (first, second))
        assert (second == f"reference {text}") == is_switched(text)


def test_a_length_control_that_fails_leaves_the_evaluation(here: Path, server: ChatServer, instructions: Path) -> None:
    """References are longer than what a model says in six tokens, so that all verdicts go one way."""
    rows = [{**row, "ref_other/gpt": "word " * 100} for row in read(instructions)]
    instructions.write_text(json.dumps(rows))
    words = ("alpaca-eval", "one", "--instructions", instructions, *SHORT, "--baseline", "other/gpt")
    message = refused(1, "eval", *words, "--judge", "function:score.py:longer", "--refit-length")
    assert "every verdict goes to one side" in message
    assert read(here / "evaluations" / "one" / "alpaca_eval-other-gpt.json")["overall"]["win_rate"] == 0


# --- benchmarks --------------------------------------------------------------------------------------

SETS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(3)],
    "math500": [
        {"problem": f"{n}+{n}", "answer": str(2 * n), "subject": "Algebra", "level": n, "unique_id": f"{n}"}
        for n in range(3)
    ],
    "ifeval": [
        {"key": n, "prompt": f"Say {n}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for n in range(3)
    ],
}


@pytest.fixture
def sets(here: Path) -> Path:
    for name, rows in SETS.items():
        (here / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return here


@pytest.mark.parametrize("name", SETS)
def test_a_benchmark_beside_a_base(sets: Path, name: str) -> None:
    words = ("eval", name, "one", "--base", "two", "--file", f"{name}.jsonl", *SHORT)
    sampled = (*words, "--samples", 3, "--temperature", 1, "--pass-at", "1,3")
    printed = done(*sampled).output
    folder = sets / "evaluations" / "one"
    record = read(folder / f"{name}.json")
    assert {"kind": "accuracy", "name": name, "metric": "accuracy", "samples": 3}.items() <= record.items()
    scores = [item["scores"] for item in record["items"]]
    assert [len(each) for each in scores] == [3] * 3
    shares = [sum(each) / 3 for each in scores]
    assert record["overall"]["accuracy"] == pytest.approx(sum(shares) / 3)
    assert record["pass_at"] == {"1": pytest.approx(sum(shares) / 3), "3": pytest.approx(sum(map(any, scores)) / 3)}
    against = record["against_base"]["overall"]
    assert against["accuracy"] == record["overall"]["accuracy"]
    assert against["base_accuracy"] == record["base_report"]["overall"]["accuracy"]
    assert against["n"] == 3
    assert record["settings"]["prompt"] and record["settings"]["file"] == f"{name}.jsonl"
    assert f"{name}: one" in printed and f"{name}: two" in printed and "two against one" in printed
    kept = sorted(folder.glob("outputs-*.json"))
    assert [len(read(file)) for file in kept] == [9, 9]
    assert "answers 3 questions" in printed and "answers 3 questions" not in done(*sampled).output
    assert record == read(folder / f"{name}.json")


def test_right_answers_count(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model is made to say in the file of its answers is what is scored."""
    words = ("eval", "gsm8k", "one", "--file", "gsm8k.jsonl", *SHORT)
    done(*words)
    (kept,) = (sets / "evaluations" / "one").glob("outputs-*.json")
    rows = read(kept)
    rows[1]["output"], rows[2]["output"] = "So the answer is 2.", "The answer is 5."
    kept.write_text(json.dumps(rows))
    monkeypatch.setattr("sparring.evaluation.answers.build_models", None)
    done(*words)
    record = read(sets / "evaluations" / "one" / "gsm8k.json")
    assert [item["scores"] for item in record["items"]] == [[0.0], [1.0], [0.0]]
    assert record["overall"]["n"] == 3 and record["overall"]["accuracy"] == pytest.approx(1 / 3)
    assert record["overall"]["ci95"] == [pytest.approx(0.0615, abs=1e-3), pytest.approx(0.7923, abs=1e-3)]  # Wilson's


# --- mistakes ----------------------------------------------------------------------------------------

WIN = ("win-rate", "one", "--base", "two", "--prompts", "prompts.jsonl", *SHORT)
BY_LENGTH = ("--judge", "function:score.py:longer")
ALPACA = ("alpaca-eval", "one", "--base", "two", "--instructions", "set.json")


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, (*WIN, "--judge", "gpt-4o"), "--judge gpt-4o needs a key, and the environment variable OPENAI_API_KEY is"),
        (2, (*WIN, "--judge", "j", "--judge-url", "http://x", "--judge-key", "NO_KEY"), "NO_KEY is empty"),
        (2, (*WIN, "--judge", "local:"), "--judge local: names no model"),
        (2, (*WIN, "--judge", "reward:scorer", "--judge-url", "http://x"), "--judge-url and --judge-key are for"),
        (2, (*WIN, "--judge", "reward:scorer", "--judge-style", "ranked"), "--judge-prompt and --judge-style are for"),
        (1, (*WIN, "--judge", "j", "--judge-url", "x:80"), "--judge-url reads http://host:port, not 'x:80'"),
        (1, (*WIN, "--judge", "reward:./nope"), "--judge: nope: no such folder"),
        (1, (*WIN, "--judge", "reward:one"), "--judge: one: is a language model, not a reward model"),
        (1, (*WIN, "--judge", "function:score.py:nope"), "--judge: score.py has no 'nope'; it has: longer"),
        (1, (*WIN, "--judge", "function:nope.py:x"), "--judge: there is no file nope.py"),
        (1, (*WIN, "--judge", "local:scorer"), "--judge: scorer: not a causal language model"),
        (1, (*WIN, *BY_LENGTH, "--judge-cache", "prompts.jsonl"), "prompts.jsonl is damaged or no cache of verdicts"),
        (
            1,
            (*WIN, "--judge", "local:two", "--judge-prompt", "nope"),
            "--judge-prompt: can't read the prompt file nope",
        ),
        (1, (*WIN, "--judge", "local:two", "--judge-prompt", "score.py"), "score.py has no placeholder {instruction}"),
        (
            1,
            (*WIN, *BY_LENGTH, "--out", "prompts.jsonl"),
            "--out: prompts.jsonl is a file or within one, and results need a folder",
        ),
        (2, (*WIN, *BY_LENGTH, "--name", "a/b"), "--name 'a/b' can't be a file's name: 'a-b' could"),
        (2, (*WIN, *BY_LENGTH, "--base", "one"), "--base: one would be compared with itself"),
        (1, (*WIN, *BY_LENGTH, "--base", "./nope"), "nope: no such folder"),
        (1, (*WIN, *BY_LENGTH, "--base", "nope.json"), "there is no file nope.json"),
        (2, ("win-rate", "nope.json", *WIN[2:], *BY_LENGTH), "nope.json: no such file of answers"),
        (2, ("win-rate", "one", *WIN[4:], *BY_LENGTH), "one is no run, so its base is not known: give --base MODEL"),
        (1, (*WIN, *BY_LENGTH, "--prompts", "nope.jsonl"), "--prompts: there is no prompt file nope.jsonl"),
        (1, (*WIN, *BY_LENGTH, "--prompts", "empty.jsonl"), "prompt set 'empty.jsonl' holds no prompt"),
        (1, (*WIN, *BY_LENGTH, "--prompts", "bad.jsonl"), "bad.jsonl, line 2 is not JSON"),
        (1, (*WIN, *BY_LENGTH, "--prompts", "odd.jsonl"), "odd.jsonl, row 1 has none of the columns"),
        (1, (*WIN, *BY_LENGTH, "--prompts", "odd.jsonl"), "set --column to one of those it has: odd"),
        (
            1,
            (*WIN, *BY_LENGTH, "--column", "prompts"),
            "--column: prompts.jsonl, row 1 has no column 'prompts'; did you",
        ),
        (1, (*WIN, *BY_LENGTH, "--subset", "x"), "--subset: prompts.jsonl has no column 'x' in the row 'What is"),
        (1, (*WIN, *BY_LENGTH, "--split", "test"), "--split=test does nothing for one file"),
        (1, (*WIN, *BY_LENGTH, "--hub-subset", "x"), "--hub-subset=x does nothing for one file"),
        (2, (*WIN, *BY_LENGTH, "--prompts", "alpaca-eval", "--column", "x"), "are for prompts of your own"),
        (2, (*WIN, *BY_LENGTH, "seed=3"), "seed is given as --seed here"),
        (1, (*WIN, *BY_LENGTH, "model.dtype=x"), "model.dtype: Input should be"),
        (1, (*WIN, *BY_LENGTH, "--max-new-tokens", "1024"), "game.solver.max_new_tokens is given as --max-new-tokens"),
        (2, ("gsm8k", "one", "--samples", "2"), "several --samples at --temperature 0 are all equal"),
        (2, ("gsm8k", "one", "--pass-at", "2"), "--pass-at 2 needs a k from 1 to --samples, which is 1"),
        (2, ("gsm8k", "one", "--pass-at", "x"), "--pass-at reads like 1,5,10, not 'x'"),
        (2, ("gsm8k", "one", "--base", "set.json"), "set.json is a file of answers, and gsm8k asks a model"),
        (1, ("gsm8k", "one", "--file", "nope.jsonl"), "there is no benchmark file nope.jsonl"),
        (1, ("gsm8k", "one", "--file", "prompts.jsonl"), "prompts.jsonl, line 1 has no field 'answer'"),
        (1, ("gsm8k", "one", "--base", "./nope", "--file", "set.jsonl"), "nope: no such folder"),
        (2, ("gsm9k", "one"), "No such command or run 'gsm9k'. Did you mean 'gsm8k'?"),
        (2, ALPACA, "--judge TARGET says who judges"),
        (2, (*ALPACA, *BY_LENGTH, "--baseline", "x"), "--base and --baseline are two answers to one question"),
        (2, (*ALPACA[:2], *BY_LENGTH), "give --base or --baseline"),
        (
            1,
            (*ALPACA[:2], *ALPACA[4:], *BY_LENGTH, "--baseline", "x"),
            "--baseline: 1 instructions have no answer of 'x'",
        ),
        (1, (*ALPACA[:5], "prompts.jsonl", *BY_LENGTH), "prompts.jsonl, line 1 has no 'dataset'"),
    ],
)
def test_a_mistake_is_one_message(here: Path, code: int, words: tuple[object, ...], message: str) -> None:
    (here / "empty.jsonl").write_text("")
    (here / "bad.jsonl").write_text('{"prompt": "a"}\n{oops}\n')
    (here / "odd.jsonl").write_text('{"odd": "a"}\n')
    (here / "set.jsonl").write_text(json.dumps(SETS["gsm8k"][0]))
    (here / "set.json").write_text('[{"dataset": "koala", "instruction": "Say it"}]')
    assert message in refused(code, "eval", *words)
    assert not list((here / "evaluations").rglob("outputs-*")), "nothing is answered before a mistake is told"


def test_too_many_calls(here: Path, server: ChatServer) -> None:
    message = refused(1, "eval", *judged(server, "--temperature", 1, "--max-calls", 5))
    assert message.startswith("6 calls would be made") and "--max-calls is 5; none was made" in message
    assert server.requests == []


def test_a_judge_that_says_no_verdict(here: Path, server: ChatServer) -> None:
    server.usual = status(200, {"choices": [{"message": {"content": "I can't say."}}]})
    message = refused(1, "eval", *judged(server, "--temperature", 1, "--judge-style", "ranked"))
    assert 'j gave no verdict that can be read (of 6); it says "I can\'t say."' in message
    assert "--judge-style" in message


def test_a_judge_that_is_not_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.evaluation.judges.endpoint.LONGEST_WAIT", 0.0)
    words = ("eval", *WIN, "--temperature", 1, "--n", 1, "--judge", "j", "--judge-url", "http://127.0.0.1:9")
    message = call(*words).stderr
    assert "the judge at http://127.0.0.1:9/v1/chat/completions" in message and "check --judge-url" in message


def test_a_folders_split_is_called_by_its_flag(here: Path) -> None:
    pytest.importorskip("datasets", reason="folders are read by an extra: pip install 'sparring[data]'")
    (here / "sets").mkdir()
    shutil.copy(here / "prompts.jsonl", here / "sets" / "train.jsonl")
    message = refused(1, "eval", *WIN, *BY_LENGTH, "--prompts", "sets", "--split", "tran")
    assert message == "--split: sets has no split 'tran'; did you mean 'train'?; it has: train"


def test_empty_prompts_are_counted(here: Path) -> None:
    (here / "some.jsonl").write_text('{"prompt": "a"}\n{"prompt": " "}\n')
    printed = done("eval", *WIN, *BY_LENGTH, "--prompts", "some.jsonl").output
    assert "some.jsonl: 1 empty prompts skipped, 1 are left" in printed


# --- how models are loaded ---------------------------------------------------------------------------


def test_what_belongs_to_one_model_is_not_anothers(here: Path) -> None:
    """Code, revision and chat template of the run's start are not used, let alone run, for another base."""
    (here / "chat.jinja").write_text("{{ messages }}")
    start = subject("run", ()).base
    assert start is not None
    given = (
        f"model.remote_code={start}",
        "model.revision=abc",
        "model.chat_template=chat.jinja",
        "model.dtype=bfloat16",
    )
    asked = subject("run/model", given)
    assert asked.path == "run"
    for own in ("run", start):
        model = asked.loading(own).model
        assert (model.path, model.remote_code, model.revision) == (own, start, "abc")
        assert model.chat_template is not None
    other = asked.loading("another/model").model
    assert (other.path, other.remote_code, other.revision, other.chat_template) == ("another/model", None, None, None)
    assert other.dtype == "bfloat16"
    alone = subject("owner/coded", ("model.remote_code=owner/coded",))
    assert alone.loading("owner/coded").model.remote_code == "owner/coded"
    assert alone.loading("one").model.remote_code is None


# --- compare -----------------------------------------------------------------------------------------


def test_compare_prints_a_table_or_json_and_draws(here: Path, sets: Path) -> None:
    for name in ("one", "two"):
        done("eval", "gsm8k", name, "--file", "gsm8k.jsonl", *SHORT)
    runs = ("evaluations/one", "evaluations/two")
    printed = done("compare", *runs, "--plot", "figures/both.png").output
    assert "gsm8k: accuracy [95 % interval]" in printed and "Figure: figures/both.png" in printed
    assert (here / "figures" / "both.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(done("compare", *runs, "--json").stdout)
    assert found["methods"].keys() == {"one", "two"} and found["differences"] == {}
    assert found["methods"]["one"]["overall"]["n"] == 3
    assert "--plot writes .png or .svg" in refused(1, "compare", *runs, "--plot", "a.pdf")
    assert "nope: neither a run" in refused(1, "compare", "nope")


def test_help_names_every_kind() -> None:
    printed = done("eval", "--help").output
    own = ("held-out", "win-rate", "alpaca-eval", "gsm8k", "math500", "humaneval", "ifeval", "lm-eval")
    for name in (*own, "lsr", "vision", "lmms-eval"):
        assert name in printed
        assert done("eval", name, "--help").output.startswith("Usage: ")


def test_the_page_names_flags_that_are_there() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    groups = [main, *(command for command in main.commands.values() if isinstance(command, click.Group))]
    commands = [command for group in groups for command in group.commands.values()]
    known = {name for command in commands for option in command.params for name in option.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"pip install [^`]*", "", text)))
    assert len(named) > 15 and named <= known
    for kind in KINDS:
        assert re.search(rf"^\| {kind} ", text, re.MULTILINE)


@pytest.mark.slow
def test_the_benchmark_of_judging(tmp_path: Path, server: ChatServer) -> None:
    script, out = ROOT / "benchmarks" / "judging.py", tmp_path / "rows.json"
    words = (*("--url", server.url), *("--json", out), *("--pairs", 4), *("--rounds", 1), *("--concurrency", 2))
    run = subprocess.run([sys.executable, script, *map(str, words)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["side"] for row in rows][:2] == ["bare httpx", "EndpointJudge"]
    assert len(server.requests) == 4 * 3 * 2
    bodies = [json.dumps(request, sort_keys=True) for request in server.requests]
    assert len(set(bodies)) == 4, "all sides ask the same"
