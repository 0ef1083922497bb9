"""Stopping a run politely: finish the step in hand, save, leave."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, SIGINT (Ctrl-C) and SIGTERM ask for a stop instead of stopping the process.

    `requested` is the first signal's name ("SIGINT" or "SIGTERM") or None; a loop reads it after each
    step. A second SIGINT raises KeyboardInterrupt at once. On exit the old handlers are back. Outside the
    main thread, where Python forbids handlers, entering does nothing and `requested` stays None.

    say: told at each first signal, from a thread of its own, what will happen.
    echo: seconds within which a second SIGINT is the first one again: where a launcher (torchrun) passes it on, one
    Ctrl-C comes twice.

    >>> with Interrupts() as interrupts:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interrupts.requested
    'SIGTERM'
    """

    def __init__(self, say: Callable[[str], None] | None = None, *, echo: float = 0.0) -> None:
        self._say, self._echo = say, echo
        self._messages: SimpleQueue[str | None] = SimpleQueue()
        self._speaker: threading.Thread | None = None
        self.requested: str | None = None
        self._interrupted: float | None = None
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.requested, self._interrupted = None, None
        if threading.current_thread() is threading.main_thread():
            if self._say is not None:
                self._speaker = threading.Thread(target=self._speak, args=(self._say,), daemon=True)
                self._speaker.start()
            for number in _SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._old:
            number, handler = self._old.popitem()
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._speaker is not None:
            self._messages.put(None)
            self._speaker.join()
            self._speaker = None

    def _speak(self, say: Callable[[str], None]) -> None:
        # A handler may interrupt a write to the same stream, so it must not print: it queues, which is reentrant.
        while (message := self._messages.get()) is not None:
            with suppress(OSError):  # the reader has gone (| head); the run stops all the same
                say(message)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is not None:
                if now - self._interrupted < self._echo:
                    return
                raise KeyboardInterrupt
            self._interrupted = now
            self._messages.put("stopping after this step; Ctrl-C again stops at once")
        elif self.requested is None:
            self._messages.put("stopping after this step")
        if self.requested is None:
            self.requested = signal.Signals(number).name
