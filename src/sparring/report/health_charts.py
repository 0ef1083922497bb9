"""Figures of a run's health: every metric that a rule judges, and when the rules found something."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparring.health.rules import Level
from sparring.report.charts import Chart
from sparring.report.drawing import ALARM, COLOURS, ENTITY, INK, MUTED, SIZE, WARNING, Panel, canvas, steps_axis
from sparring.report.limits import Limits, roll_back_lines, rules_on
from sparring.report.methods import Method
from sparring.report.watched import Watched

HEALTH = "Health of the game"
BY_ROLE = (
    ("kl", "kl/", "KL to the reference, nats", "How far each role has moved from the model the run began with.", False),
    ("entropy", "entropy/", "Entropy, nats a token", "Falls as a role grows certain; near 0 it tries nothing.", False),
    ("length", "length/", "Length, tokens", "Mean length of a role's turns.", False),
    ("truncated", "truncated/", "Cut off at max_new_tokens", "Share of turns that didn't end by themselves.", True),
    ("dead-groups", "dead_groups/", "Dead groups", "Share of groups paid alike, which teach nothing.", True),
    (
        "sampler-gap", "sampler_gap/", "Sampler against learner, nats a token",
        "How far the two are apart in what they think of the same tokens.", False,
    ),
)  # fmt: skip
"""Charts with a line for each role: name, metrics' prefix, title, caption, whether a share."""
OF_TEXTS: tuple[tuple[str, str, str, Mapping[str, tuple[str, str]], bool], ...] = (
    (
        "distinct", "Distinct queries", "Share of a step's queries that differ.",
        {"health/queries/distinct": ("distinct", COLOURS[6])}, True,
    ),
    (
        "ngrams", "Distinct phrases", "Different runs of five characters among all of a step's queries.",
        {"health/queries/ngrams": ("phrases", COLOURS[6])}, True,
    ),
    (
        "cluster", "Largest cluster", "Share of a step's queries that are variants of one.",
        {"health/queries/cluster": ("cluster", COLOURS[1])}, True,
    ),
    (
        "seen", "Queries met before", "Share of queries that equal one of the last 2000.",
        {"health/queries/seen": ("seen", COLOURS[1])}, True,
    ),
    (
        "seen-near", "Variants met before", "Share of queries that are near one of the last 2000.",
        {"health/queries/seen_near": ("near one seen", COLOURS[1])}, True,
    ),
    (
        "code", "Unasked code", "Share of answers with code among those whose query asks for none.",
        {"health/answers/code": ("code", COLOURS[3])}, True,
    ),
    (
        "language", "Drift of language", "How far scripts and wording are from those of the run's first steps, 0 to 1.",
        {
            "health/queries/language": ("queries", ENTITY["challenger"]),
            "health/answers/language": ("answers", ENTITY["solver"]),
        },
        False,
    ),
    (
        "reward-rise", "Reward since the start", "Mean reward against the first steps', in their standard deviations.",
        {"health/answers/reward": ("reward", COLOURS[0])}, False,
    ),
    (
        "divergence", "Reward without the judge", "How much further the reward has risen than the judge's score.",
        {"health/answers/divergence": ("divergence", COLOURS[3])}, False,
    ),
    (
        "anchor-high", "Best case against the start", "Upper end of the win rate's interval against the run's start.",
        {"health/anchor/high": ("upper end", COLOURS[2])}, False,
    ),
    (
        "anchor-fall", "Under its best", "Above 0 the policy has fallen surely under its best against the start.",
        {"health/anchor/fall": ("fall", COLOURS[2])}, False,
    ),
)  # fmt: skip
"""Charts of single metrics: name, title, caption, lines, whether a share."""
LONGEST_LANE = 48  # characters: the width of a panel
RARE = ("anchor-high", "anchor-fall")


def health_charts(methods: Sequence[Method]) -> Iterator[Chart]:
    """Every metric that a rule judges, and the grades that could be read."""
    for name, prefix, title, caption, share in BY_ROLE:
        keys = dict.fromkeys(key for method in methods for key in method.has(prefix))
        lines = {key: (role, ENTITY.get(role, COLOURS[4])) for key in keys if (role := key.removeprefix(prefix))}
        yield _chart(methods, name, title, caption, lines=lines, share=share)
    yield Chart(
        HEALTH,
        "grades",
        "Grades that could be read",
        "Share of the grader's replies; the others count for nobody.",
        {"quality/parse_rate": ("read", COLOURS[4])},
        share=True,
    )
    for name, title, caption, lines, share in OF_TEXTS:
        yield _chart(methods, name, title, caption, lines=lines, share=share)


def _chart(
    methods: Sequence[Method],
    name: str,
    title: str,
    caption: str,
    *,
    lines: Mapping[str, tuple[str, str]],
    share: bool,
) -> Chart:
    told = f"{caption} {rules_on(methods, list(lines))}".strip()
    return Chart(HEALTH, name, title, told, lines, share, dots=name in RARE, decorate=Limits(methods))


@dataclass(frozen=True)
class _Lane:
    name: str
    last: int
    levels: Iterable[tuple[int, Level]]


def timeline(methods: Sequence[Method]) -> Panel | None:
    """When the rules found something: a lane for each rule and figure of one run, for each of several runs; None where
    nothing was found."""
    runs = [run for method in methods for run in method.runs if run.last_step is not None]
    if not any(run.health.episodes for run in runs):
        return None
    if len(runs) == 1:
        lanes = _rule_lanes(runs[0].health, runs[0].last_step or 0)
    else:
        lanes = [_Lane(run.name, run.last_step or 0, run.health.levels) for run in runs]
    figure, axes = canvas((SIZE[0], 0.7 + 0.37 * len(lanes)))
    for at, lane in enumerate(lanes):
        axes.plot([0, lane.last], [at, at], color=MUTED, linewidth=1.2, alpha=0.5, solid_capstyle="butt")
        # Above its lane: a phone has no room for names beside it.
        axes.annotate(
            lane.name[:LONGEST_LANE], (0, at), xytext=(0, 5), textcoords="offset points", fontsize=8, color=INK
        )
        for level, colour in ((Level.WARNING, WARNING), (Level.ALARM, ALARM)):
            spans = [(step - 0.5, 1.0) for step, found in lane.levels if found is level]
            axes.broken_barh(_joined(spans), (at - 0.12, 0.24), color=colour, linewidth=0)
    if len(runs) == 1:
        roll_back_lines(axes, runs[0])
    steps_axis(axes)
    axes.set_yticks([])
    axes.set_ylim(len(lanes) - 0.6, -0.8)
    axes.set_xlim(0, max(lane.last for lane in lanes) + 1)
    caption = "Amber: a warning; red: an alarm. Each bar lasts as long as the rule found it so."
    return Panel(HEALTH, "health", "Warnings and alarms", caption, figure, keyed=True)


def _rule_lanes(health: Watched, last: int) -> list[_Lane]:
    lanes: dict[str, list[tuple[int, Level]]] = {}
    for episode in health.episodes:
        name = f"{episode.first.rule.name}: {episode.first.figure.removeprefix('health/')}"
        lanes.setdefault(name, []).extend(episode.levels)
    return [_Lane(name, last, levels) for name, levels in lanes.items()]


def _joined(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans of neighbouring steps as one: fewer shapes, and no seams between them."""
    found: list[tuple[float, float]] = []
    for start, width in spans:
        if found and abs(found[-1][0] + found[-1][1] - start) < 0.01:
            found[-1] = (found[-1][0], found[-1][1] + width)
        else:
            found.append((start, width))
    return found
