"""A process that compares mathematical expressions for `sparring.verify.pool`: a JSON line in, a JSON line out.

It is a program of its own (`python -m sparring.verify.worker SECONDS`) rather than a forked copy: it has none of the
caller's memory, threads or devices, and its caller can kill it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
from contextlib import suppress

from sparring.verify.symbols import same_expression

MEMORY = 4 << 30
"""Bytes of address space: 9^9^9^9 is a short text."""


def limit_memory(most: int) -> None:
    """Bound this process's address space, where the system can."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def end_after(seconds: float) -> None:
    """End this process when the time is over, even where its caller is no longer there to kill it."""
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(seconds))


def main() -> None:
    """Say that the library is loaded, then answer each line: [reference, given] → true, false or an error's name."""
    logging.disable(logging.WARNING)  # the library says on every use that its own time limit is off
    limit_memory(MEMORY)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    same_expression("1", "2")
    print(json.dumps("ready"), file=replies, flush=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # the parser writes of its troubles; nobody reads them
        os.dup2(nowhere, stream.fileno())
    for line in sys.stdin:
        reference, given = json.loads(line)
        end_after(2 * float(sys.argv[1]) + 60)
        try:
            verdict: bool | str = same_expression(reference, given)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - sympy and antlr raise anything on a model's text
            verdict = type(error).__name__
        end_after(0)
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    main()
