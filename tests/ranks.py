"""Several ranks on this machine, for tests: processes with the variables that torchrun would set."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Forked from a server that has imported everything and computed nothing, so that a start takes no time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "sparring.run",
        "sparring.recipes",
        "sparring.lm.llama_generate",
        "sparring.lm.llama_score",
        "sparring.lm.generic",
        "sparring.parallel.team",
        "sparring.parallel.sharding",
        "torch.distributed.fsdp",
        "transformers.models.llama.modeling_llama",
        "peft",
        "pyarrow.parquet",
        "scipy.stats",
        "pytest",
    ]
)


class Started:
    """A function at work on several ranks."""

    def __init__(self, size: int, folder: Path, function: Callable[..., Any], *args: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.files = [folder / f"rank-{port}-{rank}" for rank in range(size)]
        self.processes = [
            PROCESSES.Process(target=_work, args=(rank, size, port, file, function, args))
            for rank, file in enumerate(self.files)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 180) -> list[int]:
        """Exit codes, when all have ended."""
        try:
            for process in self.processes:
                process.join(seconds)
            assert all(process.exitcode is not None for process in self.processes), "a rank hangs"
        finally:
            for process in self.processes:
                process.kill()
        return [process.exitcode for process in self.processes]

    def results(self, seconds: float = 180) -> list[Any]:
        """What the function returned, or the exception it ended with, by rank."""
        self.wait(seconds)
        return [self.result(rank) for rank in range(len(self.files))]

    def result(self, rank: int) -> Any:
        """One rank's, when it has ended."""
        return pickle.loads(self.files[rank].read_bytes())


def on_ranks(size: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """The function's results on `size` ranks; it fails where one of them raises."""
    results = Started(size, folder, function, *args).results()
    for rank, result in enumerate(results):
        if isinstance(result, BaseException):
            told = "\n".join(getattr(result, "__notes__", []))
            raise AssertionError(f"rank {rank} raised {type(result).__name__}: {result}\n{told}")  # noqa: TRY004
    return results


def _work(rank: int, size: int, port: int, file: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    code = 0
    try:
        result = function(*args)
    except BaseException as error:  # noqa: BLE001 - reported to the test
        error.add_note(traceback.format_exc())
        result, code = error, 1
    try:
        file.write_bytes(pickle.dumps(result))
    except Exception:  # noqa: BLE001
        file.write_bytes(pickle.dumps(RuntimeError(f"{type(result).__name__}: {result}")))
    sys.exit(code)
