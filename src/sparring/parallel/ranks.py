"""What a run asks of its ranks, and the answers where there is one rank alone.

Nothing heavy is imported here: `sparring --help` imports this module.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class RankError(ConnectionError):
    """The ranks of a run can't go on together: one has ended, hangs, or does something else than the others."""


class Ranks:
    """One process, which is all there is. `parallel.team.Team` does the same among several.

    Whatever takes `what` is a meeting: every rank must come to it, in the same order, and `what` names it in errors.

    Attributes:
        rank: this process's number; rank 0 leads: it alone touches the run's folder, and speaks.
        size: how many there are.
        writers: the ranks that write the parts of a sharded checkpoint: those on rank 0's machine.
    """

    rank: int = 0
    size: int = 1
    writers: tuple[int, ...] = (0,)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def gather(self, what: str, value: T) -> list[T]:
        """Every rank's value, by rank."""
        return [value]

    def together(self, what: str, work: Callable[[], T]) -> list[T]:
        """Every rank's result of work that needs no other rank; an error on one is raised on all."""
        return [work()]

    def first(self, what: str, work: Callable[[], T]) -> T:
        """The result of work that rank 0 alone does; its error is raised on all."""
        return work()

    def same(self, what: str, value: object) -> None:
        """See that all ranks hold an equal value.

        Raises:
            RankError: they don't.
        """

    def settle(self, error: Exception) -> bool:
        """Whether all ranks have failed just now, so that they may go on to save what they have.

        Raises:
            RankError: the error is the loss of another rank.
        """
        return True

    def share(self, costs: Sequence[float]) -> list[int]:
        """Indices of this rank's share of pieces of work, ascending."""
        return deal(costs, self.size)[self.rank]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each float32 tensor by its sum over the ranks, which is bit for bit the same on all."""

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a tensor by rank 0's."""

    def apart(self) -> Ranks:
        """The same ranks, for the meetings of another thread, which must not mix with this one's. A meeting itself."""
        return self

    def prepare(self, device: str, timeout: float) -> None:
        """Connect the devices.

        Args:
            device: where the model is: cpu or cuda.
            timeout: seconds after which a rank that gives no sign of life is given up.
        """


ALONE = Ranks()


def deal(costs: Sequence[float], hands: int) -> list[list[int]]:
    """Indices of the pieces for each hand: the dearest first, each to who has least so far.

    >>> deal([5, 3, 3, 1], 2)
    [[0, 3], [1, 2]]
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    loads = [(0.0, hand) for hand in range(hands)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, hand = heapq.heappop(loads)
        dealt[hand].append(index)
        heapq.heappush(loads, (load + costs[index], hand))
    return [sorted(indices) for indices in dealt]


def undeal(dealt: Sequence[Sequence[int]], shares: Sequence[Sequence[T]]) -> list[T]:
    """What each hand made of the pieces that `deal` gave it, in the pieces' order.

    >>> undeal([[0, 3], [1, 2]], ["ad", "bc"])
    ['a', 'b', 'c', 'd']
    """
    found = {
        index: made
        for indices, share in zip(dealt, shares, strict=True)
        for index, made in zip(indices, share, strict=True)
    }
    return [found[index] for index in range(len(found))]
