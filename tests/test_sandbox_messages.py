"""What crosses between a program and its judge, and what is believed of a sandbox's output."""

from __future__ import annotations

import contextlib
import math
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparring.sandbox import Ending, Limits, Program
from sparring.sandbox.inside.codec import Broken, Channel, Gone, Uncrossable, decode, encode
from sparring.sandbox.protocol import Written, task_of

hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=8,
)
values = st.recursive(
    hashable | st.complex_numbers(allow_nan=False) | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashable, inner, max_size=4) | st.sets(hashable),
    max_leaves=20,
)


@given(values)
def test_values_come_back_as_they_were(value: object) -> None:
    back = decode(encode(value))
    assert type(back) is type(value)
    assert back == value


def test_what_equality_hides_comes_back_too() -> None:
    assert math.isnan(decode(encode(float("nan"))))
    assert str(decode(encode(-0.0))) == "-0.0"
    assert decode(encode(10**5000)) == 10**5000
    assert decode(encode(range(5, 1, -2))) == range(5, 1, -2)
    assert list(decode(encode(iter([1, 2])))) == [1, 2]


def test_what_is_not_plain_does_not_cross() -> None:
    for value in (object(), len, type, [lambda: 1], {1: object()}):
        with pytest.raises(Uncrossable):
            encode(value)


@given(st.binary())
@example(b"l99999999:")
@example(b"d1:n")
@example(b"S1:l0:")
@example(b"d2:l0:n")
@example(b"r3:y" + b"i1:0" * 2)
@example(b"i1:_")
@example(b"i3:1_0")
@example(b"I0:")
@example(b"l1:" * 100_000)
def test_any_bytes_are_a_value_or_broken(data: bytes) -> None:
    with contextlib.suppress(Broken):
        decode(data)


def test_messages_arrive_whole_and_an_end_is_told_from_nonsense() -> None:
    source, sink = os.pipe()
    channel = Channel(source, sink)
    channel.send(["first"])
    channel.send(("second", 2))
    assert (channel.receive(), channel.receive()) == (["first"], ("second", 2))
    assert channel.last() is None
    os.write(sink, b"x" * 16)
    os.set_blocking(source, True)
    with pytest.raises(Broken):
        channel.receive()
    os.write(sink, b"%016x" % 2**40)
    with pytest.raises(Broken, match="too long"):
        channel.receive()
    os.close(sink)
    with pytest.raises(Gone):
        channel.receive()
    os.close(source)
    with pytest.raises(Gone):
        channel.send(1)


def test_a_task_is_ascii_and_its_nonce_is_its_own() -> None:
    first, second = (task_of(Program("é\ud800\x00", stdin="\n"), Limits()) for _ in range(2))
    assert first.data.isalnum()
    assert first.data.isascii()
    assert first.nonce != second.nonce
    task = decode(bytes.fromhex(first.data.decode()))
    assert (task["source"], task["how"], task["nonce"]) == ("é\ud800\x00", "alone", first.nonce)


@pytest.mark.parametrize(
    ("program", "how"),
    [
        (Program("", tests=None, entry_point="f"), "alone"),
        (Program("", tests=""), "together"),
        (Program("", tests="", entry_point="f"), "apart"),
        (Program("", tests="", entry_point="f", apart=False), "together"),
    ],
)
def test_how_a_program_is_judged(program: Program, how: str) -> None:
    assert decode(bytes.fromhex(task_of(program, Limits()).data.decode()))["how"] == how


@pytest.mark.parametrize(
    ("stdout", "stopped", "ending", "status", "said"),
    [
        (b"up\nhi\n\nN passed 0\n", None, Ending.PASSED, 0, "hi\n"),
        (b"up\n\nN crashed -11\n", None, Ending.CRASHED, -11, ""),
        (b"up\n\nN timeout None\n", None, Ending.TIMEOUT, None, ""),
        (b"up\nhi", None, Ending.EXITED, None, "hi"),
        (b"up\n\nM passed 0\n", None, Ending.EXITED, None, "\nM passed 0\n"),
        (b"up\nhi\n\nN passed 0\n", Ending.OUTPUT, Ending.OUTPUT, None, "hi\n"),
        (b"up\nhi", Ending.TIMEOUT, Ending.TIMEOUT, None, "hi"),
        (b"", None, Ending.ERROR, None, ""),
        (b"", Ending.TIMEOUT, Ending.ERROR, None, ""),
        (b"up\n\xff\n\nN failed None\n", None, Ending.FAILED, None, "\ufffd\n"),
    ],
)
def test_only_a_verdict_with_the_nonce_is_believed(
    stdout: bytes, stopped: Ending | None, ending: Ending, status: int | None, said: str
) -> None:
    outcome = Written(stdout, b"err", 1.5, stopped).outcome("N")
    assert (outcome.ending, outcome.status, outcome.stdout) == (ending, status, said)
    assert (outcome.stderr, outcome.seconds) == ("err", 1.5)
