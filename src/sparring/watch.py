"""What is worth a word while a run goes on: each said once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

IDLE_STEPS = 20
GAP = {torch.float32: 0.05, torch.bfloat16: 0.2}


class Watch:
    """Says once that sampler and learner disagree, and once that there is nothing to learn from.

    Args:
        say: told the message.
        dtype: compute precision; bfloat16's rounding alone makes a larger gap.
    """

    def __init__(self, say: Callable[[str], None], dtype: torch.dtype = torch.float32) -> None:
        self._say = say
        self._limit = GAP.get(dtype, GAP[torch.bfloat16])
        self._idle = 0
        self._said: set[str] = set()

    def learned(self, step: int, examples: int, figures: Mapping[str, float]) -> None:
        """One update ended: how many examples it had, and its figures (sampler_gap/<role> among them)."""
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
                f"{self._limit:g}): gradients are biased; try model.engine=generic or model.dtype=float32",
            )

    def _once(self, subject: str, message: str) -> None:
        if subject not in self._said:
            self._said.add(subject)
            self._say(message)
