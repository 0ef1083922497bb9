"""What the documentation shows runs as shown."""

import re
from pathlib import Path

import pytest

from sparring.config import resolve
from sparring.recipes import recipe
from sparring.run import train
from sparring.runfolder import RunFolder

ROOT = Path(__file__).parent.parent
SMALL = ("evaluation.final_n=10", "evaluation.n=10", "game.n_queries=6", "game.n_answers=4")


def test_a_game_of_ones_own_in_under_sixty_lines_trains(tmp_path: Path) -> None:
    example = ROOT / "examples" / "majority.py"
    assert len(example.read_text().splitlines()) < 60
    settings = ("game.kind=custom", f"game.custom={example}:build", "steps=3", *SMALL)
    evaluation = train(resolve(recipe("grpo"), None, settings), tmp_path / "run")
    assert evaluation is not None and evaluation.overall.n == 20
    steps = RunFolder(tmp_path / "run").read_metrics()[1:]
    assert len(steps) == 3
    assert all(step["game/answered"] >= 4 and step["tokens/trained"] > 0 for step in steps)
    paid = [turn for turn in RunFolder(tmp_path / "run").read_turns() if turn["payoff"] is not None]
    assert {turn["role"] for turn in paid} == {"solver"}
    assert {turn["payoff"] for turn in paid} <= {0.0, 1.0}


def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shorter = block.replace('"steps=50"', f'"steps=2", {", ".join(map(repr, SMALL))}')
    assert shorter != block
    monkeypatch.chdir(tmp_path)
    exec(compile(shorter, "README.md", "exec"), {})  # the README is ours
    assert "'easy'" in capsys.readouterr().out
    assert (tmp_path / "runs" / "fifty" / "evaluation.json").is_file()


def test_every_command_the_readme_shows_exists() -> None:
    from sparring.cli import main

    shown = re.findall(r"^sparring (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(shown) >= {"train", "eval", "report", "recipes"}
    assert set(shown) <= set(main.commands)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "LOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_every_link_within_the_repository_resolves(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if not target.startswith("https://"):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
    assert not re.search(r"@[A-Z]+\d?@", text)
