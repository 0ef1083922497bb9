"""The benchmarks: loading and its errors, scoring (canonical answers right, corrupted ones wrong), reports, runs."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from real_data import real_data
from sandboxed import sandbox_or_skip
from scripted import ScriptedSampler
from sparring.domains import TestItem
from sparring.evaluation.benchmarks import BENCHMARKS, Accuracy, ItemResult, benchmark_named
from sparring.evaluation.benchmarks.answers import GSM8K, Math500
from sparring.evaluation.benchmarks.humaneval import HumanEval
from sparring.evaluation.benchmarks.ifeval import IFEval
from sparring.evaluation.benchmarks.runner import benchmark_role, run_benchmark
from sparring.evaluation.statistics import wilson_interval
from sparring.lm.base import Completion, SamplingParams
from sparring.rendering import Renderer
from sparring.rewards.code import extract_code
from sparring.sampling.seeds import Draws
from sparring.sampling.turns import TurnSampler
from sparring.sandbox import Ending, Outcome, Program
from sparring.settings import RoleConfig
from tiny_models import chat_tokenizer

GSM_ROWS = [
    {"question": "One and one?", "answer": "1 + 1 = 2\n#### 2"},
    {"question": "A thousand and one?", "answer": "#### 1,001"},
    {"question": "Three?", "answer": "#### 3"},
]
MATH_ROWS = [
    {"problem": "p", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 1, "unique_id": "a/1"},
    {"problem": "q", "answer": "7", "subject": "Algebra", "level": 2, "unique_id": "a/2"},
    {"problem": "r", "answer": "(1, 2)", "subject": "Geometry", "level": 1, "unique_id": "g/1"},
]
HUMAN_ROWS = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    }
]
IFEVAL_ROWS = [
    {
        "key": 1000,
        "prompt": "Greet me without commas.",
        "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"],
        "kwargs": [{}, {}],
    },
    {"key": 1001, "prompt": "Quote.", "instruction_id_list": ["startend:quotation"], "kwargs": [{"keyword": None}]},
]
ROWS = {"gsm8k": GSM_ROWS, "math500": MATH_ROWS, "humaneval": HUMAN_ROWS, "ifeval": IFEVAL_ROWS}


def write(path: Path, rows: Sequence[Any]) -> str:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        data = "\n".join(json.dumps(row) for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


# --- loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_every_form_of_file(tmp_path: Path, ending: str) -> None:
    items = GSM8K().load(write(tmp_path / f"set{ending}", GSM_ROWS))
    assert [(item.item_id, item.query, item.columns["answer"]) for item in items] == [
        ("gsm8k/1", "One and one?", "2"),
        ("gsm8k/2", "A thousand and one?", "1,001"),
        ("gsm8k/3", "Three?", "3"),
    ]


def test_items_of_each_benchmark(tmp_path: Path) -> None:
    math = Math500().load(write(tmp_path / "m.jsonl", MATH_ROWS))
    assert [(item.item_id, item.subset, item.query) for item in math][2] == ("g/1", ("Geometry", "level 1"), "r")
    [human] = HumanEval().load(write(tmp_path / "h.jsonl", HUMAN_ROWS))
    assert (human.item_id, human.columns["entry_point"]) == ("HumanEval/0", "double")
    assert human.query == 'def double(x):\n    """Twice x."""'
    ifeval = IFEval().load(write(tmp_path / "i.jsonl", IFEVAL_ROWS))
    assert [(item.item_id, item.query) for item in ifeval] == [("1000", "Greet me without commas."), ("1001", "Quote.")]
    assert ifeval[0].columns["instructions"].names == ("punctuation:no_comma", "detectable_format:title")


@pytest.mark.parametrize(
    ("name", "field"), [("gsm8k", "question"), ("math500", "subject"), ("humaneval", "test"), ("ifeval", "kwargs")]
)
def test_a_row_without_a_field_is_named(tmp_path: Path, name: str, field: str) -> None:
    rows = [*ROWS[name], {key: value for key, value in ROWS[name][0].items() if key != field}]
    path = write(tmp_path / "set.jsonl", rows)
    with pytest.raises(ValueError, match=rf"{re.escape(path)}, line {len(rows)} has no field '{field}'; it has: "):
        benchmark_named(name).load(path)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("gsm8k", {"question": " "}, "its question must be text, not ' '"),
        ("gsm8k", {"answer": "many"}, "its answer: 'many' is no number"),
        ("gsm8k", {"answer": None}, "its answer: None is no answer"),
        ("math500", {"answer": ""}, "its answer: '' is no answer"),
        ("math500", {"unique_id": 3}, "its unique_id must be text, not 3"),
        ("humaneval", {"entry_point": None}, "its entry_point must be text"),
        ("ifeval", {"instruction_id_list": ["no:such"]}, "unknown instruction 'no:such'|one object for each"),
        ("ifeval", {"kwargs": [{}]}, "its kwargs must be a list with one object for each"),
    ],
)
def test_a_row_with_a_wrong_value_is_named(tmp_path: Path, name: str, change: dict[str, Any], why: str) -> None:
    path = write(tmp_path / "set.jsonl", [{**ROWS[name][0], **change}])
    with pytest.raises(ValueError, match=rf"{re.escape(path)}, line 1.*({why})"):
        benchmark_named(name).load(path)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("set.jsonl", b"", "is empty: it holds no row"),
        ("set.jsonl", b"\n\n", "is empty: it holds no row"),
        ("set.json", b"[]", "is empty: it holds no row"),
        ("set.jsonl", b'{"question": "q", "answer": "1"}\n{"question": ', "line 2 is not JSON"),
        ("set.jsonl", b'{"question": "q", "answer": "1"}\n[1]', "line 2 is no object with fields"),
        ("set.json", b"{}", "expected a JSON list"),
        ("set.json", b"[1", "is not JSON"),
        ("set.jsonl", b"\xff\xfe", "is no UTF-8 text"),
        ("set.jsonl.gz", b"not gzip", "can't be read"),
        ("set.parquet", b"not parquet", "is not Parquet"),
        ("set.txt", b"q", "a benchmark file ends in .jsonl, .jsonl.gz, .json or .parquet"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{why}"):
        GSM8K().load(str(path))


def test_a_missing_file_and_a_truncated_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no benchmark file .*none\.jsonl"):
        GSM8K().load(str(tmp_path / "none.jsonl"))
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GSM_ROWS[0]).encode())[:-12])
    with pytest.raises(ValueError, match="can't be read"):
        GSM8K().load(str(path))


def test_two_items_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two items are called 'a/1'"):
        Math500().load(write(tmp_path / "m.jsonl", [MATH_ROWS[0], MATH_ROWS[0]]))


def test_the_hub_is_asked_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    asked: list[tuple[Any, ...]] = []

    def load(hub_id: str, name: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((hub_id, name, split))
        return GSM_ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(GSM8K().load()) == 3
    assert asked == [("openai/gsm8k", "main", "test")]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no net")))
    with pytest.raises(ValueError, match=r"openai/gsm8k can't be loaded from the hub: no net; or give the path"):
        GSM8K().load()


def test_without_datasets_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"google/IFEval is read .*pip install 'sparring\[data\]'"):
        IFEval().load()


def test_unknown_benchmarks() -> None:
    with pytest.raises(ValueError, match="unknown benchmark 'gsm8'; did you mean 'gsm8k'"):
        benchmark_named("gsm8")
    with pytest.raises(ValueError, match="there are gsm8k, math500, humaneval, ifeval"):
        benchmark_named("x")


# --- scoring and reports -----------------------------------------------------------------------------


def test_gsm8k_scores(tmp_path: Path) -> None:
    items = GSM8K().load(write(tmp_path / "g.jsonl", GSM_ROWS))
    results = GSM8K().score(items, [["#### 2", "2 apples"], ["1001", "#### 1002"], ["none", "33"]])
    assert [result.scores for result in results] == [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)]
    report = GSM8K().report(results, pass_at=(1, 2))
    assert report.pass_at == {1: 0.5, 2: pytest.approx(2 / 3)}
    assert (report.samples, report.overall.n, report.overall.accuracy, report.subsets) == (2, 3, 0.5, {})


def test_accuracy_overall_and_per_subset(tmp_path: Path) -> None:
    benchmark = Math500()
    items = benchmark.load(write(tmp_path / "m.jsonl", MATH_ROWS))
    results = benchmark.score(items, [[r"\boxed{\frac{1}{2}}"], [r"\boxed{8}"], [r"\boxed{(1,2)}"]])
    report = benchmark.report(results)
    assert report.overall == Accuracy(3, 2 / 3, wilson_interval(2, 3))
    assert {name: (subset.n, subset.accuracy) for name, subset in report.subsets.items()} == {
        "Algebra": (2, 0.5),
        "Algebra/level 1": (1, 1.0),
        "Algebra/level 2": (1, 0.0),
        "Geometry": (1, 1.0),
        "Geometry/level 1": (1, 1.0),
    }
    assert json.loads(json.dumps(report.to_json()))["subsets"]["Algebra"]["n"] == 2
    benchmark.close()


def test_several_answers_an_item_have_an_interval_over_items() -> None:
    results = [ItemResult(str(index), (), (1.0, 0.0) if index % 2 else (1.0, 1.0)) for index in range(40)]
    accuracy = Accuracy.of(results)
    assert accuracy.accuracy == 0.75
    assert 0.6 < accuracy.ci95[0] < 0.75 < accuracy.ci95[1] < 0.9


def test_what_could_not_be_judged_counts_as_wrong_and_is_said() -> None:
    item = TestItem("a", (), "q")
    results = [ItemResult.of(item, [None, 1.0])]
    report = GSM8K().report(results, pass_at=[1])
    assert (report.overall.accuracy, report.unscored, report.pass_at) == (0.5, 0.5, {1: 0.5})


def test_no_results_and_too_large_a_k() -> None:
    with pytest.raises(ValueError, match="gsm8k: there is no result"):
        GSM8K().report([])
    with pytest.raises(ValueError, match="pass@3"):
        GSM8K().report([ItemResult("a", (), (1.0,))], pass_at=[3])


def test_ifevals_four_accuracies(tmp_path: Path) -> None:
    benchmark = IFEval()
    items = benchmark.load(write(tmp_path / "i.jsonl", IFEVAL_ROWS))
    results = benchmark.score(items, [["Sure, here:\n<<Hi>> you"], ['"quoted"']])
    report = benchmark.report(results)
    assert [result.scores for result in results] == [(0.0,), (1.0,)]
    assert results[0].details == ({"strict": [False, True], "loose": [True, True]},)
    assert report.figures == {
        "prompt_strict": 0.5,
        "instruction_strict": pytest.approx(2 / 3),
        "prompt_loose": 1.0,
        "instruction_loose": 1.0,
    }
    assert report.overall.accuracy == report.figures["prompt_strict"]


class ScriptedSandbox:
    """Endings by a word in the program; nothing runs."""

    def __init__(self) -> None:
        self.programs: list[Program] = []
        self.closed = False

    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        self.programs += programs
        return [Outcome(self._ending(program.source), None, "", "", 0.0) for program in programs]

    def close(self) -> None:
        self.closed = True

    def _ending(self, source: str) -> Ending:
        return next((ending for ending in Ending if ending.name in source), Ending.FAILED)


def test_humaneval_hands_programs_with_their_tests_to_the_sandbox(tmp_path: Path) -> None:
    sandbox = ScriptedSandbox()
    benchmark = HumanEval(sandbox)
    items = benchmark.load(write(tmp_path / "h.jsonl", HUMAN_ROWS))
    answers = [
        "```python\ndef double(x):\n    return PASSED\n```",
        "```\n    return TIMEOUT\n```",
        "```text\nno\n```",
        "ERROR",
    ]
    [result] = benchmark.score(items, [answers])
    assert (result.scores, result.unscored) == ((1.0, 0.0, 0.0, 0.0), 1)
    assert len(sandbox.programs) == 3
    first, second, _ = sandbox.programs
    assert first.entry_point == "double"
    assert first.tests is not None
    assert first.tests.rstrip().endswith("check(candidate)")
    assert second.source == 'def double(x):\n    """Twice x."""\n    return TIMEOUT'
    benchmark.close()
    assert sandbox.closed


# --- the whole sets ----------------------------------------------------------------------------------


def test_gsm8ks_own_solutions_are_right_and_corrupted_ones_wrong() -> None:
    path, benchmark = real_data("benchmarks", "gsm8k_test.jsonl"), GSM8K()
    items = benchmark.load(str(path))
    solutions = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    corrupted = [re.sub(r"#### (-?)", r"#### \g<1>1", text) for text in solutions]
    assert len(items) == 1_319
    assert benchmark.report(benchmark.score(items, [[text] for text in solutions])).overall.accuracy == 1.0
    assert benchmark.report(benchmark.score(items, [[text] for text in corrupted])).overall.accuracy == 0.0


def test_math500s_own_solutions_are_right_and_corrupted_ones_wrong() -> None:
    path, benchmark = real_data("benchmarks", "math500_test.jsonl"), Math500()
    pytest.importorskip("math_verify", reason="math-verify is not installed (the extra `verify`)")
    items = benchmark.load(str(path))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(items) == 500
    right = benchmark.score(items, [[row["solution"]] for row in rows])
    some = slice(0, None, 9)  # corrupted ones cost algebra
    wrong = benchmark.score(items[some], [[rf"\boxed{{{_corrupted(row['answer'])}}}"] for row in rows[some]])
    benchmark.close()
    assert benchmark.report(right).overall.accuracy == 1.0
    assert benchmark.report(wrong).overall.accuracy == 0.0
    assert len(benchmark.report(right).subsets) > 30


def _corrupted(answer: str) -> str:
    """Every number one larger; a word for what has none."""
    changed = re.sub(r"[0-9]+", lambda found: str(int(found[0]) + 1), answer)
    return changed if changed != answer else r"\text{nowhere}"


def test_humanevals_own_solutions_pass_in_the_sandbox_and_empty_ones_fail() -> None:
    path = real_data("benchmarks", "HumanEval.jsonl.gz")
    benchmark = HumanEval(sandbox_or_skip())
    items = benchmark.load(str(path))
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    answers = [
        [f"```python\n{row['prompt']}{body}\n```" for body in (row["canonical_solution"], "    pass")] for row in rows
    ]
    results = benchmark.score(items, answers)
    benchmark.close()
    assert len(results) == 164
    assert [result.item_id for result in results if result.scores != (1.0, 0.0)] == []


def test_all_of_ifevals_rows_can_be_checked() -> None:
    benchmark = IFEval()
    items = benchmark.load(str(real_data("benchmarks", "ifeval_input_data.jsonl")))
    names = [name for item in items for name in item.columns["instructions"].names]
    assert (len(items), len(names), len(set(names))) == (541, 834, 25)
    results = benchmark.score(items, [[""] for _ in items])
    assert set(benchmark.report(results).figures.values()) == {0.0}


# --- running -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_prompt_asks_the_question(name: str) -> None:
    role = benchmark_role(benchmark_named(name), RoleConfig(max_new_tokens=99, top_p=0.9), temperature=0.7)
    [message] = role.prompt(query="THE {{ question }}").messages
    assert message["role"] == "user"
    assert "THE {{ question }}" in message["content"]
    assert role.sampling == SamplingParams(99, 0.7, 0.9)
    assert role.weight == 0.0


def test_the_prompts_ask_for_the_form_that_is_read() -> None:
    assert "####" in GSM8K().template
    assert r"\boxed{}" in Math500().template
    assert "```python" in HumanEval().template
    assert extract_code(benchmark_role(HumanEval()).prompt(query="x = 1").messages[0]["content"]) == "x = 1"
    assert IFEval().template == "{{ query }}"


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Q: {{ query }}", encoding="utf-8")
    role = benchmark_role(GSM8K(), RoleConfig(prompt=str(tmp_path / "mine.txt"), system="Be brief."))
    assert [message["content"] for message in role.prompt(query="x").messages] == ["Be brief.", "Q: x"]
    (tmp_path / "mine.txt").write_text("no question", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no placeholder {{ query }}"):
        benchmark_role(GSM8K(), RoleConfig(prompt=str(tmp_path / "mine.txt")))


def test_items_are_answered_in_batches_and_scored(tmp_path: Path) -> None:
    benchmark = GSM8K()
    items = benchmark.load(write(tmp_path / "g.jsonl", GSM_ROWS))
    sampler = ScriptedSampler({"gsm8k": ["2", "3", "1001", "1001", "no", "3"]})
    run = run_benchmark(
        benchmark, items, sampler, benchmark_role(benchmark, temperature=1.0), n=2, batch=2, pass_at=(2,)
    )
    assert sampler.asked == [("gsm8k", 4, "policy"), ("gsm8k", 2, "policy")]
    assert run.answers == (("2", "3"), ("1001", "1001"), ("no", "3"))
    assert [result.scores for result in run.results] == [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    assert (run.report.overall.accuracy, run.report.pass_at, run.truncated) == (pytest.approx(2 / 3), {2: 1.0}, 0.0)


def test_the_reference_can_be_asked_instead(tmp_path: Path) -> None:
    items = GSM8K().load(write(tmp_path / "g.jsonl", GSM_ROWS[:1]))
    sampler = ScriptedSampler({"gsm8k/reference": ["2"]})
    run = run_benchmark(GSM8K(), items, sampler, benchmark_role(GSM8K()), model="reference")
    assert run.report.overall.accuracy == 1.0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"n": 0}, "n and batch must be at least 1"),
        ({"batch": 0}, "n and batch must be at least 1"),
        ({"n": 2}, "2 answers an item at temperature 0 are all equal"),
        ({"pass_at": (2,)}, "pass@k needs k from 1 to n=1, not 2"),
        ({"items": []}, "there is no item"),
    ],
)
def test_runs_that_make_no_sense(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    items = settings.pop("items", GSM8K().load(write(tmp_path / "g.jsonl", GSM_ROWS)))
    with pytest.raises(ValueError, match=f"gsm8k: .*{why}"):
        run_benchmark(GSM8K(), items, ScriptedSampler({}), benchmark_role(GSM8K()), **settings)


class Knows:
    """A writer that answers each prompt by a function of its text."""

    def __init__(self, renderer: Renderer, answer: Callable[[str], str], stop: int) -> None:
        self._renderer, self._answer, self._stop = renderer, answer, stop

    def complete(
        self, model: str, prompts: Sequence[tuple[int, ...]], n: int, params: SamplingParams, draws: Draws
    ) -> list[list[Completion]]:
        return [[self._completion(self._answer(self._renderer.decode(ids)), params)] * n for ids in prompts]

    def _completion(self, text: str, params: SamplingParams) -> Completion:
        whole = (*self._renderer.tokenizer.encode(text, add_special_tokens=False), self._stop)
        ids = whole[: params.max_new_tokens]
        return Completion(ids, np.zeros(len(ids), np.float32), "stop" if ids == whole else "length")

    def updated(self, version: int) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


def test_a_real_turn_sampler_with_prompts_too_long_and_answers_cut_off(tmp_path: Path) -> None:
    rows = [
        {"question": "One and one?", "answer": "#### 2"},
        {"question": "Long answer?", "answer": "#### 5"},
        {"question": "word " * 400, "answer": "#### 3"},
    ]
    items = GSM8K().load(write(tmp_path / "g.jsonl", rows))
    tokenizer = chat_tokenizer()
    renderer = Renderer(tokenizer)
    stop = cast(int, tokenizer.eos_token_id)
    writer = Knows(renderer, lambda text: "so\n#### 2" if "One" in text else "think " * 90 + "#### 5", stop)
    sampler = TurnSampler(writer, renderer, stop_ids=[stop], context=300)
    run = run_benchmark(GSM8K(), items, sampler, benchmark_role(GSM8K(), RoleConfig(max_new_tokens=40)))
    assert [result.scores for result in run.results] == [(1.0,), (0.0,), (0.0,)]
    assert run.answers[2] == ("",)
    assert (run.truncated, run.too_long) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
