"""What is worth a word while a run goes on: each said once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch

from sparring.types import Turn

IDLE_STEPS = 20
GAP = {torch.float32: 0.05, torch.bfloat16: 0.2}
UNSCORED = 0.2  # share of a step's answers without a score
READABLE, READ_STEPS = 0.8, 10  # least share of the grader's replies that can be read, mean over so many steps


class Watch:
    """Says once that sampler and learner disagree, that there is nothing to learn from, that grades can't be read, and
    that prompts leave no room for a reply.

    Args:
        say: told the message.
        dtype: compute precision; bfloat16's rounding alone makes a larger gap.
    """

    def __init__(self, say: Callable[[str], None], dtype: torch.dtype = torch.float32) -> None:
        self._say = say
        self._limit = GAP.get(dtype, GAP[torch.bfloat16])
        self._idle = 0
        self._read: deque[float] = deque(maxlen=READ_STEPS)
        self._said: set[str] = set()

    def learned(self, step: int, examples: int, figures: Mapping[str, float]) -> None:
        """One update ended: its examples that had an advantage, and its figures (sampler_gap/<role> among them)."""
        self._idle = 0 if examples else self._idle + 1
        if self._idle >= IDLE_STEPS:
            self._once(
                "idle",
                f"steps {step - self._idle + 1} to {step} had nothing to learn from: no reply was paid differently "
                "from its group; look at payoffs and advantages in the turns table",
            )
        gaps = [value for name, value in figures.items() if name.startswith("sampler_gap/")]
        if gaps and sum(gaps) / len(gaps) > self._limit:
            self._once(
                "gap",
                f"step {step}: sampler and learner disagree by {sum(gaps) / len(gaps):.3g} nats a token (more than "
                f"{self._limit:g}): gradients are biased; try model.engine=generic or model.dtype=float32, and with "
                "rollout.overlap, where an update lies between the two, a lower learner.lr",
            )

    def played(self, step: int, turns: Sequence[Turn], figures: Mapping[str, float]) -> None:
        """One step was played: its turns, and the game's figures (quality/parse_rate among them)."""
        rooms: dict[str, dict[int, bool]] = {}
        for turn in turns:
            rooms.setdefault(turn.role.name, {})[id(turn.prompt)] = not turn.info.get("too_long")
        if "grader" in rooms and "quality/parse_rate" in figures:
            self._read.append(figures["quality/parse_rate"])
            self._grades(step, sum(self._read) / len(self._read))
        if figures.get("reward/unscored", 0.0) > UNSCORED:
            self._once(
                "unscored",
                f"step {step}: the reward gave no score for {figures['reward/unscored']:.0%} of the answers "
                "(reward/unscored), and what has none teaches nothing; reward/over_long is the share that is too long "
                "for a reward model (game.reward.max_tokens, game.solver.max_new_tokens)",
            )
        for role, fits in rooms.items():
            if not all(fits.values()):
                count = len(fits) - sum(fits.values())
                self._once(
                    f"too_long/{role}",
                    f"step {step}: {count} of {len(fits)} prompts of the {role} leave no room for a reply in the "
                    f"model's context and got none: lower game.{role}.max_new_tokens, or give shorter prompts",
                )

    def _grades(self, step: int, rate: float) -> None:
        if rate < READABLE:
            self._once(
                "grades",
                f"steps {step - len(self._read) + 1} to {step}: only {rate:.0%} of the grader's replies could be read "
                "(quality/parse_rate); look at them in the turns table: game.grader.prompt must get its form from the "
                "model, and game.grader.max_new_tokens must let it finish",
            )

    def _once(self, subject: str, message: str) -> None:
        if subject not in self._said:
            self._said.add(subject)
            self._say(message)
