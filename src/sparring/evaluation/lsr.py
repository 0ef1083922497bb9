"""The Language Shortcut Rate as evaluations: models' answers kept, judged, and written one document a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.build import build_reward, game_domain, reader_role, solver_role
from sparring.data import Names, load_prompts
from sparring.domains import SufficiencyGrader, TestItem
from sparring.evaluation.answers import Said, answering
from sparring.evaluation.document import document
from sparring.evaluation.kept import KeptSampler, items_of
from sparring.evaluation.perception import Observed, Perception, by_subset, judged, observe, rows_of
from sparring.files import write_json_atomic, write_text_atomic
from sparring.settings import RunConfig

NAMES = Names("--prompts", "--split", "--hub-subset", "--column")


@dataclass(frozen=True)
class Source:
    """A data set with pictures, as the options name it."""

    prompts: str
    column: str | None = None
    subset: str | None = None
    split: str = "train"
    hub_subset: str | None = None

    def items(self, n: int | None, say: Said) -> list[TestItem]:
        """Its first n rows as items; see `kept.items_of`."""
        found = load_prompts(self.prompts, column=self.column, split=self.split, subset=self.hub_subset, names=NAMES)
        return items_of(found, say, subset=self.subset, n=n)


def domain_items(config: RunConfig, seed: int, n: int) -> list[TestItem]:
    """The held-out test of a configuration's domain.

    Raises:
        ValueError: the domain has none.
    """
    domain = game_domain(config.game)
    if domain.tests is None:
        raise ValueError(f"the {domain.name} domain has no held-out test: give --prompts SOURCE")
    return domain.tests(seed, n)


def observed(
    config: RunConfig,
    items: Sequence[TestItem],
    folder: Path,
    say: Said,
    *,
    temperature: float,
    seed: int,
    max_new_tokens: int | None = None,
) -> list[Observed]:
    """The items looked at and read by a configuration's model; what it says is kept in the folder."""
    domain = game_domain(config.game)
    asked = answering(config, temperature=temperature, tokens=max_new_tokens, seed=seed)
    game = config.game.model_copy(update={"solver": asked.game.solver})
    sampler = KeptSampler(asked, folder, say)
    return observe(sampler, solver_role(game, domain), reader_role(game, domain), items, temperature)


class NoVerdictError(ValueError):
    """A grader said nothing that can be read, so there is no rate."""


@dataclass(frozen=True)
class Result:
    """What came of one model at one temperature: its document, its figures, and each item as a row."""

    record: dict[str, Any]
    figures: Perception
    rows: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        found: Sequence[Observed],
        config: RunConfig,
        grader: SufficiencyGrader,
        *,
        name: str,
        model: str,
        settings: dict[str, Any],
    ) -> Result:
        """Answers judged by the configuration's reward, descriptions by the grader.

        Raises:
            ValueError: the configuration has no reward.
            NoVerdictError: the grader gave no verdict that can be read.
        """
        domain = game_domain(config.game)
        reward = build_reward(config, domain)
        if reward is None:
            raise ValueError(
                f"the {domain.name} domain has no reward of its own: set game.reward.function "
                "(sparring.rewards.verifiable:by_type, say)"
            )
        try:
            seen = judged(found, reward, grader)
        finally:
            reward.close()
        figures = Perception.of(seen)
        if figures is None:
            raise NoVerdictError(
                f"{model}: the grader gave no verdict that can be read (of {len(seen)}): check --grader, --judge-tokens"
            )
        items = [one.item for one in found]
        subsets = {path: part.to_json() for path, part in by_subset(seen).items()}
        body: dict[str, Any] = {"overall": figures.to_json(), "subsets": subsets}
        if domain.faithful is not None and settings["prompts"] is None:
            body["fidelity"] = domain.faithful(items, [one.description for one in seen])
        record = document("lsr", name, "lsr", model=model, base=None, body=body, settings=settings)
        return cls(record, figures, rows_of(items, seen))

    def write(self, file: Path) -> None:
        """The document, and NAME-looks.jsonl beside it."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows]
        write_text_atomic(file.with_name(f"{file.stem}-looks.jsonl"), "".join(lines))
        write_json_atomic(file, self.record)
