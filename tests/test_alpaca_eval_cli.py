"""`alpaca-eval` on files: the table, the JSON, and what it refuses."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from sparring.cli_alpaca import alpaca_eval
from sparring.console import Commands


@click.group(cls=Commands)
def main() -> None:
    """As the program has it: errors become one message."""


main.add_command(alpaca_eval)

VERDICTS = [
    {"id": 0, "row": 0, "preference": 2, "len_ref": 10, "len_model": 6},
    {"id": 1, "row": 1, "preference": 1, "len_ref": 6, "len_model": 10},
    {"id": 2, "row": 2, "preference": 1.25, "len_ref": 9, "len_model": 8},
    {"id": 3, "row": 3, "preference": None, "len_ref": 9, "len_model": 9},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.jsonl").write_text("\n".join(json.dumps(row) for row in VERDICTS))
    names = ("koala", "koala", "[red]odd", "vicuna")
    rows = [{"dataset": name, "instruction": f"Say {number}"} for number, name in enumerate(names)]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    (tmp_path / "difficulty.csv").write_text("index,instruction_difficulty\n0,0\n1,0\n2,0\n3,0\n")
    (tmp_path / "weights.csv").write_text(
        ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\ntiny,-1,1,0\nbig,-1,1,9\n"
    )
    return tmp_path


def call(*words: object) -> Result:
    return CliRunner().invoke(main, ["alpaca-eval", *map(str, words)])


def refused(code: int, *words: object) -> str:
    result = call(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return " ".join(result.stderr.split())


def test_json_has_the_figures(folder: Path) -> None:
    result = call("--annotations", folder / "tiny.jsonl", "--instructions", folder / "set.json", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == {
        "model": "tiny",
        "baseline": None,
        "win_rate": pytest.approx(100 * 1.25 / 3),
        "standard_error": pytest.approx(100 * ((0.583333**2 + 0.416667**2 + 0.166667**2) / 2 / 3) ** 0.5, abs=1e-3),
        "discrete_win_rate": pytest.approx(100 / 3),
        "n_total": 3,
        "n_wins": 1,
        "n_wins_base": 2,
        "n_draws": 0,
        "unparsed": 1,
        "subsets": {"[red]odd": {**dict.fromkeys(("n_total", "n_wins_base"), 1), **ODD}, "koala": KOALA},
    }


ODD = {
    "win_rate": 25.0,
    "standard_error": None,
    "discrete_win_rate": 0.0,
    "n_wins": 0,
    "n_draws": 0,
    "unparsed": 0,
}
KOALA = {
    "win_rate": 50.0,
    "standard_error": pytest.approx(50),
    "discrete_win_rate": 50.0,
    "n_total": 2,
    "n_wins": 1,
    "n_wins_base": 1,
    "n_draws": 0,
    "unparsed": 0,
}


def test_length_controlled_published_and_refitted(folder: Path) -> None:
    files = ("--annotations", folder / "tiny.jsonl", "--json")
    tables = ("--difficulty", folder / "difficulty.csv", "--weights", folder / "weights.csv")
    found = json.loads(call(*files, *tables).stdout)
    assert found["length_controlled_winrate"] == 50
    assert found["length_control"]["refitted"] is False
    assert found["subsets"] == {}
    assert json.loads(call(*files, *tables, "--row", "big").stdout)["length_controlled_winrate"] > 99
    for more in ((), tables[:2]):
        found = json.loads(call(*files, "--refit-length", *more).stdout)
        assert found["length_control"]["refitted"] is True
        assert 0 < found["length_controlled_winrate"] < 100
        assert (found["length_control"]["weights"]["difficulty"] is None) == (not more)


def test_the_table(folder: Path) -> None:
    result = call("--annotations", folder / "tiny.jsonl", "--instructions", folder / "set.json", "--refit-length")
    assert result.exit_code == 0, result.output
    assert "AlpacaEval: tiny" in result.stdout
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert lines["overall"] == ["overall", "3", "41.67", "30.05", "33.33", "1/0/2"]
    assert lines["koala"] == ["koala", "2", "50.00", "50.00", "50.00", "1/0/1"]
    assert lines["[red]odd"][3] == "–"
    assert "(refitted to these verdicts)" in result.stdout
    assert "1 unparsed verdicts are left out." in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either a RUN_OR_MODEL to judge, or --annotations"),
        (("--annotations", "a", "--weights", "w"), "--weights needs --difficulty"),
        (("--annotations", "a", "--weights", "w", "--difficulty", "d", "--refit-length"), "does without --weights"),
        (("--annotations", "a", "--difficulty", "d"), "--difficulty needs --weights"),
        (("--annotations", "a", "--row", "m"), "--row names a row of --weights"),
    ],
)
def test_options_that_do_not_fit(words: tuple[str, ...], message: str) -> None:
    assert message in refused(2, *words)


def test_damaged_files(folder: Path) -> None:
    verdicts = folder / "tiny.jsonl"
    assert "there is no file" in refused(1, "--annotations", folder / "gone.jsonl")
    (folder / "empty.jsonl").write_text("")
    assert "empty.jsonl is empty" in refused(1, "--annotations", folder / "empty.jsonl")
    (folder / "bad.jsonl").write_text(verdicts.read_text() + "\n{oh}")
    assert "bad.jsonl, line 5 is not JSON" in refused(1, "--annotations", folder / "bad.jsonl")
    (folder / "column.jsonl").write_text('{"id": 0, "winner": 1}')
    assert "line 1 has no 'preference'; it has 'id', 'winner'" in refused(1, "--annotations", folder / "column.jsonl")
    (folder / "none.jsonl").write_text('{"id": 0, "preference": null}')
    assert "none of the 1 verdicts was parsed" in refused(1, "--annotations", folder / "none.jsonl")
    wrong = ("--annotations", verdicts, "--difficulty", folder / "weights.csv", "--weights", folder / "difficulty.csv")
    assert "must be an index from 0, not 'tiny'" in refused(1, *wrong)
    nobody = ("--annotations", verdicts, "--difficulty", folder / "difficulty.csv", "--weights", folder / "weights.csv")
    assert "has no row 'nobody'" in refused(1, *nobody, "--row", "nobody")
    assert "there is no file" in refused(1, "--annotations", verdicts, "--instructions", folder / "gone.json")
