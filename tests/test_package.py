"""The wheel carries everything a user needs: code, model, prompts, page template."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_model_prompts_and_page(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "src" / "sparring").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT / "src").as_posix() in names
    assert {f"sparring/{world}/model/model.safetensors" for world in ("arena", "pictures")} <= names
    assert wheel.stat().st_size < 8 * 2**20
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


@pytest.mark.slow
def test_the_wheel_runs_away_from_the_sources(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = "import sparring, sparring.cli as c; print(sparring.__file__); c.main()"
    settings = ["demo", "--steps", "2", "--out", "run", "evaluation.final_n=5", "evaluation.n=5"]
    done = subprocess.run(
        [sys.executable, "-c", code, *settings],
        env={**os.environ, "PYTHONPATH": str(target)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(target) in done.stdout.splitlines()[0]
    assert (tmp_path / "run" / "report.html").is_file()
