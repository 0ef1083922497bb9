"""Vision benchmarks: sets by name and source, rule then judge, pooled parts; lmms-eval as a program; the command."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pyarrow import parquet

from scripted import turn_of
from scripted_chat import ChatServer, completion
from sparring.cli import main
from sparring.config import resolve
from sparring.domains import TestItem
from sparring.evaluation import lmms
from sparring.evaluation.benchmarks.vision import SETS, Outcome, VisionReport, VisionSet, outcomes, sets_named
from sparring.evaluation.document import read_document
from sparring.evaluation.judges.base import Pair
from sparring.evaluation.lmms import lmms_command, lmms_eval
from sparring.evaluation.methods import Methods
from sparring.evaluation.statistics import wilson_interval
from sparring.lm.base import SamplingParams
from sparring.recipes import recipe
from sparring.roles import Role
from tiny_vision import save_tiny_qwen3vl, save_tiny_qwen25vl

ROLE = Role("perceiver", "{{ query }}", SamplingParams(8))


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Judge:
    """Says what it is told to, and keeps what it was asked."""

    name = "judge"

    def __init__(self, *replies: str) -> None:
        self.replies, self.asked = list(replies), []

    def __call__(self, pairs: Sequence[Pair]) -> list[str]:
        self.asked += pairs
        return [self.replies.pop(0) for _ in pairs]


def outcome(right: bool | None, name: str = "a", **more: Any) -> Outcome:
    given = {"by_rule": right, "by_judge": None, "asked_judge": False, "cut": False, "too_long": False, **more}
    return Outcome(TestItem(name, (), "q", {"answer": "x"}), "t", **given)


# --- rule, then judge --------------------------------------------------------------------------------


def test_the_judge_is_asked_what_no_rule_calls_right_and_an_unparsed_verdict_is_wrong() -> None:
    texts = [r"\boxed{B}", r"\boxed{C}", "a crimson cat", "no idea", "", r"\boxed{red}"]
    golds = ["B", "B", "red", "red", "red", "red"]
    kinds = ["multiple choice", "multiple choice", "", "", "", ""]
    items = [
        TestItem(str(i), (), f"q{i}", {"answer": gold, "problem_type": kind})
        for i, (gold, kind) in enumerate(zip(golds, kinds, strict=True))
    ]
    turns = [turn_of(ROLE, ROLE.prompt(query=item.query), text) for item, text in zip(items, texts, strict=True)]
    judge = Judge("incorrect", "correct", "It might be correct")
    found = outcomes(items, turns, judge)
    assert [one.right for one in found] == [True, False, True, False, False, True]
    assert [one.unread for one in found] == [False, False, False, True, False, False]
    assert [(pair.instruction, pair.first, pair.second) for pair in judge.asked] == [
        ("q1", "B", r"\boxed{C}"),
        ("q2", "red", "a crimson cat"),
        ("q3", "red", "no idea"),
    ]
    assert [one.right for one in outcomes(items, turns, None)] == [True, False, False, False, False, True]


def test_figures_and_pooled_parts() -> None:
    report = VisionReport(
        {
            "mmmu": [outcome(True), outcome(False), outcome(None)],
            "mmmu-pro/10-options": [outcome(True)] * 3,
            "mmmu-pro/vision": [outcome(False, by_judge=True, asked_judge=True), *[outcome(False)] * 2]
            + [outcome(False, asked_judge=True, cut=True)] * 2,
        }
    )
    made = report.to_json()
    assert list(made["subsets"]) == ["mmmu", "mmmu-pro", "mmmu-pro/10-options", "mmmu-pro/vision"]
    pooled = made["subsets"]["mmmu-pro"]
    assert (pooled["n"], pooled["accuracy"], pooled["ci95"]) == (8, 4 / 8, list(wilson_interval(4, 8)))
    vision = made["subsets"]["mmmu-pro/vision"]
    assert (vision["accuracy"], vision["by_rule"], vision["asked_judge"]) == (1 / 5, 0, 3)
    assert (vision["unread"], vision["truncated"]) == (2, 2 / 5)
    assert made["subsets"]["mmmu"]["unread"] == 1
    assert made["overall"] == {"n": 11, "accuracy": (1 / 3 + 4 / 8) / 2, "ci95": None, "benchmarks": 2}
    alone = VisionReport({"mmmu": [outcome(True), outcome(False)]}).to_json()
    assert alone["overall"]["ci95"] == list(wilson_interval(1, 2))


# --- sets --------------------------------------------------------------------------------------------


def test_sets_by_name_by_benchmark_and_by_source() -> None:
    assert [one.name for one in sets_named(())] == list(SETS)
    assert sets_named(("mmmu-pro", "mmmu-pro/4-options=data/four", "mmmu")) == [
        VisionSet("mmmu-pro/10-options", "zli12321/mmmu_pro_10options"),
        VisionSet("mmmu-pro/vision", "zli12321/mmmu-pro-vision"),
        VisionSet("mmmu-pro/4-options", "data/four"),
        VisionSet("mmmu", "zli12321/MMMU"),
    ]
    assert {one.source.partition("/")[2] for one in sets_named(())} == {
        "mmmu_pro_10options",
        "mmmu-pro-vision",
        "MMMU",
        "mm-vet",
        "visnumbench",
        "hallusionbench",
        "MLLM_test",
        "mathverse",
        "mathvision",
        "realWorldQA",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("mathvers",), "did you mean 'mathverse'"),
        (("zzz",), "there are mmmu, "),
        (("mmmu", "mmmu"), "mmmu comes twice"),
        (("a/b=x", "a=y"), "a comes twice"),
        (("mmmu=",), "it reads NAME or NAME=SOURCE"),
        (("=x",), "it reads NAME or NAME=SOURCE"),
    ],
)
def test_sets_that_can_not_be_meant(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sets_named(given)


ROWS = [
    {"problem": "<image>which?", "answer": "A", "problem_type": "multiple choice"},
    {"problem": "how many?", "answer": "3", "problem_type": "numerical"},
    {"problem": "yes or no?", "answer": "Yes", "problem_type": "free-form"},
]


def save_sets(folder: Path) -> None:
    """A folder of Parquet with images as bytes, and a file of JSON lines with images beside it."""
    (folder / "numbers").mkdir()
    rows = [{**row, "images": [{"bytes": png(i), "path": None}]} for i, row in enumerate(ROWS)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "numbers" / "test-00000-of-00001.parquet")
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(10 + i))
    lines = [json.dumps({**row, "images": [f"{i}.png"]}) for i, row in enumerate(ROWS)]
    (folder / "lines.jsonl").write_text("\n".join(lines))


# --- the command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_qwen25vl(folder / "one")
    save_tiny_qwen3vl(folder / "two")
    given = (
        f"model.path={folder / 'one'}",
        "model.dtype=float32",
        "model.device=cpu",
        "model.vision.min_pixels=784",
        "model.vision.max_pixels=784",
        "game.domain=text",
        "game.reward.function=sparring.rewards.verifiable:by_type",
        "game.prompts=x.jsonl",
    )
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(resolve(recipe("vision-sr1"), None, given).to_yaml())
    shutil.copytree(folder / "one", folder / "run" / "model")
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(models / "run", tmp_path / "run")
    (tmp_path / "two").symlink_to(models / "two")
    save_sets(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server() -> Iterator[ChatServer]:
    server = ChatServer()
    server.usual = lambda handler, request: handler.send(200, completion("Correct."))
    yield server
    server.stop()


def call(*words: object) -> Result:
    with warnings.catch_warnings():
        return CliRunner().invoke(main, ["eval", *map(str, words)])


def done(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: object) -> str:
    result = call(*words)
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.partition("Error: ")[2].split())


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_two_models_on_a_folder_and_a_file(here: Path) -> None:
    sets = ("--set", "mmmu-pro/vision=numbers", "--set", "mmmu-pro/lines=lines.jsonl", "--max-new-tokens", 6)
    out = done("vision", "run", "two", *sets)
    for folder, model in ((here / "run" / "evaluations", "run"), (here / "evaluations" / "two", "two")):
        record = read(folder / "vision.json")
        head = {"kind": "accuracy", "name": "vision", "metric": "accuracy", "model": model, "base": None}
        assert head.items() <= record.items()
        assert record["overall"]["n"] == 6
        assert {path: figures["n"] for path, figures in record["subsets"].items()} == {
            "mmmu-pro": 6,
            "mmmu-pro/vision": 3,
            "mmmu-pro/lines": 3,
        }
        assert record["settings"]["judge"] is None
        assert record["settings"]["sets"] == {"mmmu-pro/vision": "numbers", "mmmu-pro/lines": "lines.jsonl"}
        rows = [json.loads(line) for line in (folder / "vision-answers.jsonl").read_text().splitlines()]
        assert [row["gold"] for row in rows] == ["A", "3", "Yes"] * 2
        assert read_document(folder / "vision.json").subsets["mmmu-pro"].n == 6
    assert "mean of benchmarks" in out
    done("vision", "run", *sets)  # what was answered is there
    both = Methods.of([here / "run", here / "evaluations" / "two"], "vision")
    assert both.subsets == ["overall", "mmmu-pro"]


def test_with_a_judge(here: Path, server: ChatServer) -> None:
    server.script = [lambda handler, request: handler.send(200, completion("Hard to say."))]
    words = ("vision", "run", "--set", "lines=lines.jsonl", "--max-new-tokens", 6, "--judge", "j")
    out = done(*words, "--judge-url", server.url, "--concurrency", 1, "--n", 2)
    figures = read(here / "run/evaluations/vision.json")["subsets"]["lines"]
    assert (figures["n"], figures["asked_judge"], figures["unread"], figures["by_rule"]) == (2, 2, 1, 0)
    assert figures["accuracy"] == 0.5
    assert "1 answers without a verdict, counted as wrong" in " ".join(out.split())
    assert all("<reference>" in text for text in server.asked())
    done(*words, "--judge-url", server.url, "--n", 2)
    assert len(server.requests) == 2


def test_of_another_judge_another_name(here: Path, server: ChatServer) -> None:
    words = ("vision", "run", "--set", "lines=lines.jsonl", "--max-new-tokens", 6, "--judge", "j", "--name", "judged")
    done(*words, "--judge-url", server.url)
    assert read(here / "run/evaluations/judged.json")["overall"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--set", "mathvers"), "did you mean 'mathverse'"),
        (("run", "--set", "a=nowhere.jsonl"), "nowhere.jsonl"),
        (("run", "--set", "a=numbers", "--split", "train"), "no split 'train'"),
        (("run", "--set", "a=lines.jsonl", "--judge", "function:f.py:f"), "it must be a model that writes"),
        (("run", "--set", "a=lines.jsonl", "--judge", "gpt"), "--judge gpt needs a key"),
        (("run", "--set", "a=nowhere.jsonl", "--out", "lines.jsonl"), "--out: lines.jsonl is a file"),
    ],
)
def test_what_can_not_be_is_refused(
    here: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert message in refused("vision", *words)


def test_a_row_without_an_answer_is_named(here: Path) -> None:
    (here / "bad.jsonl").write_text(json.dumps({"problem": "which?", "images": ["0.png"]}))
    assert "bad.jsonl/1: the row has no answer" in refused("vision", "run", "--set", "a=bad.jsonl")


# --- lmms-eval ---------------------------------------------------------------------------------------

RESULTS = {
    "results": {
        "mmmu_val": {
            "alias": "mmmu_val",
            "mmmu_acc,none": 0.4,
            "mmmu_acc_stderr,none": "N/A",
            "mmmu_acc_stderr_clt,none": 0.016,
            "submission,none": None,
        },
        "mmvet": {"alias": "mmvet", "gpt_eval_score,none": 61.5, "gpt_eval_score_stderr,none": "N/A"},
        "super_gpqa": {"accuracy,none": 0.25, "accuracy_stderr,none": 0.01},
    },
    "n-samples": {"mmmu_val": {"original": 900, "effective": 10}, "super_gpqa": {"original": 5, "effective": 4}},
    "n-shot": {"mmmu_val": 0},
    "versions": {"mmmu_val": 0.0},
}
FAKE = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1]) / "a__model"
pathlib.Path(os.environ["FAKE_ARGUMENTS"]).write_text(json.dumps(sys.argv[1:]))
if os.environ.get("FAKE_SILENT"):
    print("Error during evaluation: no such task")
    sys.exit(0)
folder.mkdir(parents=True, exist_ok=True)
(folder / "20260102_030405_results.json").write_text(os.environ["FAKE_RESULTS"])
(folder / "20260102_030405_samples_mmmu_val.jsonl").write_text("")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package lmms_eval that writes its arguments and a results file; the path of the arguments."""
    package = tmp_path / "site" / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("FAKE_ARGUMENTS", str(tmp_path / "arguments.json"))
    monkeypatch.setenv("FAKE_RESULTS", json.dumps(RESULTS))
    return tmp_path / "arguments.json"


def test_lmms_eval_gets_its_arguments_and_its_results_are_read(fake: Path, here: Path) -> None:
    out = done("lmms-eval", "run", "--tasks", "mmmu_val, mmvet", "--limit", 10, "--gen-kwargs", "max_new_tokens=9")
    given = read(fake)
    folder = (here / "run" / "model").resolve()
    assert given[:4] == [
        "--model",
        "qwen2_5_vl",
        "--model_args",
        f"pretrained={folder},min_pixels=784,max_pixels=784",
    ]
    rest = ["--tasks", "mmmu_val,mmvet", "--batch_size", "1", "--seed", "0", "--limit", "10"]
    where = str((here / "run" / "evaluations" / "lmms-eval").resolve())
    assert given[4:] == [*rest, "--gen_kwargs", "max_new_tokens=9", "--output_path", where]
    record = read(here / "run" / "evaluations" / "lmms-eval.json")
    assert (record["kind"], record["name"], record["metric"]) == ("lmms-eval", "lmms-eval", "accuracy")
    assert {task: figures["accuracy"] for task, figures in record["subsets"].items()} == {
        "mmmu_val": 0.4,
        "super_gpqa": 0.25,
    }  # a score of 61.5 is no fraction
    assert {(row["task"], row["metric"]) for row in record["records"]} == {
        ("mmmu_val", "mmmu_acc"),
        ("mmvet", "gpt_eval_score"),
        ("super_gpqa", "accuracy"),
    }
    assert "61.5" in out
    assert read_document(here / "run" / "evaluations" / "lmms-eval.json").subsets["mmmu_val"].n == 10


def test_the_family_is_the_models(here: Path, models: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = dict.fromkeys(("gen_kwargs", "shots", "limit", "device"))
    command = lmms_command(models / "two", ["x"], tmp_path, model_args={}, batch_size=2, seed=3, **given)
    assert command[:2] == ["--model", "qwen3_vl"]
    assert command[-8:] == [
        "--tasks",
        "x",
        "--batch_size",
        "2",
        "--seed",
        "3",
        "--output_path",
        str(tmp_path.resolve()),
    ]
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="is of type llama; lmms-eval is started for qwen2_5_vl"):
        lmms_command(tmp_path / "llama", ["x"], tmp_path, model_args={}, batch_size=1, seed=0, **given)
    with pytest.raises(ValueError, match="comma"):
        lmms_command(models / "two", ["x"], tmp_path / "a,b", model_args={}, batch_size=1, seed=0, **given)
    with pytest.raises(ValueError, match="task names"):
        lmms_command(models / "two", ["a b"], tmp_path, model_args={}, batch_size=1, seed=0, **given)
    with pytest.raises(ValueError, match=r"no config\.json"):
        lmms_command(tmp_path, ["x"], tmp_path, model_args={}, batch_size=1, seed=0, **given)


def test_an_error_that_it_only_tells_is_told(fake: Path, models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FAKE_SILENT", "1")
    with pytest.raises(ValueError, match=r"lmms-eval left 0 new results files .* no such task"):
        lmms_eval(models / "two", ["x"], tmp_path / "out")


def test_without_it_the_error_names_the_command(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmms, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install git"):
        lmms_eval(models / "two", ["x"], tmp_path)
