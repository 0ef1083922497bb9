"""The length-controlled win rate: by hand, recovered from simulated verdicts, and its files."""

from math import log
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from sparring.evaluation.alpaca_eval.figures import figures
from sparring.evaluation.alpaca_eval.length import (
    LengthControlled,
    Weights,
    published,
    read_difficulty,
    read_weights,
    refit,
)
from sparring.evaluation.alpaca_eval.verdicts import Verdict, Verdicts

WEIGHTS_HEADER = ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\n"


def verdicts(*rows: tuple[float | None, int, int], baseline: str | None = None) -> Verdicts:
    """From (preference, len_ref, len_model)."""
    each = [Verdict(i, preference, i, None, ref, own) for i, (preference, ref, own) in enumerate(rows)]
    return Verdicts("m", baseline, each)


def simulated(n: int, length: float, difficulty: float, intercept: float) -> tuple[Verdicts, dict[int, float]]:
    rng = np.random.default_rng(3)
    ref_N, own_N, hard_N = rng.integers(100, 2000, n), rng.integers(100, 1500, n), rng.normal(size=n)
    delta_N = (ref_N - own_N).astype(float)
    logit_N = length * np.tanh(delta_N / delta_N.std(ddof=1)) + difficulty * hard_N + intercept
    won_N = rng.random(n) < 1 / (1 + np.exp(-logit_N))
    rows = [(2.0 if won else 1.0, int(ref), int(own)) for won, ref, own in zip(won_N, ref_N, own_N, strict=True)]
    return verdicts(*rows), dict(enumerate(hard_N.tolist()))


# --- published ---------------------------------------------------------------------------------------


def test_published_by_hand() -> None:
    # Logits ln 3 + 2 · {0, −ln 3}: probabilities ¾ and ¼; lengths and preferences don't matter.
    found = published(
        verdicts((None, 5, 9), (2, 1, 1), baseline="gpt4_1106_preview"), {0: 0.0, 1: -log(3)}, Weights(-1, 2.0, log(3))
    )
    assert found.win_rate == pytest.approx(50)
    assert not found.refitted
    assert found.penalty is None


def test_published_takes_difficulties_by_position() -> None:
    each = [Verdict(0, 1.0, item_id=0), Verdict(1, 1.0, item_id=5)]
    assert published(Verdicts("m", None, each), {0: 0.0, 1: 0.0, 5: 99.0}, Weights(0, 1.0, 0)).win_rate == 50


def test_published_refuses_other_baselines_and_missing_difficulties() -> None:
    with pytest.raises(ValueError, match="for the baseline gpt4_1106_preview, and these verdicts are against base"):
        published(verdicts((1, 2, 3), baseline="base"), {0: 0.0}, Weights(0, 1.0, 0))
    with pytest.raises(ValueError, match="none for instruction 1; they cover 1"):
        published(verdicts((1, 2, 3), (1, 2, 3)), {0: 0.0}, Weights(0, 1.0, 0))


# --- refitted ----------------------------------------------------------------------------------------


def test_refit_by_hand() -> None:
    # Two lengths, two shares: the model is saturated. Baseline longer (Δ = +4): .9, logit ln 9; baseline shorter
    # (Δ = −4): .5, logit 0. θ_0 is their middle, ln 3; at equal length ¾.
    found = refit(verdicts((1.9, 10, 6), (1.5, 6, 10)), penalty=0)
    assert found.win_rate == pytest.approx(75, abs=1e-5)
    assert found.weights.intercept == pytest.approx(log(3), abs=1e-6)
    # Δ / std = 4 / √32 in both directions.
    assert found.weights.length == pytest.approx(log(3) / np.tanh(4 / np.sqrt(32)), abs=1e-6)
    assert found.weights.difficulty is None
    assert found.refitted
    assert found.penalty == 0
    assert found.to_json() == {
        "length_controlled_winrate": found.win_rate,
        "length_control": {
            "refitted": True,
            "penalty": 0,
            "weights": {"length": found.weights.length, "difficulty": None, "intercept": found.weights.intercept},
        },
    }


def test_refit_recovers_the_coefficients() -> None:
    given, difficulties = simulated(40_000, length=-1.5, difficulty=0.8, intercept=-0.7)
    found = refit(given, difficulties)
    assert found.weights.length == pytest.approx(-1.5, abs=0.06)
    assert found.weights.difficulty == pytest.approx(0.8, abs=0.05)
    assert found.weights.intercept == pytest.approx(-0.7, abs=0.05)
    truth = 100 * np.mean(1 / (1 + np.exp(0.7 - 0.8 * np.array(list(difficulties.values())))))
    assert found.win_rate == pytest.approx(truth, abs=1)
    # The model is paid for its brevity: its outputs are shorter, so its raw win rate is lower.
    assert figures(given.preferences).win_rate < found.win_rate - 3


def test_refit_minimises_the_penalised_loss() -> None:
    """Against another method that knows no gradient."""
    given, difficulties = simulated(60, -1.0, 0.5, 0.2)
    delta_N = np.array([item.len_ref - item.len_model for item in given.each], float)  # type: ignore[operator]
    design = np.stack([np.ones(60), np.tanh(delta_N / delta_N.std(ddof=1)), list(difficulties.values())], 1)
    share = np.array([item.preference - 1 for item in given.each])  # type: ignore[operator]

    def loss(theta: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-design @ theta))
        return float(-(share * np.log(p) + (1 - share) * np.log(1 - p)).sum() + 0.5 * 3.0 * (theta[1:] ** 2).sum())

    expected = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    found = refit(given, difficulties, penalty=3.0).weights
    assert (found.intercept, found.length, found.difficulty) == pytest.approx(tuple(expected), abs=1e-5)


def test_without_spread_the_refit_is_the_win_rate() -> None:
    given = verdicts((2, 5, 5), (1.25, 7, 7), (None, 9, 9), (1, 5, 5))
    found = refit(given)
    assert found.weights.length == 0
    assert found.win_rate == pytest.approx(figures(given.preferences).win_rate, abs=1e-4)


def test_length_that_decides_every_verdict_stays_finite() -> None:
    found = refit(verdicts(*[(2.0, 1, 9), (1.0, 9, 1)] * 20))
    assert found.win_rate == pytest.approx(50, abs=1e-4)
    assert -20 < found.weights.length < -2


def test_refit_takes_difficulties_by_instruction() -> None:
    each = [Verdict(0, 1.8, 3, None, 4, 4), Verdict(1, 1.2, 7, None, 4, 4)]
    found = refit(Verdicts("m", None, each), {3: 1.0, 7: -1.0}).weights
    # Symmetric, so θ_0 = 0, and 2 (σ(θ) − .8) + θ = 0.
    assert found.intercept == pytest.approx(0, abs=1e-6)
    assert found.difficulty is not None
    assert 1 / (1 + np.exp(-found.difficulty)) == pytest.approx(0.8 - found.difficulty / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "penalty", "message"),
    [
        (verdicts((None, 1, 2)), 1, "no verdict was parsed"),
        (verdicts((1, 1, 2), (1, 3, 1)), 1, "every verdict goes to one side"),
        (verdicts((2, 1, 2), (2, 3, 1)), 1, "every verdict goes to one side"),
        (verdicts((2, 1, 2)), -1, "penalty must not be negative"),
        (Verdicts("m", None, [Verdict(4, 2.0)]), 1, "verdict 4 has no len_ref and len_model"),
    ],
)
def test_refit_refuses(given: Verdicts, penalty: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refit(given, penalty=penalty)


def test_refit_without_difficulty_for_an_instruction() -> None:
    with pytest.raises(ValueError, match="none for instruction 0"):
        refit(verdicts((2, 1, 2)), {1: 0.0})


# --- files -------------------------------------------------------------------------------------------


def test_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_text(WEIGHTS_HEADER + "one,-1.5,0.5,0.25\n\ntwo,1,2,3\n")
    assert read_weights(path) == {"one": Weights(-1.5, 0.5, 0.25), "two": Weights(1, 2, 3)}
    path.write_text(",instruction_difficulty\r\n0,0.5\r\n7,-1e-3\r\n")
    assert read_difficulty(path) == {0: 0.5, 7: -0.001}
    assert isinstance(published(verdicts((1, 1, 1)), {0: 0.0}, Weights(0, 1.0, 0)), LengthControlled)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("index,instruction_difficulty\n", "a header and no rows"),
        (
            "index,hardness\n0,1\n",
            r"line 1: no column 'instruction_difficulty' after the first; it has index, hardness",
        ),
        ("instruction_difficulty\n1\n", "no column 'instruction_difficulty' after the first"),
        ("index,instruction_difficulty\n0,1\n1,x\n", "line 3: 'instruction_difficulty' must be a number, not 'x'"),
        ("index,instruction_difficulty\n0,nan\n", "must be a number"),
        ("index,instruction_difficulty\n0\n", "line 2: expected 2 columns, found 1"),
        ("index,instruction_difficulty\n0,1,2\n", "line 2: expected 2 columns, found 3"),
        ("index,instruction_difficulty\n-1,1\n", "must be an index from 0, not '-1'"),
        ("index,instruction_difficulty\n" + "9" * 5000 + ",1\n", "must be an index from 0"),
        ("index,instruction_difficulty\n0,1\n0,1\n", "line 3: '0' was given before"),
        ("index,instruction_difficulty\n0," + "1" * 200_000 + "\n", "is not CSV"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_difficulty(path)
    assert "d.csv" in str(caught.value)


def test_weights_need_all_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    path.write_text(",np.tanh(std_delta_len),instruction_difficulty\nm,1,2\n")
    with pytest.raises(ValueError, match="no column 'not_gamed_baseline"):
        read_weights(path)
    with pytest.raises(ValueError, match="there is no file"):
        read_weights(tmp_path / "gone.csv")
