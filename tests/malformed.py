"""A thousand texts that no model should write: what parsers of answers must survive."""

from __future__ import annotations

import random

PIECES = (
    r"\boxed{", r"\boxed", "{", "}", r"\{", r"\}", "\\", r"\frac{1}{", r"\text{", "$", "$$", r"\(", r"\]",
    "####", "#### ",
    "answer", "the answer is", "Answer:", "answer = ", "**", "*", "`", "```", "```json", "_", "(", ")", "[",
    "]", "<<",
    ">>", "<", "A", "B.", "(C)", "option", "or", "x", "pi", "√", "½", "²", "⁄", "0", "1", "23", "1,000",
    "1,23", ".", ",",
    "-", "−", "+", "/", "%", "e", "e9", "e999999", "10^", "^{", "=", "≈", ":", ";", " ", "\n", "\n\n", "\t",
    "\r", "\0",
    "\u2028", "\u202e", "\u200b", "\ufeff", "\ud800", "\udfff", "\U0010ffff", "ﬁ", "İ", "ß", "١٢", "９", "𝟗",
    "的", "🙂",
    "Section 1", "P.S.", "***", "******", "- ", "* ", '"', "'", "n't", "?", "!", "...", "Dr.", "NaN", "inf",
    "Infinity",
)  # fmt: skip

HAND_MADE = (
    "", " ", "\0", "\n" * 5_000, "{" * 100_000, "}" * 100_000, r"\boxed{" * 10_000, r"\boxed{" * 9_000 + "}" * 9_000,
    "\\" * 99_999, "1" * 100_000, "1," * 10_000, ".1" * 10_000, "-" * 100_000, "answer is " * 10_000,
    "answer:" * 10_000,
    "answer: " + "*" * 100_000, "#### 1" + "1" * 100_000, "####" * 10_000, "[" * 100_000, "<" * 100_000,
    ">" * 100_000,
    "*" * 100_000, '"' * 100_000, "." * 100_000, ". " * 10_000, "!" * 100_000, "? ! " * 10_000,
    "a." * 10_000, " " * 100_000,
    "\ud800" * 1_000, "\u202e" * 1_000, "$" * 100_000, "(" * 100_000, "A" * 100_000, "A " * 10_000,
    "é\u0301" * 10_000,
    "- \n" * 10_000, "\n* " * 10_000, "```" * 10_000, '{"a":' * 20_000, "[" * 3_000 + "]" * 3_000,
    "p." * 10_000, "''" * 10_000,
    "1/" * 10_000, "1e" * 10_000, "\t\r\n" * 10_000, "a\u2028" * 10_000, "N'T " * 10_000, "word " * 20_000,
)  # fmt: skip


def malformed(n: int = 1_000, seed: int = 0) -> list[str]:
    """The hand-made ones, and random strings of pieces that parsers look for."""
    rng = random.Random(seed)
    made = ["".join(rng.choice(PIECES) for _ in range(rng.randint(1, 30))) for _ in range(n - len(HAND_MADE))]
    return [*HAND_MADE, *made]
