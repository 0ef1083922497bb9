"""Numbers: which can be drawn, and how the page writes them."""

from __future__ import annotations

from typing import Any

NBSP = "\N{NO-BREAK SPACE}"
LARGEST = 1e100


def is_number(value: Any) -> bool:
    """True of a number that can be drawn; a metric may be null, NaN, text or have hundreds of digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def percent(value: float) -> str:
    """A share: 61.5 %."""
    return f"{100 * value:.1f}{NBSP}%"


def number(value: float | None) -> str:
    """Three digits, with a true minus; a dash for what there is not."""
    return "—" if value is None else f"{value:z.3g}".replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """A change."""
    return "—" if value is None else f"{value:+z.{digits}f}".replace("-", "−")


def span(low: float, high: float) -> str:
    """An interval of shares, in percent: 58.1 – 64.0."""
    return f"{100 * low:.1f}{NBSP}–{NBSP}{100 * high:.1f}"
