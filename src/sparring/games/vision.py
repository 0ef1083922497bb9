"""Vision-SR1: see before you think; the policy rewards its own perception.

Source: "Self-Rewarding Vision-Language Model via Reasoning Decomposition", arXiv 2508.19652.

    pass 1, perceiver   question, image → description c, thought, answer y      (n_answers, trained)
    pass 2, reader      question, c, no image → y'                              (one, greedy, not trained)
                        and, where the row has some, up to K further questions of the same picture

    accuracy = [y right]    visual = share of y' right, 0 without a description    format = [description, thought, box]
    summed      A = z(.9 accuracy + .1 format + 1.0 visual)                      one z-score a group
    decoupled   A = .9 z(accuracy) + .1 z(format) + 1.0 z(visual)                a z-score a reward and group

The group is the answers to one drawn question. With visual weight 0 the second pass is not played: answer and form
alone are paid, the paper's Vision-R1 line. With a trained reader (its role's weight above 0) its turns are paid their
own accuracy and compared over all descriptions, question by question.

Where this departs from the original: an untagged response is worth 0 to the second pass, whose whole text, boxed answer
included, went to it there; further questions (none in the original) ask for what the first does not; multiple choice
is matched by letter and regression by relative error (rewards.verifiable).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sparring.advantages import Floats, standardised
from sparring.data import Row
from sparring.games.dataset import Dataset
from sparring.games.perception import description_of, leaks, well_formed
from sparring.images import Picture, PictureError
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.types import Advantages, Payoff, Payoffs, Prompt, Turn, children, of_role
from sparring.verify.extract import boxed

logger = logging.getLogger(__name__)

EPSILON = 1e-6
MOST_SOURCES = 12
"""Sources of one step that figures are told apart by."""
FURTHER = "also"
"""The column with further questions of a row's picture."""


class Combination(Protocol):
    """A group's payoffs → its advantages."""

    def __call__(self, payoffs: Sequence[Payoff]) -> Floats: ...


def summed(payoffs: Sequence[Payoff]) -> Floats:
    """z(Σ_k w_k r_k): the first release.

    >>> pays = [Payoff(0.0, {"accuracy": 0.0}), Payoff(2.0, {"accuracy": 2.0})]
    >>> summed(pays).round(4).tolist()
    [-0.7071, 0.7071]
    """
    return standardised([payoff.total for payoff in payoffs], EPSILON)


@dataclass(frozen=True)
class Decoupled:
    """Σ_k w_k z(r_k): the later release. A part that is the same for all of a group moves nothing.

    >>> pays = [Payoff(1.0, {"accuracy": 0.9, "format": 0.1}), Payoff(0.1, {"accuracy": 0.0, "format": 0.1})]
    >>> Decoupled({"accuracy": 0.9, "format": 0.1})(pays).round(4).tolist()
    [0.6364, -0.6364]
    """

    weights: Mapping[str, float]

    def __call__(self, payoffs: Sequence[Payoff]) -> Floats:
        """See `Combination`. The parts are weighted already: a z-score does not see it."""
        total = np.zeros(len(payoffs))
        for part, weight in self.weights.items():
            total += weight * standardised([payoff.parts.get(part) or 0.0 for payoff in payoffs], EPSILON)
        return total


@dataclass
class Vision(Dataset):
    """The data asks about pictures, the model looks, describes and answers; then answers again from its words alone.

    A question without a picture is paid for answer and form. Degenerate cases: a reader that guesses right pays for a
    description that told nothing (multiple choice); a game whose every answer is right or wrong teaches perception
    only where the second pass differs.

    Args:
        solver: the perceiver. reader: answers from the description.
        reward: whether an answer is right, in [0, 1], for both passes.
        accuracy_weight, visual_weight, format_weight: of the three parts.
        extra_questions: K; they come from the row's column `also`, a list of {question, answer} and what other columns
            the reward needs.
        combine: how a group's payoffs become advantages.
    """

    reader: Role = field(kw_only=True)
    accuracy_weight: float = 0.9
    visual_weight: float = 1.0
    format_weight: float = 0.1
    combine: Combination = summed
    extra_questions: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.visual_weight > 0:
            self.roles = (self.solver, self.reader)
        self._unreadable = 0

    def play(self, sampler: Sampler) -> list[Turn]:
        """Look at each of the step's questions G times, then read each description: once, and K times more."""
        rows = self.prompts.at(sampler.step, self.n_queries, sampler.seed)
        prompts = [prompt for row in rows if (prompt := self._look(row)) is not None]
        seen = [_noted(turn) for turn in sampler.sample(self.solver, prompts, n=self.n_answers)]
        readings = [prompt for turn in seen if self._is_read(turn) for prompt in self._readings(turn)]
        return [*seen, *sampler.sample(self.reader, readings)]

    def payoffs(self, turns: Sequence[Turn]) -> Payoffs:
        """Accuracy, visual and format, weighted; a turn whose answer or whose reader's can't be judged goes unpaid."""
        right = self._right(turns)
        replies = children(turns, self.reader)
        paid: dict[Turn, Payoff] = {}
        for turn in of_role(turns, self.solver):
            parts = {"accuracy": right[turn], "format": float(turn.info["well_formed"])}
            if self.visual_weight > 0 and turn.info["pictures"]:
                parts["visual"] = _mean_known([right[reply] for reply in replies[turn]]) if turn in replies else 0.0
            if None not in parts.values():
                paid[turn] = self._pay({name: part for name, part in parts.items() if part is not None})
        for turn in of_role(turns, self.reader):
            score = right[turn]
            if self.reader.weight > 0 and score is not None:
                paid[turn] = self._pay({"accuracy": score})
        return paid

    def siblings(self, turn: Turn) -> object:
        """Answers to one drawn question; a reader's, those from every description of it."""
        return turn.prompt if turn.parent is None else (turn.parent.prompt, turn.prompt.info["query_text"])

    def baseline(self, turns: Sequence[Turn], payoffs: Payoffs) -> Advantages:
        """By `combine`, over siblings."""
        return {
            turn: float(advantage)
            for group in self.groups(turns, payoffs)
            for turn, advantage in zip(group, self.combine([payoffs[turn] for turn in group]), strict=True)
        }

    def metrics(self, turns: Sequence[Turn], payoffs: Payoffs) -> dict[str, float]:
        """Every game's, and what was seen: shares of all perceiver's turns; leaks, of the descriptions."""
        seen = of_role(turns, self.solver)
        figures = super().metrics(turns, payoffs)
        figures["game/query_length"] = _share([len(turn.prompt_ids) for turn in seen])
        described = [turn for turn in seen if turn.info["description"] is not None]
        figures["vision/boxed"] = _share([boxed(turn.text) is not None for turn in seen])
        figures["vision/described"] = len(described) / max(1, len(seen))
        figures["vision/description_length"] = _share([len(str(turn.info["description"])) for turn in described])
        figures["vision/leaked"] = _share(
            [leaks(str(turn.info["description"]), str(turn.info.get("answer", ""))) for turn in described]
        )
        if self._unreadable:
            figures["data/unreadable_pictures"] = float(self._unreadable)
            self._unreadable = 0
        return figures | self._by_source(turns, payoffs)

    def _by_source(self, turns: Sequence[Turn], payoffs: Payoffs) -> dict[str, float]:
        """The reader's accuracy in all, and by where a question comes from; where that is a file or the like, which
        hardly two rows share, by its type."""
        read: list[tuple[Turn, float]] = []
        for turn in of_role(turns, self.solver):
            part = payoffs[turn].parts.get("visual") if turn in payoffs else None
            if part is not None:  # weighted
                read.append((turn, part / self.visual_weight))
        found = {"all": [share for _, share in read]} if read else {}
        for column in ("source", "problem_type"):
            names = [str(turn.info.get(column) or turn.info.get("problem_type") or "other") for turn, _ in read]
            if len(set(names)) <= MOST_SOURCES:
                for name, (_, share) in zip(names, read, strict=True):
                    found.setdefault("other" if name == "all" else name, []).append(share)
                break
        return {f"vision/reader/{name}": _share(shares) for name, shares in found.items()}

    def _right(self, turns: Sequence[Turn]) -> dict[Turn, float | None]:
        """Of both passes' answers, asked of the reward at once."""
        scores = self.reward([str(turn.prompt.info["query_text"]) for turn in turns], turns)
        return dict(zip(turns, scores, strict=True))

    def _pay(self, parts: Mapping[str, float]) -> Payoff:
        weights = {"accuracy": self.accuracy_weight, "visual": self.visual_weight, "format": self.format_weight}
        weighted = {name: weights[name] * part for name, part in parts.items()}
        return Payoff(sum(weighted.values()), weighted)

    def _look(self, row: Row) -> Prompt | None:
        """None, and counted, where a picture turns out unreadable: the step goes on without it."""
        try:
            pictures = tuple(
                Picture.open(image, name=f"{row.where}: its image" if isinstance(image, bytes) else None)
                for image in row.images
            )
        except PictureError as error:
            self._unreadable += 1
            logger.warning("a question is left out: %s", error)
            return None
        return self.solver.prompt(query=row.query, images=pictures, info=_info(row) | {"pictures": len(pictures)})

    def _is_read(self, turn: Turn) -> bool:
        return self.visual_weight > 0 and turn.info["description"] is not None and bool(turn.info["pictures"])

    def _readings(self, turn: Turn) -> list[Prompt]:
        """What the reader is asked about a description: the perceiver's own question, then others of its picture."""
        infos = [turn.prompt.info, *(dict(turn.prompt.info) | other for other in self._others(turn))]
        said = turn.info["description"]
        return [self.reader.prompt(query=i["query_text"], description=said, parent=turn, info=i) for i in infos]

    def _others(self, turn: Turn) -> list[dict[str, Any]]:
        given: Any = turn.prompt.info.get(FURTHER) or []
        try:
            return [
                {**one, "query_text": str(one["question"]), "answer": one["answer"]}
                for one in given[: self.extra_questions]
            ]
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"the row that asks {turn.info['query_text']!r:.80}: its column {FURTHER} must be a list of objects "
                "with question and answer, or game.perception.extra_questions 0"
            ) from error


def _info(row: Row) -> dict[str, Any]:
    # After the columns: a data set's column of that name must not pass for ours.
    return {**row.columns, "query_text": row.query, "conversational": False, "too_long": False}


def _noted(turn: Turn) -> Turn:
    return turn.noting(description=description_of(turn.text), well_formed=well_formed(turn.text))


def _mean_known(scores: Sequence[float | None]) -> float | None:
    """Of those that could be judged; None where none could."""
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None


def _share(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
