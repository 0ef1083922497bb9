"""Out of memory: said with the setting that would have avoided it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LOADING = "the models' size: model.dtype=bfloat16, model.tuning=lora or qlora, or a served reward (game.reward.url)"
SAMPLING = "model.cache_tokens, game.n_queries, game.n_answers or the roles' max_new_tokens"
SCORING = "game.reward.token_budget, or put the reward model elsewhere (game.reward.device, game.reward.url)"
UPDATING = "learner.token_budget, or set model.gradient_checkpointing=true or model.tuning=lora"


class MemoryExhaustedError(RuntimeError):
    """Memory ran out in one part of a step; the message names the part and the budget to lower."""


@contextmanager
def budgeted(part: str, remedy: str) -> Iterator[None]:
    """Name `part` and `remedy` where memory runs out inside.

    Raises:
        MemoryExhaustedError: in place of the allocator's error, also where another error wraps that one.
    """
    try:
        yield
    except MemoryExhaustedError:
        raise
    except Exception as error:
        cause = _allocation_failure(error)
        if cause is None:
            raise
        first_line = str(cause).partition("\n")[0]
        raise MemoryExhaustedError(f"out of memory while {part} ({first_line}): lower {remedy}") from error


def _allocation_failure(error: BaseException | None) -> BaseException | None:
    """The allocator's own error in a chain of causes; None where there is none."""
    while error is not None:
        # By name: torch's own is not imported for a command that never needs it.
        named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
        if named or "can't allocate memory" in str(error) or "not enough memory" in str(error):
            return error
        error = error.__cause__
    return None
