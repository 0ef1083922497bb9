"""AlpacaEval's published figures from its stored verdicts, where the (non-commercial) data is there."""

import csv
from pathlib import Path

import pytest

from real_data import real_data
from sparring.evaluation.alpaca_eval.data import SUBSETS, load_instructions
from sparring.evaluation.alpaca_eval.figures import figures, figures_by_subset
from sparring.evaluation.alpaca_eval.length import published, read_difficulty, read_weights, refit
from sparring.evaluation.alpaca_eval.verdicts import is_switched, read_verdicts, weighted_preference

VERSIONS = {"ae1": 4, "ae2": 5}


@pytest.fixture(scope="module")
def data() -> Path:
    return real_data("alpaca_eval", "eval_set.jsonl").parent


def files(data: Path, version: str) -> list[Path]:
    found = sorted((data / "annotations" / version).glob("*.jsonl"))
    assert len(found) == VERSIONS[version]
    return found


def leaderboard(data: Path, version: str) -> dict[str, dict[str, str]]:
    with (data / f"leaderboard_{version}.csv").open(newline="") as file:
        return {row[""]: row for row in csv.DictReader(file)}


def test_the_805_instructions(data: Path) -> None:
    instructions = load_instructions(data / "eval_set.jsonl")
    assert {name: sum(item.dataset == name for item in instructions) for name in SUBSETS} == SUBSETS
    assert len(instructions) == 805
    assert all(item.references.keys() == {"gpt4_1106_preview", "text_davinci_003"} for item in instructions)


@pytest.mark.parametrize("version", VERSIONS)
def test_published_figures(data: Path, version: str) -> None:
    rows = leaderboard(data, version)
    for path in files(data, version):
        found, expected = figures(read_verdicts(path).preferences), rows[path.stem]
        for name in ("win_rate", "standard_error", "discrete_win_rate"):
            assert getattr(found, name) == pytest.approx(float(expected[name]), abs=1e-9), (path, name)
        for name in ("n_total", "n_wins", "n_wins_base", "n_draws"):
            assert getattr(found, name) == int(expected[name]), (path, name)


def test_unparsed_verdicts_are_counted(data: Path) -> None:
    assert figures(read_verdicts(data / "annotations/ae1/zephyr-7b-beta.jsonl").preferences).unparsed == 2


def test_published_length_controlled_win_rates(data: Path) -> None:
    difficulties = read_difficulty(data / "instruction_difficulty_recovered.csv")
    weights = read_weights(data / "glm_weights_ae2.csv")
    rows = leaderboard(data, "ae2")
    for path in files(data, "ae2"):
        found = published(read_verdicts(path), difficulties, weights[path.stem])
        assert found.win_rate == pytest.approx(float(rows[path.stem]["length_controlled_winrate"]), abs=1e-6), path


def test_a_refit_with_difficulties_is_near_the_published_rate(data: Path) -> None:
    """Not the same: the published fit has verdicts on lengthened and shortened baselines, which aren't public."""
    difficulties = read_difficulty(data / "instruction_difficulty_recovered.csv")
    rows = leaderboard(data, "ae2")
    for path in files(data, "ae2"):
        found = refit(read_verdicts(path), difficulties)
        assert found.win_rate == pytest.approx(float(rows[path.stem]["length_controlled_winrate"]), abs=5), path
        assert found.weights.length < 0


def test_the_stored_order_of_showing(data: Path) -> None:
    texts = {item.item_id: item.text for item in load_instructions(data / "eval_set.jsonl")}
    for path in files(data, "ae2"):
        for verdict in read_verdicts(path).each:
            assert verdict.item_id is not None
            assert is_switched(texts[verdict.item_id]) == verdict.switched, (path, verdict)


def test_preferences_from_the_stored_log_probabilities(data: Path) -> None:
    for path in files(data, "ae2"):
        judged = 0
        for verdict in read_verdicts(path).each:
            assert verdict.switched is not None
            found = weighted_preference(verdict.lp_m, verdict.lp_M, verdict.switched)
            # Without a judge: identical outputs, a draw.
            assert (1.5 if found is None else found) == pytest.approx(verdict.preference, abs=1e-9), (path, verdict)
            judged += found is not None
        assert judged >= 800


def test_subsets_make_up_the_whole(data: Path) -> None:
    verdicts = read_verdicts(files(data, "ae2")[0], load_instructions(data / "eval_set.jsonl"))
    parts = figures_by_subset(verdicts)
    assert {name: row.n_total for name, row in parts.items()} == SUBSETS
    assert sum(row.n_total * row.win_rate for row in parts.values()) / 805 == pytest.approx(
        figures(verdicts.preferences).win_rate
    )
