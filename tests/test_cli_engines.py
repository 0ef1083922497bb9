"""`sparring serve-command`: what it prints, and the copy of a tied model that vLLM on a CPU needs."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from sparring.cli import main
from sparring.rollout.folders import tensor_shapes
from tiny_models import save_tiny_llama, save_tiny_qwen3


def printed(*words: object) -> str:
    result = CliRunner().invoke(main, ["serve-command", "lsp", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def served(line: str) -> Path:
    words = line.split()
    return Path(words[words.index("--model") + 1])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_on_a_gpu_the_model_is_served_as_it_is(here: Path) -> None:
    line = printed(
        "--init", "org/model", "--port", 8001, "model.revision=v2", "model.tuning=lora", "model.lora.rank=12"
    )
    assert " vllm serve org/model --host 127.0.0.1 --port 8001 " in line
    assert "--revision v2" in line
    assert line.endswith("--enable-lora --max-lora-rank 16\n")
    assert not list(here.iterdir())


def test_a_tied_model_is_copied_for_a_cpu_once_for_each_content(here: Path) -> None:
    for number, name in enumerate("ab"):
        save_tiny_llama(here / name / "model", seed=number)
    a, again, b = (served(printed("--cpu", "--init", f"{name}/model", "rollout.memory=2")) for name in "aab")
    assert a == again != b
    assert a.parent == b.parent == here
    for folder in (a, b):
        assert not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
        assert "lm_head.weight" in tensor_shapes(folder)
    time.sleep(0.01)
    shutil.rmtree(here / "a")
    save_tiny_llama(here / "a" / "model", seed=5)
    assert served(printed("--cpu", "--init", "a/model")) != a


def test_a_copy_that_was_not_finished_is_made_anew(here: Path) -> None:
    save_tiny_llama(here / "model")
    whole = served(printed("--cpu", "--init", "model"))
    partial = whole.rename(whole.with_name(f".{whole.name}.partial"))
    (partial / "model.safetensors.index.json").unlink()
    made = served(printed("--cpu", "--init", "model"))
    assert made == whole
    assert "lm_head.weight" in tensor_shapes(made)
    assert not partial.exists()


def test_an_untied_model_needs_no_copy(here: Path) -> None:
    save_tiny_qwen3(here / "model")
    line = printed("--cpu", "--init", "model", "rollout.memory=2")
    assert served(line) == here / "model"
    assert line.startswith("VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=2 python -m vllm.")
