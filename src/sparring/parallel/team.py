"""The ranks of a run that several processes share.

Two groups of processes. The meetings go over gloo and wait without a limit of their own, as a reward or a checkpoint
may take its time on rank 0; heartbeats tell who is gone. Tensors go over NCCL, or gloo on a CPU, with a limit: they are
sent when all have met.
"""

from __future__ import annotations

import atexit
import copy
import math
import os
import pickle
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, Work
from torch.distributed import ProcessGroup

from sparring.parallel.ranks import RankError, Ranks
from sparring.parallel.watchman import GRACE, PERIOD, Watchman

T = TypeVar("T")
FOREVER = timedelta(days=365)
BUCKET = 2**25  # elements summed at once
ARRIVAL = 600.0  # seconds for all ranks to arrive
LEAVING = 5  # seconds that a process may take to end when a connection hangs


class Team(Ranks):
    """One of several ranks; all are there when it has been made.

    Args:
        rank, size: its number, and how many there are.
        local_rank: its number on its machine: its GPU.
        store, listener: two connections to where the ranks meet; the second is for the heartbeats alone.
    """

    def __init__(self, rank: int, size: int, local_rank: int, store: Store, listener: Store) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=FOREVER)
        self._meeting = self._tensors = cast(ProcessGroup, dist.group.WORLD)
        self._watch: Watchman | None = None
        host = socket.gethostname()
        self._name = f"rank {self.rank} (process {os.getpid()} on {host})"
        met = self.gather("starting", (host, self._name))
        self.writers = tuple(rank for rank, (host, _) in enumerate(met) if host == met[0][0])
        names = [name for _, name in met]
        watch = Watchman(listener, self.rank, names, ARRIVAL)
        watch.greet()
        self.gather("greeting", None)
        watch.start()
        self._watch = watch

    @property
    def group(self) -> ProcessGroup:
        """The group that tensors are sent in."""
        return self._tensors

    def apart(self) -> Team:
        """See `Ranks.apart`."""
        twin = copy.copy(self)
        twin._meeting = cast(ProcessGroup, dist.new_group(backend="gloo", timeout=FOREVER))
        return twin

    def prepare(self, device: str, timeout: float) -> None:
        """See `Ranks.prepare`."""
        assert self._watch is not None
        kind = torch.device(device).type
        if kind not in {"cpu", "cuda"}:
            raise ValueError(f"several ranks compute on cpu or cuda, not on {device}: set model.device")
        if torch.device(device).index is not None:
            raise ValueError(f"{device} is one GPU, and each of several ranks has its own: set model.device=auto")
        if kind == "cuda":
            torch.cuda.set_device(self.local_rank)
        self._watch.give_up_after(timeout)
        backend = "nccl" if kind == "cuda" else "gloo"
        self._tensors = cast(ProcessGroup, dist.new_group(backend=backend, timeout=timedelta(seconds=timeout)))

    # Meetings

    def gather(self, what: str, value: T) -> list[T]:
        """See `Ranks.gather`."""
        return self._meet(what, value)

    def together(self, what: str, work: Callable[[], T]) -> list[T]:
        """See `Ranks.together`."""
        outcome = _Outcome.of(work)
        met = self._meet(what, outcome.sent(f"This was on {self._name}."))
        for rank, (_, error) in enumerate(met):
            if error is not None:
                raise outcome.error if rank == self.rank and outcome.error else _unpickled(error)
        return [value for value, _ in met]

    def first(self, what: str, work: Callable[[], T]) -> T:
        """See `Ranks.first`."""
        outcome: _Outcome[T] = _Outcome.of(work) if self.leads else _Outcome()
        value, error = self._meet(what, outcome.sent())[0]
        if error is not None:
            raise outcome.error or _unpickled(error)
        return value

    def same(self, what: str, value: object) -> None:
        """See `Ranks.same`."""
        held = self._meet(what, value)
        odd = [rank for rank, other in enumerate(held) if other != held[0]]
        if odd:
            raise RankError(f"ranks {', '.join(map(str, odd))} and rank 0 disagree about {what}")

    def settle(self, error: Exception) -> bool:
        """See `Ranks.settle`."""
        assert self._watch is not None
        if isinstance(error, RankError):
            raise error
        if is_transport(error):
            raise self._broken(error) from error
        told = f"{type(error).__name__}: {error}"
        self._watch.note(told)
        try:
            self._meet("failing", told, limit=GRACE)
        except RankError:
            return False
        self._watch.note(None)
        return True

    def _meet(self, what: str, value: Any, limit: float | None = None) -> list[Any]:
        """Every rank's value, by rank."""
        mine = torch.frombuffer(bytearray(pickle.dumps((what, value))), dtype=torch.uint8)
        size = torch.tensor([len(mine)])
        sizes = [torch.empty_like(size) for _ in range(self.size)]
        self._wait(lambda: dist.all_gather(sizes, size, group=self._meeting, async_op=True), limit)
        longest = int(max(sizes))
        rows = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
        self._wait(lambda: dist.all_gather(rows, padded, group=self._meeting, async_op=True), limit)
        met = [_unpickled(row.numpy()[: int(n)].tobytes()) for row, n in zip(rows, sizes, strict=True)]
        for rank, (theirs, said) in enumerate(met):
            if theirs != what:
                failed = f" failed: {said}" if theirs == "failing" else f" is at {theirs}, rank {self.rank} at {what}"
                raise RankError(f"rank {rank}{failed}")
        return [said for _, said in met]

    # Tensors

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """See `Ranks.sum_`."""
        held: list[Tensor] = []
        for tensor in (*tensors, None):
            if held and (tensor is None or sum(t.numel() for t in held) + tensor.numel() > BUCKET):
                flat = torch.cat([t.flatten() for t in held])
                self._wait(lambda flat=flat: dist.all_reduce(flat, group=self._tensors, async_op=True))
                for t, summed in zip(held, flat.split([t.numel() for t in held]), strict=True):
                    t.copy_(summed.view_as(t))
                held = []
            if tensor is not None:
                assert tensor.dtype == torch.float32
                held.append(tensor)

    def broadcast_(self, tensor: Tensor) -> None:
        """See `Ranks.broadcast_`."""
        self._wait(lambda: dist.broadcast(tensor, 0, group=self._tensors, async_op=True))

    def _wait(self, start: Callable[[], Any], limit: float | None = None) -> None:
        """A collective that ends, also, when a rank is lost or a signal's handler raises."""
        until = math.inf if limit is None else time.monotonic() + limit
        try:
            work = start()
            self._poll(work, until)
            work.wait()
        except RuntimeError as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> RankError:
        who = None if self._watch is None else self._watch.who()
        return RankError(who or f"the connection to another rank broke ({str(error).splitlines()[0]})")

    def _poll(self, work: Work, until: float) -> None:
        pause = 0.0
        while not work.is_completed():
            if self._watch is not None and self._watch.lost:
                raise RankError(self._watch.lost)
            if time.monotonic() > until:
                raise RankError("the other ranks did not come")
            time.sleep(pause)
            pause = min(0.01, pause + 1e-4)

    # The end

    def close(self, error: BaseException | None = None) -> None:
        """Part, in peace or after an error.

        Raises:
            RankError: the error is the loss of another rank.
        """
        assert self._watch is not None
        alone = True
        try:
            if error is None:
                self._meet("leaving", None)
                alone = False
            elif isinstance(error, Exception):
                alone = isinstance(error, RankError) or not self.settle(error)
            else:
                self._watch.note(type(error).__name__)
                time.sleep(3 * PERIOD)  # for the others to read it
        finally:
            self._watch.stop()
            if alone:
                # Connections to a frozen rank keep a process from ending; SIGALRM ends it where nothing else does.
                atexit.register(signal.alarm, LEAVING)
            else:
                dist.destroy_process_group()


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """What became of work: its value or its error."""

    value: T | None = None
    error: Exception | None = None

    @classmethod
    def of(cls, work: Callable[[], T]) -> _Outcome[T]:
        """Do it."""
        try:
            return cls(work())
        except Exception as error:  # noqa: BLE001 - it is raised on every rank
            return cls(None, error)

    def sent(self, note: str | None = None) -> tuple[T | None, bytes | None]:
        """The value, and the error so that it can be rebuilt: by its nearest built-in class where it can't be as is."""
        if self.error is None:
            return self.value, None
        if note is not None:
            self.error.add_note(note)
        try:
            packed = pickle.dumps(self.error)
            _unpickled(packed)
        except Exception:  # noqa: BLE001 - exceptions may do anything when copied
            kind = next(kind for kind in type(self.error).__mro__ if kind.__module__ == "builtins")
            plain = kind(f"{type(self.error).__name__}: {self.error}")
            plain.__notes__ = getattr(self.error, "__notes__", [])
            packed = pickle.dumps(plain)
        return None, packed


def is_transport(error: BaseException) -> bool:
    """Whether torch says that a collective failed: another rank's doing."""
    broken = isinstance(error, RuntimeError) and re.search(r"gloo|NCCL|Connection (closed|reset)|Timed out", str(error))
    return isinstance(error, dist.DistError) or bool(broken)


def _unpickled(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301 - it comes from a process of this very run
