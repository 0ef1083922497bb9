"""How a process learns that it is one of several: from the variables that torchrun sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

from sparring.parallel.ranks import ALONE, RankError, Ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

_places: list[Any] = []  # the store where this process's ranks meet: its port is taken once
_opened = count()


def several() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def connected() -> Iterator[Ranks]:
    """This process alone, or as one of the ranks that a launcher started. Ranks start and end it together.

    Raises:
        ValueError: the launcher's variables are incomplete, or torch.distributed is in use already.
        RankError: another rank was lost, or failed by itself.
    """
    if not several():
        yield ALONE
        return
    team = _team()
    try:
        yield team
    except BaseException as error:
        team.close(error)
        raise
    team.close()


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process is the one that tells: rank 0, or the next one where rank 0 is lost."""
    rank = int(os.environ["RANK"]) if several() else 0
    return rank == 0 or (rank == 1 and isinstance(error, RankError) and str(error).startswith("rank 0 "))


def _team() -> Any:
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore, TCPStore
    from torch.distributed.rendezvous import rendezvous

    from sparring.parallel.team import ARRIVAL, Team

    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE is set, so this is one of several ranks, but {', '.join(missing)} is not: start with torchrun "
            "(docs/scaling.md), or unset WORLD_SIZE"
        )
    if dist.is_initialized():
        raise ValueError("torch.distributed is in use already: leave its start to Sparring, or run one process")
    rank, size, local, host, port = (os.environ[name] for name in VARIABLES)
    wait = timedelta(seconds=ARRIVAL)
    if not _places:
        _places.append(next(rendezvous("env://", timeout=wait))[0])
    listener = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=wait)
    prefix = f"sparring/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_opened)}"
    stores = [PrefixStore(prefix, store) for store in (_places[0], listener)]
    return Team(int(rank), int(size), int(local), *stores)
