"""Natural language as a domain: what LSP asks of any instruction-tuned model.

The Challenger's prompt and the seven-criteria rubric follow the structure of arXiv 2509.07414, Boxes 1 and 3,
in our own words. There is no verifier: the reward is the user's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sparring import prompts
from sparring.domains import Domain, Query, Task

CRITERIA = 7
_INPUT = re.compile(r"<input>(.*?)</input>", re.DOTALL)
_CALCULATION = re.compile(r"<calculation>([^<]*)</calculation>")
_SCORE = re.compile(r"<score>\s*(\d+)\s*</score>")
_SUM = re.compile(r"\s*([01](?:\s*\+\s*[01]){6})\s*=\s*(\d+)\s*")


@dataclass(frozen=True)
class TemplateReader:
    """Reads a Challenger's text: the last pair of markers, its template filled, within length bounds (characters)."""

    shortest: int = 8
    longest: int = 8000

    def __call__(self, text: str, task: Task, complete: bool) -> Query:
        """See domains.QueryReader."""
        found = _INPUT.findall(text)
        query = found[-1].strip() if found else text.strip()
        return Query(query, problem=self._problem(query, bool(found), task))

    def _problem(self, query: str, marked: bool, task: Task) -> str | None:
        if not marked:
            return "no <input> markers"
        if "<input>" in query or "</input>" in query:
            return "markers left in"
        if not self.shortest <= len(query) <= self.longest:
            return "too short" if len(query) < self.shortest else "too long"
        if task.template:
            pattern = ".+?".join(re.escape(part.strip()) for part in task.template.split("{}"))
            if "{}" in query and "{}" in task.template:
                return "template not filled"
            if not re.fullmatch(r"\s*".join(["", pattern, ""]), query, re.DOTALL):
                return "template not kept"
        return None


def parse_grade(text: str) -> float | None:
    """R_Q as points in [0, 7]; None where total or sum is missing, or they contradict each other.

    >>> parse_grade("Fine. <calculation>1+1+0+1+1+0+1 = 5</calculation> <score>5</score>")
    5.0
    >>> parse_grade("<calculation>1+1+0+1+1+0+1 = 6</calculation> <score>6</score>") is None
    True
    """
    calculations, scores = _CALCULATION.findall(text), _SCORE.findall(text)
    if not calculations or not scores:
        return None
    found = _SUM.fullmatch(calculations[-1])
    if found is None:
        return None
    points = found[1].count("1")
    return float(points) if points == int(found[2]) == int(scores[-1]) else None


TEXT = Domain(
    name="text",
    challenger=prompts.read("challenger"),
    solver=prompts.read("solver"),
    grader=prompts.read("grader"),
    tasks=(Task(),),
    read_query=TemplateReader(),
    parse_grade=parse_grade,
)
