"""Out of memory names the budget to lower, whatever wraps the allocator's error."""

from __future__ import annotations

import pytest
import torch

from sparring.memory import MemoryExhaustedError, budgeted


def fail(error: Exception) -> None:
    with budgeted("updating", "learner.token_budget"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError("no more"),
    ],
)
def test_the_part_and_the_budget_are_named(error: Exception) -> None:
    with pytest.raises(MemoryExhaustedError, match=r"while updating \(.+\): lower learner\.token_budget") as caught:
        fail(error)
    assert "more lines" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_it_is_found_behind_another_error() -> None:
    wrapped = ValueError("reward 'x' raised OutOfMemoryError")
    wrapped.__cause__ = torch.OutOfMemoryError("full")
    with pytest.raises(MemoryExhaustedError, match="full"):
        fail(wrapped)


def test_the_innermost_name_stays() -> None:
    expected = pytest.raises(MemoryExhaustedError, match="while scoring")
    with expected, budgeted("sampling", "a"), budgeted("scoring", "b"):
        raise MemoryError


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match=r"^as it was$"):
        fail(ValueError("as it was"))
