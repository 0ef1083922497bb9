"""Stopping a run politely: finish the step in hand, save, leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, SIGINT (Ctrl-C) and SIGTERM ask for a stop instead of stopping the process.

    `requested` is the first signal's name ("SIGINT" or "SIGTERM") or None; a loop reads it after each
    step. A second SIGINT raises KeyboardInterrupt at once. On exit the old handlers are back. Outside the
    main thread, where Python forbids handlers, entering does nothing and `requested` stays None.

    >>> with Interrupts() as interrupts:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interrupts.requested
    'SIGTERM'
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._interrupted = False
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.requested, self._interrupted = None, False
        if threading.current_thread() is threading.main_thread():
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        if self.requested is None:
            self.requested = signal.Signals(number).name
