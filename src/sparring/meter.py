"""An update's figures: sums by tag, over micro-batches, steps and ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from sparring.batching import MicroBatch


@dataclass
class Meter:
    """Sums of figures by tag: a micro-batch's values are fetched from the device at once, when it is scored."""

    loss: float = 0.0
    grad_norm: float = 0.0
    steps: int = 0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def measure(self, batch: MicroBatch, loss: Tensor, measured: Mapping[str, Tensor | None]) -> None:
        """A micro-batch's figures, and the values [S] of each of its measurements."""
        self.loss += loss.item()
        self.tokens += batch.scored_tokens
        tags = sorted({e.tag for e in batch.examples})
        tag_S = batch.per_token([tags.index(e.tag) for e in batch.examples]).astype(np.int64)
        count = np.bincount(tag_S, minlength=len(tags))
        for name, value_S in measured.items():
            if value_S is None:
                continue
            total = np.bincount(tag_S, weights=value_S.detach().cpu().numpy(), minlength=len(tags))
            for index, tag in enumerate(tags):
                self.sums[f"{name}/{tag}"] += float(total[index])
                self.counts[f"{name}/{tag}"] += int(count[index])

    def add(self, other: Meter) -> None:
        """Another rank's share of a step."""
        self.loss += other.loss
        self.tokens += other.tokens
        for name, total in other.sums.items():
            self.sums[name] += total
            self.counts[name] += other.counts[name]

    def figures(self) -> dict[str, float]:
        """Means over steps, and by tag over tokens."""
        steps = max(1, self.steps)
        means = {name: total / max(1, self.counts[name]) for name, total in sorted(self.sums.items())}
        return {
            "loss": self.loss / steps,
            "grad_norm": self.grad_norm / steps,
            "tokens/trained": float(self.tokens),
            **means,
        }
