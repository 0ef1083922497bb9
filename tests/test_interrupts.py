"""Real signals, sent to this process or to a child."""

from __future__ import annotations

import os
import signal
import threading
from queue import SimpleQueue

import pytest

from sparring.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted_and_does_not_interrupt(number: signal.Signals) -> None:
    with Interrupts() as interrupts:
        assert interrupts.requested is None
        os.kill(os.getpid(), number)
        assert interrupts.requested == number.name


def test_second_sigint_raises_at_once() -> None:
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert interrupts.requested == "SIGINT"
        signal.raise_signal(signal.SIGINT)


def test_one_ctrl_c_that_comes_twice_is_one() -> None:
    with Interrupts(echo=60) as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the launcher's, after the terminal's own
        assert interrupts.requested == "SIGINT"


def test_further_sigterms_wait_for_the_step_and_the_first_name_stays() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the first Ctrl-C is polite even after a SIGTERM
        assert interrupts.requested == "SIGTERM"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGINT, "stopping after this step; Ctrl-C again stops at once"),
        (signal.SIGTERM, "stopping after this step"),
    ],
)
def test_the_first_signal_is_answered_at_once(number: signal.Signals, message: str) -> None:
    said: SimpleQueue[str] = SimpleQueue()
    with Interrupts(said.put):
        signal.raise_signal(number)
        assert said.get(timeout=10) == message  # while the step goes on


def test_every_message_is_out_when_it_is_left() -> None:
    said: list[str] = []
    before = threading.active_count()
    with Interrupts(said.append):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert said == ["stopping after this step", "stopping after this step; Ctrl-C again stops at once"]
    assert threading.active_count() == before


def test_a_reader_that_has_gone_does_not_matter() -> None:
    def gone(message: str) -> None:
        raise BrokenPipeError

    with Interrupts(gone) as interrupts:
        signal.raise_signal(signal.SIGINT)
    assert interrupts.requested == "SIGINT"


def test_old_handlers_come_back_even_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="step failed"), Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
        assert signal.getsignal(signal.SIGTERM) != before[1]
        raise RuntimeError("step failed")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_entering_again_starts_afresh() -> None:
    interrupts = Interrupts()
    for _ in range(2):
        with interrupts:
            assert interrupts.requested is None
            signal.raise_signal(signal.SIGINT)
            assert interrupts.requested == "SIGINT"


def test_outside_the_main_thread_it_does_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with Interrupts() as interrupts:
            seen.extend([interrupts.requested, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, before]
