"""The report's figures: which panels a run gets, and what each shows."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sparring.evaluation.comparison import Comparison, Evaluation
from sparring.report.drawing import (
    COLOURS,
    ENTITY,
    INK,
    MUTED,
    SIZE,
    STYLE,
    Panel,
    canvas,
    curves,
    label,
    legend,
    stack,
    steps_axis,
)
from sparring.report.run import Run


def panels(run: Run) -> list[Panel]:
    """Every panel the run has numbers for, in the order of the page."""
    with mpl.rc_context(STYLE):
        found = [
            *_learning(run),
            *_curriculum(run),
            *([_win_rates(run.evaluation)] if run.evaluation and run.evaluation.subsets else []),
            *_health(run),
            *_time(run),
        ]
    return [panel for panel in found if panel is not None]


def _learning(run: Run) -> Iterable[Panel | None]:
    yield curves(
        run,
        (
            "Learning",
            "value",
            "V: mean reward",
            "Mean reward of the Solver's answers, R only; self-play reward alone can mislead.",
        ),
        {"game/V": ("V", COLOURS[0])},
    )
    yield curves(
        run,
        ("Learning", "raw", "Raw reward", "The reward model's mean score before it was squeezed or standardised."),
        {"reward/raw": ("score", COLOURS[7])},
    )
    yield _accuracy(run)
    yield curves(
        run,
        (
            "Learning",
            "quality",
            "V_Q: mean quality",
            "Mean quality by the rubric, of the query and its answers together.",
        ),
        {"game/V_Q": ("V_Q", COLOURS[4])},
    )


def _accuracy(run: Run) -> Panel | None:
    measured = {key: run.series(key) for key in run.keys("eval/")}
    if not measured:
        return None
    figure, axes = canvas()
    dashed = (0, (4, 3))
    for key, (steps, values) in measured.items():
        name = key.removeprefix("eval/")
        colour = ENTITY.get(name, COLOURS[4])
        axes.plot(steps, values, color=colour, marker="o", markersize=3.5, linewidth=1.8, label=label(name))
        base = _base_accuracy(run, name)
        if base is not None:
            axes.axhline(base, color=colour, linewidth=1.2, linestyle=dashed)
    axes.plot([], [], color=MUTED, linewidth=1.2, linestyle=dashed, label="base")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, max(axes.get_ylim()[1], 0.1))
    steps_axis(axes)
    legend(figure, axes)
    caption = "Measured on held-out items during training, against the base model."
    return Panel("Learning", "accuracy", "Held-out accuracy", caption, figure)


def _base_accuracy(run: Run, name: str) -> float | None:
    steps, values = run.series(f"eval/{name}")
    if len(steps) and steps[0] == 0:
        return float(values[0])
    if run.evaluation and name in run.evaluation.subsets:
        return run.evaluation.subsets[name].base_accuracy
    return None


def _curriculum(run: Run) -> Iterable[Panel | None]:
    challenged = run.keys("game/valid_share")
    section = "The Challenger's curriculum" if challenged else "Queries and answers"
    yield curves(
        run,
        (
            section,
            "level",
            "Level of the queries",
            "Mean difficulty of the valid queries, in the domain's own levels.",
        ),
        {"game/level": ("level", COLOURS[1])},
    )
    yield curves(
        run,
        (section, "valid", "Valid queries", "Share of queries that can be answered at all."),
        {"game/valid_share": ("valid", COLOURS[1])},
        share=True,
    )
    yield stack(
        run,
        (section, "problems", "Invalid queries by reason", "Share of the queries; the gap to 100\u00a0% was valid."),
        [(key.removeprefix("game/problem/").replace("_", " "), key) for key in run.keys("game/problem/")],
        share=True,
        beside="game/valid_share",
    )
    yield curves(
        run,
        (section, "length", "Length, tokens", "Mean length of queries and answers."),
        {"game/query_length": ("query", COLOURS[1]), "length/solver": ("answer", COLOURS[0])},
    )
    yield stack(
        run,
        (
            section,
            "tasks",
            "Queries by task",
            "Share of each step's queries by task or family; a gap to 100\u00a0% was none of them.",
        ),
        [(key.removeprefix("game/share/"), key) for key in run.keys("game/share/")],
        share=True,
    )


def _health(run: Run) -> Iterable[Panel | None]:
    section = "Health of the game"
    yield curves(
        run,
        (
            section,
            "kl",
            "KL to the reference, nats",
            "How far each role has moved from the model the run began with.",
        ),
        _by_role(run, "kl/"),
    )
    yield curves(
        run,
        (section, "grades", "Grades that could be read", "Share of the grader's replies; the others count for nobody."),
        {"quality/parse_rate": ("read", COLOURS[4])},
        share=True,
    )
    yield curves(
        run,
        (section, "truncated", "Cut off at max_new_tokens", "Share of a role's turns that didn't end by themselves."),
        _by_role(run, "truncated/"),
        share=True,
    )
    yield curves(
        run,
        (
            section,
            "groups",
            "Dead groups and distinct queries",
            "Dead: all answers to a query earn the same, so nothing is learned from it.",
        ),
        {
            "game/dead_groups": ("dead groups", COLOURS[5]),
            "game/distinct_queries": ("distinct queries", COLOURS[6]),
        },
        share=True,
    )
    yield curves(
        run,
        (
            section,
            "entropy",
            "Entropy, nats a token",
            "Falls as a role grows certain; near 0 it explores no more.",
        ),
        _by_role(run, "entropy/"),
    )


def _time(run: Run) -> Iterable[Panel | None]:
    phases = [(key.removeprefix("seconds/"), key) for key in run.keys("seconds/") if key != "seconds/step"]
    yield stack(run, ("Time", "seconds", "Seconds a step, by phase", "Where the time of a step goes."), phases)
    yield curves(
        run,
        ("Time", "throughput", "Tokens a second", "As the trainer counts them, over the whole step."),
        {"tokens_per_second": ("tokens a second", COLOURS[7])},
    )


def _win_rates(evaluation: Evaluation) -> Panel:
    """Win rate by family with its interval: the families down the side, easy beside hard."""
    paths = [path for path, _ in evaluation.rows() if path]
    deep = any(len(path) > 1 for path in paths)
    tops = [path[0] for path in paths if len(path) == 1] if deep else [""]
    names = ["all", *dict.fromkeys(path[-1] for path in paths if len(path) == 1 + deep)]
    figure, axes = canvas((SIZE[0], 1.1 + 0.14 * len(names) * (1 + len(tops))))
    for lane, top in enumerate(tops):
        rows = [_row(evaluation, top, name) for name in names]
        places = [at + (lane - (len(tops) - 1) / 2) * 0.32 for at, row in enumerate(rows) if row]
        shown = [row for row in rows if row]
        rates, lows, highs = np.array([(row.win_rate, *row.ci95) for row in shown]).T
        colour = ENTITY.get(top, COLOURS[(lane + 2) % len(COLOURS)] if top else COLOURS[0])
        spread = [np.maximum(rates - lows, 0), np.maximum(highs - rates, 0)]
        axes.errorbar(rates, places, xerr=spread, fmt="o", color=colour, markersize=4, linewidth=1.6, label=label(top))
    axes.axvline(0.5, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(names)), [label(name) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    low, high = axes.get_xlim()
    axes.set_xlim(max(-0.02, min(low, 0.42)), min(1.02, max(high, 0.58)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if deep:
        legend(figure, axes)
    caption = "Against the base, ties counting one half; bars are 95\u00a0% intervals, dashed is parity."
    return Panel("Result", "win-rates", "Win rate by family", caption, figure)


def _row(evaluation: Evaluation, top: str, name: str) -> Comparison | None:
    if name == "all":
        return evaluation.subsets[top] if top else evaluation.overall
    return evaluation.subsets.get(f"{top}/{name}" if top else name)


def _by_role(run: Run, prefix: str) -> dict[str, tuple[str, str]]:
    roles = [key.removeprefix(prefix) for key in run.keys(prefix)]
    return {f"{prefix}{role}": (role, ENTITY.get(role, COLOURS[4])) for role in roles}
