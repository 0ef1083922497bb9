"""Length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475): the win rate if both outputs were equally long.

    P(model wins item i) = σ(θ_len · tanh(Δ_i / std(Δ)) + θ_diff · difficulty_i + θ_0)     Δ_i = len_ref − len_model

The length-controlled win rate is the mean of that at Δ = 0. The published one takes θ from a table of weights that were
fitted with verdicts on lengthened and shortened baselines, by L1 with cross-validation; the difficulties were fitted to
GPT-4's baseline too. For another baseline or judge it must be refitted, and is then another figure: compare it with
other refitted ones only.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparring.evaluation.alpaca_eval.figures import model_share
from sparring.evaluation.alpaca_eval.records import read_text
from sparring.evaluation.alpaca_eval.verdicts import Verdict, Verdicts

PUBLISHED_BASELINE = "gpt4_1106_preview"
DIFFICULTY = "instruction_difficulty"
_LENGTH, _INTERCEPT = "np.tanh(std_delta_len)", "not_gamed_baseline.astype(float)"

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """The regression's coefficients, in logits.

    Attributes:
        length: θ_len, of tanh(Δ / std(Δ)): below 0 the judge favours the longer output.
        difficulty: θ_diff; None: fitted without difficulties.
        intercept: θ_0.
    """

    length: float
    difficulty: float | None
    intercept: float


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate and where it comes from.

    Attributes:
        win_rate: in percent.
        refitted: False: from published weights; True: fitted to the verdicts at hand, so not comparable with published
            figures.
        weights: what it was predicted from.
        penalty: λ of the fit; None where published.
    """

    win_rate: float
    refitted: bool
    weights: Weights
    penalty: float | None

    def to_json(self) -> dict[str, Any]:
        """`{"length_controlled_winrate": …, "length_control": {"refitted": …, "penalty": …, "weights": {…}}}`."""
        return {
            "length_controlled_winrate": self.win_rate,
            "length_control": {
                "refitted": self.refitted,
                "penalty": self.penalty,
                "weights": asdict(self.weights),
            },
        }


def read_difficulty(path: Path) -> dict[int, float]:
    """Difficulty by position from a CSV of the columns index (any name, first) and instruction_difficulty.

    Raises:
        ValueError: no such file, another header, or a damaged row; the message names file, line and column.
    """
    difficulties: dict[int, float] = {}
    for line, key, row in _read_csv(path, (DIFFICULTY,)):
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise ValueError(f"{path}, line {line}: its first column must be an index from 0, not {key!r}")
        difficulties[int(key)] = row[DIFFICULTY]
    return difficulties


def read_weights(path: Path) -> dict[str, Weights]:
    """Published weights by model, from AlpacaEval's weights/.../baseline_gpt4_1106_preview.csv.

    Raises:
        ValueError: no such file, another header, or a damaged row; the message names file, line and column.
    """
    return {
        key: Weights(length=row[_LENGTH], difficulty=row[DIFFICULTY], intercept=row[_INTERCEPT])
        for _, key, row in _read_csv(path, (_LENGTH, DIFFICULTY, _INTERCEPT))
    }


def published(verdicts: Verdicts, difficulties: Mapping[int, float], weights: Weights) -> LengthControlled:
    """The length-controlled win rate that AlpacaEval publishes, against GPT-4's baseline (gpt4_1106_preview).

    The mean is over all verdicts of the file, parsed or not, each with the difficulty of its *position*: so does
    AlpacaEval, also where an instruction is missing and later ones have moved up.

    Raises:
        ValueError: the verdicts are against another baseline, or there is no difficulty for a position.
    """
    if verdicts.baseline not in (None, PUBLISHED_BASELINE):
        raise ValueError(
            f"the published weights are for the baseline {PUBLISHED_BASELINE}, and these verdicts are against "
            f"{verdicts.baseline}: refit the length-controlled win rate instead"
        )
    assert weights.difficulty is not None
    difficulty_N = _difficulties(difficulties, [verdict.position for verdict in verdicts.each])
    rate = 100 * float(_logistic(weights.intercept + weights.difficulty * difficulty_N).mean())
    return LengthControlled(rate, refitted=False, weights=weights, penalty=None)


def refit(
    verdicts: Verdicts, difficulties: Mapping[int, float] | None = None, penalty: float = 1.0
) -> LengthControlled:
    """Fit the regression to these verdicts alone and predict at equal lengths.

    Minimises  Σ_i cross-entropy(share_i, P_i) + ½ λ (θ_len² + θ_diff²)  by L-BFGS. share_i is the verdict's preference
    as a share in [0, 1], so a weighted judge's doubt counts. The intercept is not penalised: the fitted mean is the
    verdicts' own. λ = 1 is weak (a standard normal prior); it keeps the fit finite where length decides every verdict.
    std(Δ) (divisor n − 1) and the mean at Δ = 0 are over all verdicts, as in AlpacaEval; the fit is over parsed ones.

    Where almost all outputs are shorter (or longer) than the baseline's, the prediction lies outside the data: on
    AlpacaEval 2's verdicts of weak models it is 1 to 4 points from the published rate with difficulties, and up to 15
    without.

    Args:
        verdicts: with both lengths.
        difficulties: by instruction id (by position where the id is unknown); None: fitted without.
        penalty: λ ≥ 0.

    Raises:
        ValueError: a verdict without lengths, no difficulty for an instruction, a negative penalty, or verdicts that
            all go to one side, where the intercept has no finite value.
    """
    if penalty < 0:
        raise ValueError(f"penalty must not be negative, got {penalty}")
    columns = [np.ones(len(verdicts.each)), _length_feature(verdicts.each)]
    if difficulties is not None:
        keys = [verdict.position if verdict.item_id is None else verdict.item_id for verdict in verdicts.each]
        columns.append(_difficulties(difficulties, keys))
    design_NF = np.stack(columns, axis=1)
    parsed = [place for place, verdict in enumerate(verdicts.each) if verdict.preference is not None]
    share_N = np.array([model_share(verdict.preference) for verdict in verdicts.each if verdict.preference is not None])
    if not parsed:
        raise ValueError("no verdict was parsed: there is nothing to fit a length-controlled win rate to")
    if share_N.max() == 0 or share_N.min() == 1:
        raise ValueError("every verdict goes to one side: there is nothing to fit a length-controlled win rate to")
    theta_F = _fit(design_NF[parsed], share_N, penalty)
    design_NF[:, 1] = 0.0
    weights = Weights(
        length=float(theta_F[1]),
        difficulty=None if difficulties is None else float(theta_F[2]),
        intercept=float(theta_F[0]),
    )
    rate = 100 * float(_logistic(design_NF @ theta_F).mean())
    return LengthControlled(rate, refitted=True, weights=weights, penalty=penalty)


def _fit(design_NF: Array, share_N: Array, penalty: float) -> Array:
    """The coefficients, intercept first; divided by n, so that the tolerances mean the same for every n."""
    from scipy.optimize import minimize

    n, features = design_NF.shape
    shrink_F = np.full(features, penalty / n)
    shrink_F[0] = 0.0

    def objective(theta_F: Array) -> tuple[float, Array]:
        logit_N = design_NF @ theta_F
        loss = (np.logaddexp(0, logit_N) - share_N * logit_N).mean() + 0.5 * float(shrink_F @ theta_F**2)
        return loss, design_NF.T @ (_logistic(logit_N) - share_N) / n + shrink_F * theta_F

    found = minimize(
        objective, np.zeros(features), jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-9, "maxiter": 10_000}
    )
    slope = float(np.abs(objective(found.x)[1]).max())
    if slope > 1e-6:
        raise ValueError(f"the length-controlled win rate didn't converge (slope {slope:.1e}): use a larger penalty")
    return found.x


def _length_feature(verdicts: Sequence[Verdict]) -> Array:
    deltas: list[int] = []
    for verdict in verdicts:
        if verdict.len_ref is None or verdict.len_model is None:
            raise ValueError(
                f"verdict {verdict.position} has no len_ref and len_model: refitting needs both outputs' lengths"
            )
        deltas.append(verdict.len_ref - verdict.len_model)
    delta_N = np.array(deltas, dtype=np.float64)
    spread = float(delta_N.std(ddof=1)) if len(delta_N) > 1 else 0.0
    # Without any spread length explains nothing, and its coefficient stays 0.
    return np.tanh(delta_N / spread) if spread else np.zeros_like(delta_N)


def _difficulties(difficulties: Mapping[int, float], keys: Sequence[int]) -> Array:
    for key in keys:
        if key not in difficulties:
            raise ValueError(f"the difficulties have none for instruction {key}; they cover {len(difficulties)}")
    return np.array([difficulties[key] for key in keys])


def _logistic(logit_N: Array) -> Array:
    return np.exp(-np.logaddexp(0, -logit_N))


def _read_csv(path: Path, columns: Sequence[str]) -> list[tuple[int, str, dict[str, float]]]:
    """(line, first column, wanted columns as numbers) of each row."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV: {error}") from error
    if not lines:
        raise ValueError(f"{path} is empty: expected a CSV file with the columns {', '.join(columns)}")
    header = lines[0][1]
    for name in columns:
        if name not in header[1:]:
            raise ValueError(f"{path}, line 1: no column {name!r} after the first; it has {', '.join(header)}")
    if len(lines) == 1:
        raise ValueError(f"{path} has a header and no rows")
    rows: dict[str, tuple[int, dict[str, float]]] = {}
    for line, (key, *cells) in lines[1:]:
        where = f"{path}, line {line}"
        if len(cells) + 1 != len(header):
            raise ValueError(f"{where}: expected {len(header)} columns, found {len(cells) + 1}")
        if key in rows:
            raise ValueError(f"{where}: {key!r} was given before")
        given = dict(zip(header[1:], cells, strict=True))
        rows[key] = line, {name: _number(given[name], where, name) for name in columns}
    return [(line, key, row) for key, (line, row) in rows.items()]


def _number(text: str, where: str, column: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise ValueError(f"{where}: {column!r} must be a number, not {text!r}")
    return number
