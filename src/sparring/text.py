"""Natural language as a domain: what LSP asks of any instruction-tuned model.

The Challenger's prompt and the seven-criteria rubric follow the structure of arXiv 2509.07414, Boxes 1 and 3,
in our own words. There is no verifier: the reward is the user's. Both readers take a model's text as it comes: they
never raise, and their time grows with its length alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparring import prompts
from sparring.domains import Domain, Query, Task

EXAMPLES = ("Which planet is the largest?", "Title: Why maps lie")
"""The inputs that the Challenger's prompt shows."""

_MARKER = re.compile(r"<(/?)\s*input\s*>", re.IGNORECASE)
_ANSWER = r"(answer|output|solution|response|hint)"
_GIVEN = re.compile(rf"^[ \t>#*_`\d.)-]*{_ANSWER}[ \t*_`]*:|<\s*{_ANSWER}\s*>", re.IGNORECASE | re.MULTILINE)
_FILL = re.compile(r"\s*\S")
_GRADE = re.compile(r"<\s*(calculation|score)\s*>([^<]*)<\s*/\s*\1\s*>", re.IGNORECASE)
_NUMBER = re.compile(
    r"([0-9]{1,4})(?:\.0{1,4})?(?:\s*points?)?(?:\s*(?:/|out of)\s*([0-9]{1,4}))?(?:\s*points?)?", re.IGNORECASE
)


@dataclass(frozen=True)
class TemplateReader:
    """Reads a Challenger's text: the last pair of markers, its template filled, no answer given away.

    Args:
        shortest, longest: bounds of a query, in characters.
        examples: inputs that its prompt shows; copied, they are no query.
    """

    shortest: int = 8
    longest: int = 8000
    examples: tuple[str, ...] = EXAMPLES

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"game.challenge.shortest must be at least 1 and at most game.challenge.longest ({self.longest}), "
                f"not {self.shortest}"
            )

    def __call__(self, text: str, task: Task, complete: bool) -> Query:
        """See domains.QueryReader; a query whose markers are closed is complete, whatever follows it."""
        marked = _marked(text)
        query = (text if marked is None else marked).strip()
        return Query(query, problem="no <input> markers" if marked is None else self._problem(query, task.template))

    def _problem(self, query: str, template: str) -> str | None:
        if _MARKER.search(query):
            return "markers left in"
        if not self.shortest <= len(query) <= self.longest:
            return "too short" if len(query) < self.shortest else "too long"
        if "{}" in template and "{}" in query:
            return "template not filled"
        if template and not fills(template, query):
            return "template not kept"
        if _given(query) - _given(template):
            return "answer given away"
        if _words(query) in [_words(example) for example in self.examples]:
            return "copied from the instructions"
        return None


@dataclass(frozen=True)
class GradeReader:
    """Reads a grader's reply: R_Q as the share of points, in [0, 1].

    The last <calculation> that a <score> follows counts. None where one of them is missing or malformed, where the sum
    has not one 0 or 1 for each criterion, or where sum and totals contradict each other.

    Args:
        criteria: yes-or-no criteria of the rubric, one point each.

    >>> read = GradeReader(4)
    >>> read("Fine. <calculation>1 + 1 + 0 + 1 = 3</calculation> <score>3/4</score>")
    0.75
    >>> read("<calculation>1 + 1 + 0 + 1 = 4</calculation> <score>4</score>") is None
    True
    """

    criteria: int = 7

    def __post_init__(self) -> None:
        if self.criteria < 1:
            raise ValueError(f"game.quality.criteria must be at least 1, not {self.criteria}")

    def __call__(self, text: str) -> float | None:
        """See domains.Domain."""
        calculation, pair = None, None
        for found in _GRADE.finditer(text):
            if found[1].lower() == "calculation":
                calculation = found[2]
            elif calculation is not None:
                pair = calculation, found[2]
        if pair is None:
            return None
        total = self._sum(pair[0])
        return None if total is None or self._total(pair[1]) != total else total / self.criteria

    def _sum(self, calculation: str) -> int | None:
        """The points that are spelled out; None where they are not one a criterion, or a total beside them differs."""
        terms, *totals = calculation.split("=")
        points = [_bare(term) for term in terms.split("+")]
        if len(points) != self.criteria or not set(points) <= {"0", "1"}:
            return None
        total = points.count("1")
        return total if all(self._total(given) == total for given in totals) else None

    def _total(self, text: str) -> int | None:
        """A total such as "5", "5/7" or "5 points"; None where it is none, or is out of another number of criteria."""
        found = _NUMBER.fullmatch(_bare(text))
        if found is None or (found[2] is not None and int(found[2]) != self.criteria):
            return None
        return int(found[1])


def fills(template: str, query: str) -> bool:
    r"""Whether a query is the template with text in place of every {}; blank space around its fixed parts is free.

    >>> fills("Title: {}\nFor: {}", "Title: On maps\nFor: pupils"), fills("Title: {}", "Title: ")
    (True, False)
    """
    first, *others = [part.strip() for part in template.split("{}")]
    if not others:
        return query == first
    if not query.startswith(first):
        return False
    # The earliest end of each part leaves most room for those after it: one pass finds a way if there is one.
    at = len(first)
    *middle, last = others
    for part in middle:
        found = query.find(part, _after_fill(query, at))
        if found < 0:
            return False
        at = found + len(part)
    return query.endswith(last) and _after_fill(query, at) <= len(query) - len(last)


def _after_fill(query: str, at: int) -> int:
    """Where the shortest text with something in it ends; beyond the query where nothing follows."""
    found = _FILL.match(query, at)
    return found.end() if found else len(query) + 1


def _marked(text: str) -> str | None:
    """What stands between the last pair of markers, from the first opening one after the pair before."""
    start, last = None, None
    for marker in _MARKER.finditer(text):
        if not marker[1]:
            start = marker.end() if start is None else start
        elif start is not None:
            last, start = text[start : marker.start()], None
    return last


def _given(text: str) -> set[str]:
    """Which of answer, output, solution, response and hint are given; one left blank at the text's end gives none."""
    end = len(text.rstrip(" \t\n*_`"))
    found = [match for match in _GIVEN.finditer(text) if match[2] or match.end() < end]
    return {(match[1] or match[2]).lower() for match in found}


def _words(text: str) -> list[str]:
    words: list[str] = re.findall(r"\w+", text.casefold())
    return words[1:] if words[:1] == ["input"] else words


def _bare(text: str) -> str:
    """Without blank space, Markdown's signs and a full stop around it."""
    return text.strip(" \t\r\n*_`$").removesuffix(".").rstrip()


TEXT = Domain(
    name="text",
    challenger=prompts.read("challenger"),
    perceiver=prompts.read("perceiver"),
    reader=prompts.read("reader"),
    solver=prompts.read("solver"),
    grader=prompts.read("grader"),
    tasks=(Task(),),
    read_query=TemplateReader(),
    parse_grade=GradeReader(),
    refuse_copies=True,
)
