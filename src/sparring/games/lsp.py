"""Language Self-Play: LSP-Zero and LSP.

Source: Kuba, Gu, Ma, Tian, Mohan, Chen, "Language Self-Play For Data-Free Training", arXiv 2509.07414, Algorithm 1.

    V(q_i)   = (1/G) Σ_j R(q_i, a_i^j)         V_Q(q_i) = (1/G) Σ_j R_Q(q_i, a_i^j)
    LSP-Zero   A_Sol(q_i, a_i^j) = R − V(q_i)                A_Ch(q_i) = V̄ − V(q_i)
    LSP        Solver paid R + R_Q, Challenger paid −V + V_Q, each centred over its siblings.

V holds R only: if it held R_Q, V_Q would cancel for the Challenger. Where this departs from the paper is a setting, off
by default: another payoff than −V, queries from the frozen Challenger, a repetition penalty, copies refused, std
scaling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparring.advantages import Baseline, centred
from sparring.domains import Query, QueryReader, Task
from sparring.games.base import Game, unscored
from sparring.games.challenge import Adversarial, ChallengerPayoff, RepetitionPenalty, own_queries
from sparring.games.quality import Quality, mean_by_query
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.sampling.base import Sampler
from sparring.types import Payoff, Payoffs, Prompt, Turn, children, of_role

COPY = "copy of another query"
"""The problem of a query that repeats an earlier one of its batch."""


@dataclass
class LSPZero(Game):
    """One model asks, the same model answers; the asker is paid for hard questions.

    Degenerate cases: when nothing is solvable every V is equal and neither role learns; with −V alone nothing holds the
    Challenger against unanswerable queries, and it drifts there.

    Args:
        challenger, solver: the two roles; the Challenger's weight is α_Ch.
        tasks: (task, template) pairs, one drawn for each query.
        read_query: text → Query, with the reason where it is invalid.
        reward: R(q, a).
        n_queries, n_answers: N and G.
        payoff: what a valid query is paid for its V.
        invalid_payoff: what an invalid query is paid (it is never answered); None: as little as the batch's worst valid
            query. 0 is what the paper's game would pay it under a verifier, which finds every answer wrong: V = 0.
        frozen_share: share of the queries drawn from the frozen Challenger: answered and trained on, but not centred
            with the policy's own.
        compare_by_task: centre the Challenger's payoffs among queries of one task rather than over the batch.
        refuse_copies: a query equal to an earlier valid one of its batch, but for case and blank space, is invalid.
    """

    challenger: Role
    solver: Role
    tasks: Sequence[Task]
    read_query: QueryReader
    reward: Reward
    n_queries: int
    n_answers: int
    payoff: ChallengerPayoff = field(default_factory=Adversarial)
    invalid_payoff: float | None = None
    frozen_share: float = 0.0
    repetition: RepetitionPenalty | None = None
    compare_by_task: bool = False
    refuse_copies: bool = False
    scale: Baseline = centred

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("the game needs at least one task; an empty Task() leaves the choice to the model")
        self.roles: tuple[Role, ...] = (self.challenger, self.solver)

    def play(self, sampler: Sampler) -> list[Turn]:
        """Ask N queries, answer each valid one G times."""
        mine = own_queries(self.n_queries, self.frozen_share)
        prompts = self._draw_tasks(sampler)
        queries = [
            *sampler.sample(self.challenger, prompts[:mine]),
            *sampler.sample(self.challenger, prompts[mine:], model="reference"),
        ]
        queries = self._read(queries)
        asked = [self._ask(turn) for turn in queries if query_of(turn).answerable]
        return [*queries, *sampler.sample(self.solver, asked, n=self.n_answers)]

    def payoffs(self, turns: Sequence[Turn]) -> Payoffs:
        """Solver: R. Challenger: −V, over its answers."""
        reward = self.score(turns)  # R(q, a)
        answers = children(turns, self.solver)
        value = mean_by_query(reward, answers)  # V(q)
        solver = {a: Payoff(r, {"reward": r}) for a, r in reward.items() if r is not None}
        return {**solver, **self.pay_challenger(turns, value)}

    def score(self, turns: Sequence[Turn]) -> dict[Turn, float | None]:
        """R(q, a) of every answer; None where the reward can't say."""
        answers = of_role(turns, self.solver)
        rewards = self.reward([str(a.prompt.info["query_text"]) for a in answers], answers)
        return dict(zip(answers, rewards, strict=True))

    def pay_challenger(
        self,
        turns: Sequence[Turn],
        value: Mapping[Turn, float | None],
        quality: Mapping[Turn, float | None] | None = None,
    ) -> dict[Turn, Payoff]:
        """Pay the policy's queries payoff(V) + V_Q + repetition, invalid ones invalid_payoff; reserved ones go unpaid.

        A query whose V_Q can't be read is paid the others' mean of it: neither gain nor loss.
        """
        own = [q for q in of_role(turns, self.challenger) if q.model == "policy" and not query_of(q).reserved]
        paid: dict[Turn, Payoff] = {}
        for turn in own:
            v = value.get(turn)
            if v is not None:
                paid[turn] = Payoff(0.0).plus("value", self.payoff(v))
        if quality is not None:
            known = [q for turn in paid if (q := quality.get(turn)) is not None]
            typical = sum(known) / len(known) if known else 0.0
            for turn, payoff in paid.items():
                v_q = quality.get(turn)
                total = payoff.total + (typical if v_q is None else v_q)
                paid[turn] = Payoff(total, {**payoff.parts, "quality": v_q})
        invalid = self.invalid_payoff
        if invalid is None:
            invalid = min((payoff.total for payoff in paid.values()), default=0.0)
        refused = {turn: Payoff(0.0).plus("invalid", invalid) for turn in own if not query_of(turn).answerable}
        everything = {turn: payoff for turn in own if (payoff := {**paid, **refused}.get(turn)) is not None}
        if self.repetition is None:
            return everything
        penalties = self.repetition([query_of(turn).text for turn in everything])
        return {
            turn: payoff.plus("repetition", penalty)
            for (turn, payoff), penalty in zip(everything.items(), penalties, strict=True)
        }

    def siblings(self, turn: Turn) -> object:
        """A query among the N (or those of its task); an answer among its query's G."""
        if turn.role is self.challenger:
            return turn.info["task"].name if self.compare_by_task else None
        return turn.parent

    def metrics(self, turns: Sequence[Turn], payoffs: Payoffs) -> dict[str, float]:
        """Besides every game's: V, valid and reserved share, problems, distinct queries, family and level."""
        own = [turn for turn in of_role(turns, self.challenger) if turn.model == "policy"]
        own = own or of_role(turns, self.challenger)
        queries = [query_of(turn) for turn in own]
        figures = super().metrics(turns, payoffs)
        figures |= {f"reward/{name}": value for name, value in self.reward.drain().items()}
        figures |= unscored(of_role(turns, self.solver), payoffs)
        solver_reward = figures.get(f"payoff/{self.solver.name}/reward")
        if solver_reward is not None:
            figures["game/V"] = solver_reward
        if f"dead_groups/{self.solver.name}" in figures:
            figures["game/dead_groups"] = figures[f"dead_groups/{self.solver.name}"]
        figures["game/valid_share"] = float(np.mean([q.problem is None for q in queries]))
        problems = Counter(q.problem for q in queries if q.problem is not None)
        for problem, count in sorted(problems.items()):
            figures[f"game/problem/{problem.replace(' ', '_')}"] = count / len(queries)
        if self.refuse_copies:
            figures["game/copies"] = problems[COPY] / len(queries)
        figures["game/reserved_share"] = float(np.mean([q.reserved for q in queries]))
        figures["game/distinct_queries"] = len({q.text for q in queries}) / len(queries)
        figures["game/query_length"] = float(np.mean([len(turn.completion_ids) for turn in own]))
        levels = [q.level for q in queries if q.level is not None]
        if levels:
            figures["game/level"] = float(np.mean(levels))
        for family in sorted({q.family for q in queries if q.family}):
            figures[f"game/share/{family}"] = float(np.mean([q.family == family for q in queries]))
        return figures

    def close(self) -> None:
        """Close the reward."""
        self.reward.close()

    def state(self) -> dict[str, Any]:
        """The archive of past queries, where one is kept, and what the reward remembers."""
        kept = {} if self.repetition is None else {"repetition": self.repetition.state()}
        reward = self.reward.state()
        return {**kept, "reward": reward} if reward else kept

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        if self.repetition is not None:
            self.repetition.restore(state["repetition"])
        if "reward" in state:
            self.reward.restore(state["reward"])

    def _draw_tasks(self, sampler: Sampler) -> list[Prompt]:
        drawn = sampler.rng("tasks").integers(len(self.tasks), size=self.n_queries)
        tasks = [self.tasks[int(index)] for index in drawn]
        return [self.challenger.prompt(task=t.task, template=t.template, info={"task": t}) for t in tasks]

    def _read(self, turns: Sequence[Turn]) -> list[Turn]:
        """Note what each turn asks."""
        met: set[str] = set()
        read: list[Turn] = []
        for turn in turns:
            query = self.read_query(turn.text, turn.info["task"], turn.finish == "stop")
            if self.refuse_copies and query.answerable:
                bare = " ".join(query.text.casefold().split())
                query = replace(query, problem=COPY) if bare in met else query
                met.add(bare)
            read.append(turn.noting(query=query))
        return read

    def _ask(self, turn: Turn) -> Prompt:
        query = query_of(turn)
        info = {**query.columns, "query_text": query.text, "family": query.family}
        return self.solver.prompt(query=query.text, parent=turn, info=info)


@dataclass
class LSP(LSPZero):
    """LSP-Zero with the quality of the exchange added to both payoffs, so that the game does not drift into nonsense.

    Args:
        quality: where R_Q comes from.
        quality_weight: what R_Q is multiplied by against R (the paper leaves the scale open).
    """

    quality: Quality = field(kw_only=True)
    quality_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.roles = (*self.roles, *self.quality.roles)

    def play(self, sampler: Sampler) -> list[Turn]:
        """LSP-Zero's turns, then the grader's."""
        turns = super().play(sampler)
        return [*turns, *self.quality.ask(sampler, of_role(turns, self.solver))]

    def payoffs(self, turns: Sequence[Turn]) -> Payoffs:
        """Solver: R + R_Q. Challenger: −V + V_Q, with V over R alone."""
        reward = self.score(turns)  # R(q, a)
        quality = self._weighted_quality(turns)  # R_Q(q, a)
        answers = children(turns, self.solver)
        value, value_q = mean_by_query(reward, answers), mean_by_query(quality, answers)  # V(q), V_Q(q)
        # An answer whose grade can't be read is paid its siblings' mean quality: centring takes that out again.
        judged = {a: q if q is not None else value_q[_parent(a)] for a, q in quality.items()}
        solver = {
            a: Payoff(r + (judged[a] or 0.0), {"reward": r, "quality": quality[a]})
            for a, r in reward.items()
            if r is not None
        }
        return {**solver, **self.pay_challenger(turns, value, value_q)}

    def metrics(self, turns: Sequence[Turn], payoffs: Payoffs) -> dict[str, float]:
        """LSP-Zero's, V_Q and the share of what graded the exchanges that could be read."""
        figures = super().metrics(turns, payoffs)
        grades = [payoffs[a].parts["quality"] for a in of_role(turns, self.solver) if a in payoffs]
        known = [grade for grade in grades if grade is not None]
        if known:
            figures["game/V_Q"] = float(np.mean(known))
        parse_rate = self.quality.parse_rate(grades, turns)
        if parse_rate is not None:
            figures["quality/parse_rate"] = parse_rate
        return figures

    def _weighted_quality(self, turns: Sequence[Turn]) -> dict[Turn, float | None]:
        scores = self.quality.read(of_role(turns, self.solver), turns)
        return {a: None if q is None else self.quality_weight * q for a, q in scores.items()}


def query_of(turn: Turn) -> Query:
    """What was read from a Challenger's turn."""
    query = turn.info["query"]
    assert isinstance(query, Query)
    return query


def _parent(turn: Turn) -> Turn:
    assert turn.parent is not None
    return turn.parent
