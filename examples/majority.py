"""A game of one's own: learn from agreement with oneself, no verifier at all.

The frozen start asks, the Solver answers G times, and an answer is paid 1 where it equals the majority's.

    sparring train grpo game.kind=custom game.custom=examples/majority.py:build steps=60 --out runs/majority
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sparring.build import Parts
from sparring.domains import Domain
from sparring.games.base import Game
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.types import Payoff, Payoffs, Turn, children, of_role


@dataclass
class Majority(Game):
    """Self-consistency as the payoff. Degenerate case: a confident mistake is paid like the truth."""

    asker: Role
    solver: Role
    domain: Domain
    n_queries: int
    n_answers: int

    def __post_init__(self) -> None:
        self.roles = (self.asker, self.solver)

    def play(self, sampler: Sampler) -> list[Turn]:
        task = self.domain.tasks[sampler.step % len(self.domain.tasks)]
        asked = self.asker.prompt(task=task.task, template=task.template)
        queries = sampler.sample(self.asker, [asked], n=self.n_queries, model="reference")
        good = [q for q in queries if self.domain.read_query(q.text, task, q.finish == "stop").answerable]
        prompts = [self.solver.prompt(query=q.text, parent=q) for q in good]
        return [*queries, *sampler.sample(self.solver, prompts, n=self.n_answers)]

    def payoffs(self, turns: Sequence[Turn]) -> Payoffs:
        paid = {}
        for answers in children(turns, self.solver).values():
            majority, _ = Counter(answer.text for answer in answers).most_common(1)[0]
            paid |= {answer: Payoff(float(answer.text == majority)) for answer in answers}
        return paid

    def metrics(self, turns: Sequence[Turn], payoffs: Payoffs) -> dict[str, float]:
        return {**super().metrics(turns, payoffs), "game/answered": float(len(of_role(turns, self.solver)))}


def build(parts: Parts) -> Majority:
    """What game.custom names: the run's settings in, the game out."""
    c = parts.config
    asker = parts.role("asker", parts.domain.challenger, c.challenger, weight=0.0)
    solver = parts.role("solver", parts.domain.solver, c.solver)
    return Majority(asker, solver, parts.domain, c.n_queries, c.n_answers)
