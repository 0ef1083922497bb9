"""GRPO on a prompt set: the data-driven baseline.

Source: Shao et al., DeepSeekMath, arXiv 2402.03300; the paper's baseline in arXiv 2509.07414.

    A(q_i, a_i^j) = R(q_i, a_i^j) − (1/G) Σ_j R(q_i, a_i^j)      [/ (std + ε) with the standardised scale]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparring.advantages import Baseline, centred
from sparring.data import PromptSet, Row
from sparring.games.base import Game, unscored
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.types import Payoff, Payoffs, Prompt, Turn, of_role


@dataclass
class Dataset(Game):
    """The data asks, the model answers G times; answers to one prompt are compared with each other.

    Assumes a reward that tells answers to one prompt apart. Degenerate case: a prompt always or never solved has no
    spread and teaches nothing.
    """

    solver: Role
    prompts: PromptSet
    reward: Reward
    n_queries: int
    n_answers: int
    scale: Baseline = centred

    def __post_init__(self) -> None:
        self.roles = (self.solver,)

    def play(self, sampler: Sampler) -> list[Turn]:
        """The step's N prompts, G answers each."""
        rows = self.prompts.at(sampler.step, self.n_queries, sampler.seed)
        return sampler.sample(self.solver, [self._prompt(row) for row in rows], n=self.n_answers)

    def payoffs(self, turns: Sequence[Turn]) -> Payoffs:
        """R(q, a); an answer that the reward can't score goes unpaid."""
        answers = of_role(turns, self.solver)
        rewards = self.reward([str(a.prompt.info["query_text"]) for a in answers], answers)
        return {a: Payoff(r, {"reward": r}) for a, r in zip(answers, rewards, strict=True) if r is not None}

    def siblings(self, turn: Turn) -> object:
        """Answers to one drawn prompt (by identity: a prompt drawn twice is two groups)."""
        return turn.prompt

    def metrics(self, turns: Sequence[Turn], payoffs: Payoffs) -> dict[str, float]:
        """Every game's, with V and the lengths under the names that LSP uses."""
        figures = super().metrics(turns, payoffs)
        if f"payoff/{self.solver.name}/reward" in figures:
            figures["game/V"] = figures[f"payoff/{self.solver.name}/reward"]
        if f"dead_groups/{self.solver.name}" in figures:
            figures["game/dead_groups"] = figures[f"dead_groups/{self.solver.name}"]
        figures["game/query_length"] = float(np.mean([len(turn.prompt_ids) for turn in turns]))
        figures |= {f"reward/{name}": value for name, value in self.reward.drain().items()}
        figures |= unscored(of_role(turns, self.solver), payoffs)
        return figures

    def close(self) -> None:
        """Close the reward."""
        self.reward.close()

    def state(self) -> dict[str, Any]:
        """What the reward remembers."""
        reward = self.reward.state()
        return {"reward": reward} if reward else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        if "reward" in state:
            self.reward.restore(state["reward"])

    def _prompt(self, row: Row) -> Prompt:
        # After the columns: a data set's column of that name must not pass for ours.
        info = {**row.columns, "query_text": row.query, "conversational": row.messages is not None, "too_long": False}
        if row.messages is not None:
            return Prompt(row.messages, None, info)
        return self.solver.prompt(query=row.query, info=info)
