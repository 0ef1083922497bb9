"""The pairs that a run's judges compared, as columns for a page: ours in both orders, AlpacaEval's in one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparring.evaluation.alpaca_eval.verdicts import is_switched
from sparring.evaluation.document import FOLDER, Document, read_document
from sparring.report.packing import Blocks, number, packed

LARGEST = 24_000_000
"""Bytes of texts in a page, compressed and in base64; beyond it pairs are left out."""

OURS, ALPACA = "-verdicts.json", "-annotations.json"
OUTCOMES = ("win", "tie", "loss", "unparsed")


@dataclass(frozen=True)
class Verdict:
    """What the judge made of a pair in one order. preference for the trained model, in [0, 1]; None: unparsed."""

    preference: float | None
    said: str


@dataclass(frozen=True)
class Pair:
    """Two answers to an instruction before a judge.

    orders: the verdict where the trained model's answer was shown first, and where it was shown second; None for an
    order that was not asked for.
    """

    instruction: str
    subset: str
    base: str
    trained: str
    orders: tuple[Verdict | None, Verdict | None]

    @property
    def _preferences(self) -> list[float | None]:
        return [order.preference for order in self.orders if order is not None]

    @property
    def outcome(self) -> str:
        """One of OUTCOMES, for the trained model, as `evaluation.winrate` counts it."""
        known = [preference for preference in self._preferences if preference is not None]
        if not known or len(known) < len(self._preferences):
            return "unparsed"
        credit = sum(known) / len(known)
        return "win" if credit > 0.5 else "loss" if credit < 0.5 else "tie"

    @property
    def flipped(self) -> bool:
        """Whether the winner changes with the order."""
        preferences = [preference for preference in self._preferences if preference is not None]
        return len(preferences) == 2 and (preferences[0] - 0.5) * (preferences[1] - 0.5) < 0


@dataclass
class Judged:
    """All judged pairs of several runs, as the page takes them. left_out: pairs that there was no room for."""

    names: Sequence[str]
    blocks: Blocks = field(default_factory=lambda: Blocks("instruction", "base", "trained", "first", "second"))
    pairs: dict[str, list[Any]] = field(
        default_factory=lambda: {
            k: [] for k in ("run", "evaluation", "subset", "first", "second", "outcome", "flipped")
        }
    )
    evaluations: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    subsets: dict[str, int] = field(default_factory=dict[str, int])
    left_out: int = 0
    notes: list[str] = field(default_factory=list[str])

    def __len__(self) -> int:
        return len(self.pairs["outcome"])

    def head(self) -> str:
        """Everything but the texts, packed."""
        return packed(
            {
                "runs": list(self.names),
                "evaluations": self.evaluations,
                "subsets": list(self.subsets),
                "outcomes": OUTCOMES,
                "starts": self.blocks.starts,
                "pairs": self.pairs,
            }
        )

    def add(self, run: int, evaluation: int, pair: Pair) -> None:
        """One more pair."""
        self.blocks.begin()
        row = {
            "run": run,
            "evaluation": evaluation,
            "subset": self.subsets.setdefault(pair.subset, len(self.subsets)),
            "first": _shown(pair.orders[0]),
            "second": _shown(pair.orders[1]),
            "outcome": OUTCOMES.index(pair.outcome),
            "flipped": int(pair.flipped),
        }
        for name, value in row.items():
            self.pairs[name].append(value)
        said = ("" if order is None else order.said for order in pair.orders)
        for name, text in zip(self.blocks.names, (pair.instruction, pair.base, pair.trained, *said), strict=True):
            self.blocks.add(name, text)


def read_judged(runs: Sequence[tuple[str, Path]], largest: int = LARGEST) -> Judged:
    """The judged pairs of these runs (name, folder). See `turns.read_turns` for what is too much, and notes."""
    whole = _collected(runs, 1.0)
    return whole if whole.blocks.size <= largest else _collected(runs, 0.97 * largest / whole.blocks.size)


def _collected(runs: Sequence[tuple[str, Path]], share: float) -> Judged:
    found = Judged([name for name, _ in runs])
    met = 0
    for run, (name, folder) in enumerate(runs):
        for file in sorted((*(folder / FOLDER).glob(f"*{OURS}"), *(folder / FOLDER).glob(f"*{ALPACA}"))):
            try:
                about, pairs = _read(file)
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                found.notes.append(f"{name}: {FOLDER}/{file.name} could not be read: {error!r:.200}")
                continue
            found.evaluations.append(about)
            for pair in pairs:
                met += 1
                if int(met * share) > int((met - 1) * share):
                    found.add(run, len(found.evaluations) - 1, pair)
    found.blocks.close()
    found.left_out = met - len(found)
    return found


def _read(file: Path) -> tuple[dict[str, str], list[Pair]]:
    """What the evaluation is called and who was judged by whom, and its pairs."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    ours = file.name.endswith(OURS)
    name = file.name.removesuffix(OURS if ours else ALPACA)
    written = _document(file.with_name(f"{name}.json"))
    pairs = list(map(_both_orders if ours else _one_order, rows))
    about = {"name": name, "trained": "trained", "base": "base", "judge": "the judge"}
    if written is not None:
        about |= {"trained": written.model, "base": written.base or "base"}
        about |= {"judge": str(written.settings["judge"])} if "judge" in written.settings else {}
    return about, pairs


def _document(path: Path) -> Document | None:
    try:
        return read_document(path)
    except ValueError:  # the pairs can be read without it
        return None


def _both_orders(row: Mapping[str, Any]) -> Pair:
    first, second = (_text(said) for said in row["said"])
    orders = (
        Verdict(_preference(row["model_first"]), first),
        Verdict(_preference(row["model_second"]), second),
    )
    return Pair(*_texts(row, "instruction", "subset", "base_output", "model_output"), orders)


def _one_order(row: Mapping[str, Any]) -> Pair:
    """AlpacaEval's: a preference runs from 1 (the baseline's) to 2 (the model's); 0 is its old draw."""
    given = row["preference"]
    preference = 0.5 if given == 0 else _preference(None if given is None else given - 1)
    verdict = Verdict(preference, _text(row.get("raw_completion")))
    orders = (verdict, None) if is_switched(str(row["instruction"])) else (None, verdict)
    return Pair(*_texts(row, "instruction", "dataset", "output_1", "output_2"), orders)


def _preference(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is no preference")
    return float(value)


def _shown(order: Verdict | None) -> float | bool | None:
    """As the page takes it: false for an order that was not asked for, null where no verdict could be read."""
    return False if order is None else number(order.preference)


def _texts(row: Mapping[str, Any], instruction: str, subset: str, base: str, trained: str) -> tuple[str, str, str, str]:
    return _text(row[instruction]), _text(row.get(subset)), _text(row[base]), _text(row[trained])


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
