"""The command line, in this process where that is enough; a child process for signals and import time."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparring.cli import main
from sparring.recipes import RECIPES
from sparring.runfolder import RunFolder

# A short run: seconds, not minutes.
SMALL = (
    "game.n_queries=4",
    "game.n_answers=2",
    "game.challenger.max_new_tokens=6",
    "game.solver.max_new_tokens=6",
    "evaluation.n=2",
    "evaluation.final_n=2",
)


@pytest.fixture(scope="module")
def model(random_model: Path) -> Path:
    """An untrained arena model."""
    return random_model


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A demo of two steps and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    result = sparring("demo", "--steps", 2, "--out", run, "--seed", 5, f"model.path={model}", *SMALL)
    assert result.exit_code == 0, result.output
    return run, result


def sparring(*words: object) -> Result:
    with warnings.catch_warnings():
        return CliRunner().invoke(main, [str(word) for word in words])


def refused(code: int, *words: object) -> str:
    """The one clean message of a refusal."""
    result = sparring(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


# --- answers without a run ---------------------------------------------------------------------------


def test_help_and_version_name_the_commands() -> None:
    text = sparring("--help").output
    for name in ("demo", "train", "eval", "report", "samples", "recipes"):
        assert f"\n  {name} " in text
        assert sparring(name, "--help").exit_code == 0
    assert importlib.metadata.version("sparring") in sparring("--version").output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom sparring.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'pydantic', 'numpy', 'rich', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("\n[]\n")


def test_help_answers_in_under_half_a_second() -> None:
    def run() -> float:
        began = time.perf_counter()
        words = [sys.executable, "-c", "from sparring.cli import main; main(['--help'])"]
        subprocess.run(words, capture_output=True, timeout=60, check=True)
        return time.perf_counter() - began

    assert min(run() for _ in range(10)) < 0.5  # the quickest: the others wait for a busy machine


def test_recipes_lists_presets_that_resolve() -> None:
    found = re.findall(r"^(\S+) .*\n +presets: (.*)$", sparring("recipes").output, re.MULTILINE)
    shown = {name: presets.split(", ") for name, presets in found}
    assert set(shown) == set(RECIPES)
    for name, presets in shown.items():
        assert "paper" in presets
        for preset in presets:
            assert sparring("recipes", name, "--preset", preset).exit_code == 0


def test_a_recipe_prints_as_a_file_for_config(tmp_path: Path) -> None:
    file = tmp_path / "lsp.yaml"
    file.write_text(sparring("recipes", "lsp", "--preset", "paper").output)
    assert file.read_text().startswith("# LSP:")
    resolved = sparring("train", "--config", file, "--dry-run").output
    assert yaml.safe_load(resolved) == yaml.safe_load(file.read_text())
    assert yaml.safe_load(resolved)["learner"]["lr"] == 3e-6


def test_settings_show_value_and_meaning() -> None:
    assert "learner.lr=3e-06\n    peak learning rate (AdamW)\n" in sparring("recipes", "--settings").output
    assert "learner.lr=0.0003\n" in sparring("recipes", "lsp", "--settings").output


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(RECIPES)),
    st.integers(1, 99),
    st.floats(1e-9, 1),
    st.sampled_from(["a", "1e5", "null", "x y"]),
)
def test_a_dry_run_repeats_itself(tmp_path: Path, name: str, steps: int, lr: float, path: str) -> None:
    first = sparring(
        "train", name, "--dry-run", "--init", path, "--reward", "a.py:b", f"steps={steps}", f"learner.lr={lr}"
    )
    assert first.exit_code == 0, first.output
    settings_ = yaml.safe_load(first.output)
    assert (settings_["steps"], settings_["learner"]["lr"], settings_["game"]["reward"]["function"]) == (
        steps,
        lr,
        "a.py:b",
    )
    file = tmp_path / "again.yaml"
    file.write_text(first.output)
    assert sparring("train", "--config", file, "--dry-run").output == first.output
    assert sparring("train", name, "--config", file, "--dry-run", "seed=9").output != first.output


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, ["trian"], "Did you mean 'train'?"),
        (2, ["train", "lsp", "--sed", "1"], "No such option"),
        (2, ["train"], "name a RECIPE"),
        (2, ["demo", "--steps", "0"], "--steps"),
        (2, ["demo", "--seed", "-1"], "--seed"),
        (2, ["eval", "run", "--seed", "-1"], "--seed"),
        (1, ["train", "lsp", "seed=-1"], "seed: Input should be greater than or equal to 0"),
        (2, ["recipes", "--preset", "paper"], "needs the recipe's NAME"),
        (1, ["train", "lps"], "did you mean 'lsp'?"),
        (1, ["recipes", "grop"], "did you mean 'grpo'?"),
        (1, ["train", "lsp", "--preset", "papr"], "it has: arena"),
        (1, ["train", "lsp", "preset=paper"], "give it as --preset"),
        (1, ["demo", "learner.lrr=1"], "did you mean 'learner.lr'?"),
        (1, ["train", "lsp", "--config", "no/such.yaml"], "no/such.yaml"),
        (1, ["train", "--resume", "no/such"], "no/such holds no run"),
        (1, ["report", "no/such"], "no/such is no run folder"),
    ],
)
def test_a_refusal_is_one_message(code: int, words: list[str], message: str) -> None:
    text = refused(code, *words)
    assert message in text
    assert text.count(message) == 1


def test_debug_gives_the_traceback() -> None:
    result = sparring("train", "lps", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "ConfigError: there is no recipe 'lps'" in result.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=/no/such/model", "/no/such/model: no such folder"),
        ("game.solver.max_new_tokens=128", "no room in the model's context of 128 tokens"),
        ("game.reward.function=nowhere.py:f", f"there is no file {Path('nowhere.py').absolute()}"),
        ("trackers=[tensorbord]", "did you mean 'tensorboard'?"),
    ],
)
def test_what_does_not_fit_leaves_no_folder(model: Path, tmp_path: Path, override: str, message: str) -> None:
    out = tmp_path / "run"
    assert message in refused(1, "train", "lsp", "--init", model, "--out", out, *SMALL, override)
    assert not out.exists()


def test_a_model_without_a_base_is_not_evaluated(model: Path) -> None:
    assert "give --base MODEL" in refused(2, "eval", model)


# --- whole runs --------------------------------------------------------------------------------------


def test_the_demo_ends_with_table_report_and_paths(finished: tuple[Path, Result]) -> None:
    run, result = finished
    for text in (
        "step 2/2",
        "Base against trained",
        "overall",
        "report.html",
        "metrics.jsonl",
        "sparring train lsp",
    ):
        assert text in result.output
    assert "Loading weights" not in result.output + result.stderr
    assert (run / "report.html").is_file()
    assert set(json.loads((run / "evaluation.json").read_text())["subsets"]) >= {"easy", "hard"}
    assert RunFolder(run).config.read_text().count("seed: 5\n") == 1


def test_a_second_run_in_the_same_folder_is_refused(finished: tuple[Path, Result]) -> None:
    run, _ = finished
    before = (run / "metrics.jsonl").read_bytes()
    assert "holds a run already" in refused(1, "train", "lsp", "--out", run)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_eval_repeats_the_runs_own_comparison(finished: tuple[Path, Result], tmp_path: Path) -> None:
    run, _ = finished
    own = json.loads((run / "evaluation.json").read_text())
    result = sparring("eval", run / "model", "--json", tmp_path / "again.json")
    assert result.exit_code == 0, result.output
    assert "Base against trained" in result.output
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["overall"] == own["overall"]
    assert again["subsets"] == own["subsets"]


def test_eval_with_other_questions_leaves_the_runs_evaluation(finished: tuple[Path, Result], model: Path) -> None:
    run, _ = finished
    before = (run / "evaluation.json").read_bytes()
    assert sparring("eval", run, "--n", 3, "--seed", 9, "--base", model).exit_code == 0
    assert (run / "evaluation.json").read_bytes() == before


def test_a_run_that_an_alarm_stops_leaves_its_report(model: Path, tmp_path: Path) -> None:
    alarm = ("health.rules.longer.patience=1", "health.rules.longer.warning=0.01", "health.rules.longer.alarm=0.02")
    soon = ("health.first_steps=1", "health.warning_period=1", "health.match_every=0")
    run = tmp_path / "run"
    message = refused(1, "demo", "--steps", 4, "--out", run, f"model.path={model}", *SMALL, *soon, *alarm)
    assert "health alarm 'longer'" in message
    assert f"Go on with: sparring train --resume {run}" in message
    assert f"Look at what happened: sparring report {run}" in message
    assert "longer" in Path(sparring("report", run).output.strip()).read_text(encoding="utf-8")


def test_report_prints_its_path(finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = finished
    monkeypatch.chdir(run.parent)
    result = sparring("report", run)
    assert result.exit_code == 0
    assert result.output == f"{run.name}/report.html\n"


def test_a_failing_reward_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    reward, out = tmp_path / "score.py", tmp_path / "run"
    reward.write_text(
        "calls = 0\ndef score(queries, answers):\n    global calls\n    calls += 1\n"
        "    return [0.0] * (len(answers) - (calls == 3))\n"
    )
    common = ("evaluation.every=0", "checkpoint.every=1", "steps=5", "game.prompts=arena:easy")
    text = refused(1, "train", "grpo", "--init", model, "--out", out, "--reward", f"{reward}:score", *SMALL, *common)
    assert "returned 7 scores for 8 answers" in text
    assert f"sparring train --resume {out}" in text
    assert RunFolder(out).read_metrics()[-1]["step"] == 2


def test_a_run_that_fails_before_its_first_checkpoint_goes_on_from_the_start(model: Path, tmp_path: Path) -> None:
    reward, out = tmp_path / "score.py", tmp_path / "run"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "reverse:abc"}\n' * 4)
    common = (f"game.prompts={prompts}", "game.domain=text", "steps=1")
    reward.write_text("def score(prompts, completions, **columns):\n    return [float('inf')] * len(completions)\n")
    text = refused(1, "train", "grpo", "--init", model, "--out", out, "--reward", f"{reward}:score", *SMALL, *common)
    assert not list((out / "checkpoints").glob("step-*"))
    assert text.endswith(f"Go on with: sparring train --resume {out}\n")
    reward.write_text(reward.read_text().replace("float('inf')", "1.0"))
    result = sparring("train", "--resume", out)
    assert result.exit_code == 0, result.output
    assert "The text domain has no held-out test, so the model was not compared with its start." in result.output
    assert "Base against trained" not in result.output


@pytest.mark.parametrize(
    ("where", "settings_named"),
    [
        ("sparring.learner.Learner.update", ("while updating", "learner.token_budget", "model.gradient_checkpointing")),
        ("sparring.games.dataset.Dataset.play", ("while sampling", "model.cache_tokens", "game.n_queries")),
        ("sparring.games.dataset.Dataset.payoffs", ("while scoring the answers", "game.reward.token_budget")),
    ],
)
def test_out_of_memory_names_the_settings_that_help(
    where: str, settings_named: tuple[str, ...], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(where, full)
    out = tmp_path / "run"
    text = refused(1, "train", "grpo", "--init", model, "--out", out, *SMALL, "evaluation.every=0")
    for name in (*settings_named, "in its config.yaml", f"train --resume {out}"):
        assert name in text


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_names_the_command_that_completes_the_run(
    model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = [
        "train",
        "lsp-zero",
        "--init",
        str(model),
        "--out",
        "run",
        *SMALL,
        "steps=400",
        "evaluation.every=0",
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", "from sparring.cli import main; main()", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 90
    while time.monotonic() < deadline and child.poll() is None and not (
        metrics.exists() and metrics.read_bytes().count(b"\n") > 3
    ):  # fmt: skip
        time.sleep(0.05)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == code, errors
    stopped = RunFolder(tmp_path / "run").read_metrics()[-1]["step"]
    assert f"after step {stopped};" in errors
    assert errors.endswith("Go on with: sparring train --resume run\n")
    assert "Traceback" not in errors
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("steps: 400", f"steps: {int(str(stopped)) + 2}"))
    result = sparring("train", "--resume", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert f"resuming after step {stopped}" in result.output
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
