r"""Whether two expressions are equal, by math-verify (https://github.com/huggingface/Math-Verify).

Both are the results themselves, extracted: no text is searched for anything that may match. It can take for ever and
raise anything: `pool` calls it in a process that can be killed.
"""

from __future__ import annotations

import re

_BARE = (
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])|π"), r"\\pi "),
    (re.compile(r"(?<![\\A-Za-z])(?:infinity|inf)(?![A-Za-z])|∞"), r"\\infty "),
    (re.compile(r"√\s*([0-9]+|\w)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|cot|log|ln|exp)(?=[\s(])"), r"\\\1"),
    (re.compile("≤"), r"\\le "),
    (re.compile("≥"), r"\\ge "),
    (re.compile("×|·"), r"\\cdot "),
    (re.compile("[−–]"), "-"),
    (re.compile("°"), r"^\\circ "),
)


def same_expression(reference: str, given: str) -> bool:
    r"""Whether math-verify finds them equal: 0.5 and \frac{1}{2}, (x+1)^2 and x^2+2x+1, but not 2x and 2y.

    Not symmetric: where the reference is a value, "x = 5" counts as 5.
    """
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    # A box around each: math-verify then takes all of it, and nothing else.
    wanted, got = (
        parse(
            rf"\boxed{{{_spelled(text)}}}",
            extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
            parsing_timeout=None,  # type: ignore[arg-type] - its limit needs the main thread's signals
        )
        for text in (reference, given)
    )
    return bool(verify(wanted, got, timeout_seconds=None))


def _spelled(text: str) -> str:
    """Bare pi, infinity, sqrt(2) and unicode signs as LaTeX."""
    for bare, spelled in _BARE:
        text = bare.sub(spelled, text)
    return text
