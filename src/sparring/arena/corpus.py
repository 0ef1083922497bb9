"""What the base model is pretrained on: examples for its three roles, all made by program.

The headroom that reinforcement finds later is put in here, and nowhere else. Latent families: right answers
at every level, but ever more often a sloppy one, always of the family's own kind, so that greedy decoding
errs where sampling still succeeds. Skill families: right answers only, but high levels are ever rarer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparring.arena.language import (
    FAMILIES,
    KIND,
    LETTERS,
    OPERATIONS,
    TASKS,
    Query,
    answer,
    challenger_prompt,
    draw_level,
    draw_query,
    draw_word,
    final,
    grader_prompt,
    render_query,
    solver_prompt,
)
from sparring.arena.rubric import render_grade, score
from sparring.arena.split import held_out

CHALLENGER_SHARE, GRADER_SHARE = 0.25, 0.15
MALFORMED = 0.05
NOISE = 0.03
SLOPPY = {3: 0.03, 4: 0.06, 5: 0.15, 6: 0.55, 7: 0.65, 8: 0.68, 9: 0.7, 10: 0.72}
SKILL_MORE = {"unique": 0.33, "swap": 0.36, "fold": 0.38, "chain": 0.32}
"""Per skill family, the chance of one more level in its pretraining data (the easy test has .55)."""

Example = tuple[str, str]


def sloppy_answer(query: Query) -> str:
    """The slip a latent family is prone to: always near the end, always the same for the same query."""
    word, right = query.word, answer(query)
    if query.family == "skip":  # forgets to skip after two letters
        return word[:3:2] + word[3 : 3 + len(right) - 2]
    if query.family == "reverse":  # leaves the first two letters as they stood
        return right[:-2] + word[:2]
    if query.family == "sort":  # the last two letters come last, unsorted
        return "".join(sorted(word[:-2])) + word[-2:]
    if query.family == "flip":  # forgets the next letter for the last two
        backwards, shifted = right.split("=")
        return f"{backwards}={shifted[:-2]}{backwards[-2:]}"
    raise ValueError(f"{query.family} is not a latent family")


def _replace_one(rng: np.random.Generator, text: str) -> str:
    at = int(rng.integers(len(text)))
    return text[:at] + LETTERS[int(rng.integers(len(LETTERS)))] + text[at + 1 :]


def solver_answer(rng: np.random.Generator, query: Query) -> str:
    """The answer the corpus gives: clean for skill families, at times sloppy or noisy for latent ones."""
    if KIND[query.family] == "skill":
        return answer(query)
    if rng.random() < SLOPPY[min(max(query.level, 3), 10)]:
        return sloppy_answer(query)
    return _replace_one(rng, answer(query)) if rng.random() < NOISE else answer(query)


def _training_query(rng: np.random.Generator) -> Query:
    family = FAMILIES[int(rng.integers(len(FAMILIES)))]
    if KIND[family] == "skill":
        level = draw_level(rng, "easy", SKILL_MORE[family])
    else:
        level = draw_level(rng, "easy" if rng.random() < 0.5 else "hard")
    return Query(family, draw_word(rng, family, level), level)


def malformed_query(rng: np.random.Generator) -> str:
    """A query with one thing wrong: no family, no word, a foreign symbol, junk behind, a word too long."""
    query = draw_query(rng, "easy")
    family, word = query.family, query.word
    at = int(rng.integers(len(word) + 1))
    return [
        word,
        family + ":",
        f"{family}:{word[:at]}{'=|07'[int(rng.integers(4))]}{word[at:]}",
        f"{family}:{word}={word}",
        f"{family}:{family}:{word}",
        f"{family}:{word[:-1]}{OPERATIONS[at % 4]}{word[-1]}",
        f"{family}:{word * 5}",
        "",
    ][int(rng.integers(8))]


def _dull(rng: np.random.Generator, query: Query) -> Query:
    """The query with one symbol nearly everywhere, as a Challenger that seeks no variety writes it."""
    ops = query.level - 2 if query.family == "chain" else len(query.word)
    pool = OPERATIONS if query.family == "chain" else LETTERS
    symbol = pool[int(rng.integers(len(pool)))]
    share = rng.random()
    head = "".join(symbol if rng.random() < share else old for old in query.word[:ops])
    return Query(query.family, head + query.word[ops:], query.level)


def flawed_answer(rng: np.random.Generator, query: Query) -> str:
    """An answer with a fault of form: cut, padded, doubled, without its working, in foreign symbols."""
    right, result = answer(query), final(answer(query))
    cut = int(rng.integers(len(right) + 1))
    other = FAMILIES[int(rng.integers(4))]
    letters = "".join(symbol for symbol in query.word if symbol in LETTERS) or "ab"
    extra = draw_word(rng, "sort", int(rng.integers(1, 5)))
    return [
        right[:cut],
        right[:cut],
        right[: max(len(right) - 1, 0)],
        right + extra,
        right + right[-1],
        "",
        f"{right}={result}",
        f"{right}=",
        result,
        query.word,
        answer(Query(other, letters, len(letters))),
        f"{letters}={result}",
        right[:cut] + OPERATIONS[int(rng.integers(4))] + right[cut:],
        right[:cut] + str(rng.integers(8)) + right[cut:],
        right[:cut] + LETTERS[int(rng.integers(20))] + right[cut + 1 :],
        render_query(query),
    ][int(rng.integers(16))]


def grader_example(rng: np.random.Generator) -> Example:
    """A query and an answer, good, sloppy or faulty, with the rubric's grade."""
    query = draw_query(rng, "easy" if rng.random() < 0.5 else "hard")
    if rng.random() < 0.15:
        query = _dull(rng, query)
    text = malformed_query(rng) if rng.random() < 0.12 else render_query(query)
    given = flawed_answer(rng, query) if rng.random() < 0.45 else solver_answer(rng, query)
    return grader_prompt(text, given), render_grade(score(text, given))


def _challenger_example(rng: np.random.Generator) -> Example:
    task, template = TASKS[int(rng.integers(len(TASKS)))]
    family = template.partition(":")[0] or None
    malformed = rng.random() < MALFORMED
    text = malformed_query(rng) if malformed else render_query(draw_query(rng, "easy", family))
    return challenger_prompt(task, template), text


def _solver_example(rng: np.random.Generator) -> Example:
    query = _training_query(rng)
    return solver_prompt(render_query(query)), solver_answer(rng, query)


def examples(rng: np.random.Generator) -> Iterator[Example]:
    """Prompts and completions without end; none touches a held-out query."""
    while True:
        kind = rng.random()
        if kind < CHALLENGER_SHARE:
            prompt, completion = _challenger_example(rng)
            query_text = completion
        elif kind < CHALLENGER_SHARE + GRADER_SHARE:
            prompt, completion = grader_example(rng)
            query_text = prompt.partition(":")[2].partition("|")[0]
        else:
            prompt, completion = _solver_example(rng)
            query_text = prompt.partition(":")[2]
        if not held_out(query_text):
            yield prompt, completion
