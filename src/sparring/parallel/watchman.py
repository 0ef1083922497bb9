"""Who of the other ranks is still there: heartbeats in a store that all reach, looked at by a thread.

A collective that waits for a dead or frozen rank can't be interrupted from Python. So the watchman first leaves the
main thread some time to notice; where it doesn't, he ends the process with the reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from threading import Event, Thread

from torch._C._distributed_c10d import Store

PERIOD = 1.0  # seconds between heartbeats
GRACE = 15.0  # seconds that the main thread has to end by itself
LONG_GONE = 3 * PERIOD  # without a sign for so long, a rank is suspected when a connection breaks
STANDS = 5.0  # seconds after which a failure's note counts: one that all ranks share is taken back at once


class Watchman:
    """Beats for this rank and listens to the others.

    Args:
        store: used by this thread alone.
        rank: this one's number.
        names: what each rank is called in messages.
        limit: seconds without a sign of life after which a rank is given up.
    """

    def __init__(self, store: Store, rank: int, names: Sequence[str], limit: float) -> None:
        self._store, self._rank, self._names = store, rank, names
        self.give_up_after(limit)
        self._lost: str | None = None
        self._since = 0.0
        self._note: str | None = None
        self._listened = now = time.monotonic()
        self._signs = {other: ("", now) for other in range(len(names)) if other != rank}
        self._failed: dict[int, tuple[str, float]] = {}
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name="watchman", daemon=True)

    @property
    def lost(self) -> str | None:
        """Why the run can't go on; None while it can."""
        if self._lost is None and time.monotonic() - self._listened > self._limit + LONG_GONE:
            return f"{self._names[0]}, where the ranks meet, does not answer: it is frozen, or its machine is lost"
        return self._lost

    def give_up_after(self, limit: float) -> None:
        """Set the seconds without a sign of life after which a rank is given up."""
        self._limit = limit
        self._store.set_timeout(timedelta(seconds=limit))

    def start(self) -> None:
        """Begin; every rank must have called `greet`."""
        self._thread.start()

    def greet(self) -> None:
        """Give a first sign of life."""
        self._store.set(f"beat/{self._rank}", "0")
        self._store.set(f"note/{self._rank}", "")

    def stop(self) -> None:
        """Listen no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(2 * PERIOD)  # a call to a store that is gone may take longer

    def note(self, text: str | None) -> None:
        """Tell the others, with the next beat, why this rank fails; None: it does not fail alone."""
        self._note = text

    def who(self) -> str | None:
        """The ranks that a broken connection is due to; None where that can't be known within some seconds."""
        until = time.monotonic() + 2 * LONG_GONE
        while time.monotonic() < until and not self._stopped.is_set():
            if found := self.lost or self._reason(LONG_GONE):
                return found
            time.sleep(PERIOD / 4)
        return None

    def _watch(self) -> None:
        beat = 0
        while not self._stopped.wait(PERIOD):
            beat += 1
            try:
                self._listen(beat)
            except RuntimeError as error:  # torch's DistError is one
                self._lost = self._lost or f"{self._names[0]}, where the ranks meet, can't be reached ({error})"
            self._listened = time.monotonic()
            self._lost = self._lost or self._reason(self._limit)
            self._since = self._since or (time.monotonic() if self._lost else 0.0)
            if self._lost and time.monotonic() - self._since > GRACE:
                self._end()

    def _listen(self, beat: int) -> None:
        self._store.set(f"beat/{self._rank}", str(beat))
        self._store.set(f"note/{self._rank}", self._note or "")
        others = list(self._signs)
        found = self._store.multi_get([f"{kind}/{other}" for kind in ("beat", "note") for other in others])
        now = time.monotonic()
        for other, sign, note in zip(others, found, found[len(others) :], strict=False):
            if sign.decode() != self._signs[other][0]:
                self._signs[other] = (sign.decode(), now)
            if not note:
                self._failed.pop(other, None)
            else:
                self._failed.setdefault(other, (note.decode(), now))

    def _reason(self, silence: float) -> str | None:
        now = time.monotonic()
        for other, (text, since) in list(self._failed.items()):
            if now - since > min(silence, STANDS):
                return f"{self._names[other]} failed: {text}"
        gone = [other for other, (_, seen) in self._signs.items() if now - seen > silence]
        if not gone:
            return None
        listed = ", ".join(self._names[other] for other in gone)
        seconds = now - min(self._signs[other][1] for other in gone)
        return f"{listed} gave no sign of life for {seconds:.0f} s: killed, frozen, or its machine is lost"

    def _end(self) -> None:
        os.write(2, f"Error: {self.lost}; {self._names[self._rank]} was waiting for it and ends too\n".encode())
        os._exit(1)
