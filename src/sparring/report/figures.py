"""The report's figures over steps: what is learned, what the Challenger asks, and where the time goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from sparring.report.charts import Chart, Drawn, Stack
from sparring.report.drawing import COLOURS, ENTITY, MUTED, REFERENCE
from sparring.report.limits import Limits, rules_on
from sparring.report.methods import Method
from sparring.report.run import Run

LEARNING, TIME = "Learning", "Time"
SEEING = "Looking and reading"
CURRICULUM, GIVEN = "The Challenger's curriculum", "Queries and answers"
BY_TASK = "The curriculum, task by task"
MOST_TASKS = 7
TASK_REACH = 0.1  # a step has few queries of a task


def charts(methods: Sequence[Method]) -> Iterator[Chart | Stack]:
    """Every chart but health's, in the order of the page; what nobody measured has no panel."""
    yield from _learning(methods)
    yield from _seeing(methods)
    yield from _curriculum(methods)
    yield from _by_task(methods)


def _learning(methods: Sequence[Method]) -> Iterator[Chart]:
    splits = {key: key.removeprefix("eval/") for key in _keys(methods, "eval/")}
    lines = {key: (name, ENTITY.get(name, COLOURS[4])) for key, name in splits.items()}
    caption = "Measured on held-out items during training; dashed: the base model."
    yield Chart(LEARNING, "accuracy", "Held-out accuracy", caption, lines, dots=True, decorate=_bases)
    yield Chart(
        LEARNING,
        "anchor",
        "Win rate against the run's start",
        "Health's matches on held-out questions, with their 95\u00a0% interval; dashed: parity.",
        {"health/anchor/win_rate": ("win rate", COLOURS[2])},
        dots=True,
        decorate=_interval,
    )
    yield Chart(
        LEARNING,
        "nll",
        "NLL of the answers",
        "Nats a token; held out: rows that are not trained.",
        {"nll/train": ("trained", COLOURS[0]), "nll/held_out": ("held out", COLOURS[2])},
    )
    yield Chart(
        LEARNING,
        "value",
        "V: mean reward",
        "Mean reward of the Solver's answers, R only; self-play reward alone can mislead.",
        {"game/V": ("V", COLOURS[0])},
    )
    yield Chart(
        LEARNING,
        "raw",
        "Raw reward",
        "The reward model's mean score before it was squeezed or standardised.",
        {"reward/raw": ("score", COLOURS[7])},
    )
    yield Chart(
        LEARNING,
        "quality",
        "V_Q: mean quality",
        "Mean quality by the rubric, of the query and its answers together.",
        {"game/V_Q": ("V_Q", COLOURS[4])},
    )


def _seeing(methods: Sequence[Method]) -> Iterator[Chart]:
    """Of games with pictures: what perceivers are paid for, and what their descriptions are worth to a reader."""
    parts = {key: key.removeprefix("payoff/perceiver/") for key in _keys(methods, "payoff/perceiver/")}
    yield Chart(
        SEEING,
        "payoff-perceiver",
        "What the perceiver is paid",
        "Mean payoff by part, weighted: its own answer, its form, and what the reader makes of its description.",
        {key: (name, COLOURS[at % len(COLOURS)]) for at, (key, name) in enumerate(parts.items())},
    )
    sources = _keys(methods, "vision/reader/")[: len(COLOURS)]
    yield Chart(
        SEEING,
        "reader",
        "Answers right from the description alone",
        "The reader's second pass, in all and by where a question comes from.",
        {key: (key.removeprefix("vision/reader/"), COLOURS[at]) for at, key in enumerate(sources)},
        share=True,
    )
    yield Chart(
        SEEING,
        "described",
        "Descriptions and boxes",
        "Share of responses with a description, with a box; and of descriptions that hold the answer's words, as an "
        "honest one may.",
        {
            "vision/described": ("described", COLOURS[0]),
            "vision/boxed": ("boxed", COLOURS[2]),
            "vision/leaked": ("holds the answer", COLOURS[1]),
        },
        share=True,
    )
    yield Chart(
        SEEING,
        "description-length",
        "Length of the descriptions",
        "Characters, mean.",
        {"vision/description_length": ("length", COLOURS[3])},
    )


def _bases(axes: Axes, drawn: Sequence[Drawn]) -> None:
    """The base's accuracy: in a split's colour, or muted where several methods share the split."""
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    one_split = len({line.key for line in drawn}) == 1 < len(drawn)
    found = {
        (base, MUTED if one_split else line.colour)
        for line in drawn
        for run in line.method.runs
        if (base := _base_accuracy(run, line.key)) is not None
    }
    for base, colour in sorted(found):
        axes.axhline(base, color=colour, linewidth=1.2, linestyle=REFERENCE)
    if found:
        axes.plot([], [], color=MUTED, linewidth=1.2, linestyle=REFERENCE, label="base")
    axes.set_ylim(0, max(axes.get_ylim()[1], 0.1))


def _base_accuracy(run: Run, key: str) -> float | None:
    steps, values = run.series(key)
    if len(steps) and steps[0] == 0:
        return float(values[0])
    subset = run.evaluation.subsets.get(key.removeprefix("eval/")) if run.evaluation else None
    return None if subset is None else subset.base_accuracy


def _interval(axes: Axes, drawn: Sequence[Drawn]) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.axhline(0.5, color=MUTED, linewidth=1.2, linestyle=REFERENCE)
    for line in drawn:
        low, high = (line.method.curve(f"health/anchor/{end}") for end in ("low", "high"))
        if low is not None and high is not None and len(low.steps_P) == len(high.steps_P):
            axes.fill_between(low.steps_P, low.values_P, high.values_P, color=line.colour, alpha=0.13, linewidth=0)


def _curriculum(methods: Sequence[Method]) -> Iterator[Chart | Stack]:
    section = CURRICULUM if _keys(methods, "game/valid_share") else GIVEN
    yield Chart(
        section,
        "level",
        "Level of the queries",
        "Mean difficulty of the valid queries, in the domain's own levels.",
        {"game/level": ("level", COLOURS[1])},
    )
    yield Chart(
        section,
        "valid",
        "Valid queries",
        f"Share of queries that can be answered at all. {rules_on(methods, ['game/valid_share'])}",
        {"game/valid_share": ("valid", COLOURS[1])},
        share=True,
        decorate=Limits(methods),
    )
    yield Stack(
        section,
        "problems",
        "Invalid queries by reason",
        "Share of the queries; the gap to 100\u00a0% was valid.",
        {key: key.removeprefix("game/problem/").replace("_", " ") for key in _keys(methods, "game/problem/")},
        share=True,
        beside="game/valid_share",
    )
    yield Stack(
        section,
        "tasks",
        "Queries by family",
        "Share of each step's queries by what they ask; a gap to 100\u00a0% was none of them.",
        {key: key.removeprefix("game/share/") for key in _keys(methods, "game/share/")},
        share=True,
    )


def _by_task(methods: Sequence[Method]) -> Iterator[Chart]:
    """From the turns that were kept; the tasks most asked."""
    told = (
        ("level", "Level", "Mean level of a task's valid queries.", False),
        ("V", "V, mean reward", "Mean reward of the answers to a task's queries: the lower, the harder.", False),
        ("valid", "Valid queries", "Share of a task's queries that can be answered at all.", True),
    )
    asked = {
        key.removeprefix("tasks/valid/"): sum(len(run.series(key)[0]) for method in methods for run in method.runs)
        for key in _keys(methods, "tasks/valid/")
    }
    most = sorted(sorted(asked, key=lambda task: -asked[task])[:MOST_TASKS])
    for kind, title, caption, share in told:
        lines = {f"tasks/{kind}/{task}": (task, COLOURS[at]) for at, task in enumerate(most)}
        yield Chart(BY_TASK, f"by-task-{kind}", f"{title}, by task", caption, lines, share=share, reach=TASK_REACH)


def time_charts(methods: Sequence[Method]) -> Iterator[Chart | Stack]:
    """Where the time goes: by phase for one method, in all for several."""
    if len(methods) == 1:
        keys = [key for key in _keys(methods, "seconds/") if key != "seconds/step"]
        phases = {key: key.removeprefix("seconds/") for key in keys}
        yield Stack(TIME, "seconds", "Seconds a step, by phase", "Where the time of a step goes.", phases)
    else:
        lines = {"seconds/step": ("seconds", COLOURS[3])}
        yield Chart(TIME, "seconds", "Seconds a step", "From one step's end to the next's.", lines)
    yield Chart(
        TIME,
        "throughput",
        "Tokens a second",
        "As the trainer counts them, over the whole step.",
        {"tokens_per_second": ("tokens a second", COLOURS[7])},
    )


def _keys(methods: Sequence[Method], prefix: str) -> list[str]:
    return list(dict.fromkeys(key for method in methods for key in method.has(prefix)))
