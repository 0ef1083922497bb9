"""The lm-evaluation-harness as a program: its arguments, its results as records, its failures; a script plays it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparring.evaluation import harness
from sparring.evaluation.harness import HarnessRecord, lm_eval, read_results

RESULTS = {
    "results": {
        "gsm8k": {
            "name": "gsm8k",
            "alias": "gsm8k",
            "sample_len": 5,
            "exact_match,strict-match": 0.4,
            "exact_match_stderr,strict-match": 0.24,
            "exact_match,flexible-extract": 0.6,
            "exact_match_stderr,flexible-extract": "N/A",
        },
        "mmlu": {"acc,none": 0.25, "acc_stderr,none": 0.01, "alias": "mmlu"},
    },
    "n-samples": {"gsm8k": {"original": 1319, "effective": 5}},
    "n-shot": {"gsm8k": 5},
    "versions": {"gsm8k": 3.0, "mmlu": 2},
}

FAKE = """
import json, os, pathlib, sys
path = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1])
pathlib.Path(os.environ["FAKE_ARGUMENTS"]).write_text(json.dumps(sys.argv[1:]))
said = os.environ.get("FAKE_FAILURE")
if said:
    sys.exit(said)
path.with_name(f"{path.stem}_2026-01-02T03-04-05.json").write_text(os.environ["FAKE_RESULTS"])
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package lm_eval that writes its arguments and a results file; the path of the arguments."""
    package = tmp_path / "site" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("FAKE_ARGUMENTS", str(tmp_path / "arguments.json"))
    monkeypatch.setenv("FAKE_RESULTS", json.dumps(RESULTS))
    return tmp_path / "arguments.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a=model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def test_the_arguments_and_the_records(fake: Path, model: Path, tmp_path: Path) -> None:
    records = lm_eval(
        model,
        ["gsm8k", "mmlu"],
        tmp_path / "out",
        shots=5,
        limit=7,
        batch_size=4,
        device="cpu",
        dtype="float32",
        seed=3,
    )
    assert json.loads(fake.read_text(encoding="utf-8")) == [
        *("--model", "hf", "--model_args", f"pretrained={model.resolve()},dtype=float32", "--tasks", "gsm8k,mmlu"),
        *("--batch_size", "4", "--seed", "3", "--num_fewshot", "5", "--limit", "7", "--device", "cpu"),
        *("--apply_chat_template", "--output_path", str((tmp_path / "out" / "results.json").resolve())),
    ]
    assert records == [
        HarnessRecord("gsm8k", "exact_match", "strict-match", 0.4, 0.24, 5, 5, "3.0"),
        HarnessRecord("gsm8k", "exact_match", "flexible-extract", 0.6, None, 5, 5, "3.0"),
        HarnessRecord("mmlu", "acc", "none", 0.25, 0.01, None, None, "2"),
    ]


def test_defaults_leave_the_harness_its_own(fake: Path, model: Path, tmp_path: Path) -> None:
    lm_eval(model, ["arc_easy"], tmp_path / "out", chat_template=False)
    arguments = json.loads(fake.read_text(encoding="utf-8"))
    assert not {"--num_fewshot", "--limit", "--device", "--apply_chat_template"} & set(arguments)
    assert not {"--confirm_run_unsafe_code", "--trust_remote_code"} & set(arguments)


def test_a_second_run_reads_its_own_results(
    fake: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results_before.json").write_text("{}", encoding="utf-8")
    assert len(lm_eval(model, ["mmlu"], tmp_path / "out")) == 3
    with pytest.raises(ValueError, match="left 0 new results files"):
        lm_eval(model, ["mmlu"], tmp_path / "out")


def test_its_failure_is_ours(fake: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAILURE", "Tasks not found: mlu")
    with pytest.raises(RuntimeError, match=r"failed \(exit status 1\): Tasks not found: mlu"):
        lm_eval(model, ["mlu"], tmp_path / "out")


def test_it_may_take_too_long(fake: Path, model: Path, tmp_path: Path) -> None:
    Path(fake.parent / "site" / "lm_eval" / "__main__.py").write_text("import time; time.sleep(600)", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"took longer than 0\.5 seconds"):
        lm_eval(model, ["mmlu"], tmp_path / "out", seconds=0.5)


def test_not_installed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'sparring\[lm-eval\]'"):
        lm_eval(model, ["mmlu"], tmp_path)


def test_folders_and_tasks_it_can_not_take(fake: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no model's folder: it has no config.json"):
        lm_eval(tmp_path, ["mmlu"], tmp_path)
    comma = tmp_path / "a,b"
    model.rename(comma)
    with pytest.raises(ValueError, match="can't take a path with any of"):
        lm_eval(comma, ["mmlu"], tmp_path)
    comma.rename(model)
    for tasks in ([], ["a b"], [""], ["a,b"]):
        with pytest.raises(ValueError, match="tasks must be a list"):
            lm_eval(model, tasks, tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "can't be read"),
        ("[]", "holds no results"),
        ("{}", "holds no results"),
        ({"results": {}}, "holds no results"),
        ({"results": {"a": 3}}, "results of a are no object"),
        ({"results": {"a": {"alias": "a", "acc_stderr,none": 0.1, "acc,none": "N/A"}}}, "hold no figure"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, content: Any, why: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"results.json.*{why}"):
        read_results(path)
