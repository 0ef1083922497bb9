"""What a run looks like while it goes on: a live block on a terminal, plain lines elsewhere.

Model text is shown as text: control characters are taken out and nothing in it is read as markup.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sparring.runfolder import RunFolder

if TYPE_CHECKING:
    from sparring.types import Payoff, Payoffs, Turn

SAMPLE_SECONDS = 5.0  # a sample stays this long, so that it can be read
PLAIN_SECONDS, PLAIN_STEPS = 5.0, 10  # between two plain lines: whichever comes first
PLAIN_SAMPLE_SECONDS = 30.0
WIDTH_WITHOUT_TERMINAL = 100
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn"}  # Unicode: control, format (bidi), surrogate, private, unassigned

Metrics = Mapping[str, float]
Fields = list[tuple[str, str]]


def make_console() -> Console:
    """Standard output; 100 columns where it is no terminal, so that tables keep their shape in a log."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)


def clean(text: str, limit: int = 240) -> str:
    r"""One printable line of at most `limit` characters.

    >>> clean("a\n\x1b[31mb\x00 c")
    'a [31mb c'
    """
    kept = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def training_fields(metrics: Metrics) -> Fields:
    """The step's figures that were measured, as (label, text)."""
    shown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("NLL", "nll/train", "{:z.3f}".format),
        ("held-out NLL", "nll/held_out", "{:z.3f}".format),
        ("V", "game/V", "{:z.2f}".format),
        ("V_Q", "game/V_Q", "{:z.2f}".format),
        ("valid", "game/valid_share", "{:.0%}".format),
        ("KL", "kl/solver", "{:z.4f}".format),
        ("dead groups", "game/dead_groups", "{:.0%}".format),
        ("tokens/s", "tokens_per_second", "{:,.0f}".format),
    )
    return [(label, text(metrics[key])) for label, key, text in shown if key in metrics]


def held_out_fields(metrics: Metrics, first: Metrics) -> Fields:
    """Held-out accuracy by split with its change since the run's first evaluation, in points.

    >>> held_out_fields({"eval/easy": 0.7}, {"eval/easy": 0.65})
    [('easy', '70.0% (+5.0)')]
    """
    fields = []
    for key in sorted(key for key in metrics if key.startswith("eval/")):
        change = f" ({100 * (metrics[key] - first[key]):+.1f})" if key in first else ""
        fields.append((clean(key.removeprefix("eval/")), f"{metrics[key]:.1%}{change}"))
    return fields


def sample(step: int, turns: Sequence[Turn], payoffs: Payoffs) -> Fields:
    """One exchange of a step: what was asked, what was answered, how it was paid.

    Empty where nothing was paid. A reply is preferred to a first turn; the steps go round the step's turns.
    """
    paid = [turn for turn in turns if turn in payoffs]
    candidates = [turn for turn in paid if turn.parent is not None] or paid
    if not candidates:
        return []
    turn = candidates[(step * 7919) % len(candidates)]
    asker = "prompt" if turn.parent is None else turn.parent.role.name
    asked = turn.prompt.info.get("query_text") or turn.prompt.messages[-1]["content"]
    return [
        (clean(asker), clean(str(asked)) or "(empty)"),
        (clean(turn.role.name), clean(turn.text) or "(empty)"),
        ("paid", _payoff_text(payoffs[turn])),
    ]


def _payoff_text(payoff: Payoff) -> str:
    parts = [f"{clean(name)} {'?' if x is None else format(x, '.2f')}" for name, x in payoff.parts.items()]
    return f"{payoff.total:.2f}" + (f" = {' + '.join(parts)}" if len(parts) > 1 else "")


class Display:
    """What both displays share: the trainer's Observer, as a context manager.

    Args:
        console: where to print.
        title: names the run.
        folder: the run's folder; the held-out accuracy at the start is read from its metrics.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console, title: str, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.title = console, title
        self.training = False  # whether the first step was reached
        self.step = self.steps = 0
        self.metrics: dict[str, float] = {}
        self._folder, self._clock = RunFolder(folder), clock
        self._first: dict[str, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def started(self, step: int, steps: int) -> None:
        """The run is loaded and goes on after `step`."""
        self.training, self.step, self.steps = True, step, steps

    def stepped(self, step: int, metrics: Metrics, turns: Sequence[Turn], payoffs: Payoffs) -> None:
        """A step is done. A held-out accuracy stays until the next one."""
        kept = {key: value for key, value in self.metrics.items() if key.startswith("eval/")}
        self.step, self.metrics = step, {**(kept or self._first_evaluation()), **metrics}

    def said(self, message: str) -> None:
        """Something worth a line."""
        self.console.print(Text(clean(message, 2000), style="dim"), soft_wrap=True)

    def held_out(self) -> Fields:
        """Held-out accuracies as last measured."""
        return held_out_fields(self.metrics, self._first_evaluation())

    def _first_evaluation(self) -> dict[str, float]:
        if self._first is None:
            self._first = {}
            for record in self._folder.read_metrics():
                evaluated = [key for key in record if key.startswith("eval/")]
                if evaluated:
                    self._first = {key: float(record[key] or 0) for key in evaluated}
                    break
        return self._first


class LiveDisplay(Display):
    """A block that is redrawn in place."""

    def __init__(self, console: Console, title: str, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, title, folder, clock)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task(clean(title), total=None)
        self._live = Live(self._progress, console=console, refresh_per_second=4)
        self._sample: Fields = []
        self._sampled = float("-inf")

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def started(self, step: int, steps: int) -> None:
        super().started(step, steps)
        # A new task: its speed must not count the time of loading, nor steps of an earlier session.
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(clean(self.title), total=steps, completed=step)

    def stepped(self, step: int, metrics: Metrics, turns: Sequence[Turn], payoffs: Payoffs) -> None:
        super().stepped(step, metrics, turns, payoffs)
        self._progress.update(self._task, completed=step)
        now = self._clock()
        if now - self._sampled >= SAMPLE_SECONDS:
            self._sample, self._sampled = sample(step, turns, payoffs), now
        self._live.update(self._block())

    def _block(self) -> Group:
        parts = [self._progress, _side_by_side(training_fields(self.metrics))]
        if held_out := self.held_out():
            parts.append(_side_by_side([(f"held out, {name}", value) for name, value in held_out]))
        grid = Table.grid(padding=(0, 2, 0, 0))
        for label, text in self._sample:
            grid.add_row(Text(label, style="dim"), Text(text))
        return Group(*parts, grid)


def _side_by_side(fields: Fields) -> Text:
    line = Text()
    for label, value in fields:
        line.append(f"{label} ", style="dim").append(value, style="bold").append("   ")
    return line


class PlainDisplay(Display):
    """One line now and then, for logs."""

    def __init__(self, console: Console, title: str, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, title, folder, clock)
        self._began = self._sampled = clock()
        self._first_step = self._line_step = 0
        self._line_time = float("-inf")

    def started(self, step: int, steps: int) -> None:
        super().started(step, steps)
        self._first_step, self._began = step, self._clock()

    def stepped(self, step: int, metrics: Metrics, turns: Sequence[Turn], payoffs: Payoffs) -> None:
        super().stepped(step, metrics, turns, payoffs)
        now = self._clock()
        due = now - self._line_time >= PLAIN_SECONDS or step - self._line_step >= PLAIN_STEPS
        if not due and step != self.steps:
            return
        self._line_step, self._line_time = step, now
        fields = [*training_fields(self.metrics), *self.held_out(), ("left", duration(self._left(now)))]
        self._print(f"step {step}/{self.steps}  " + "  ".join(f"{name} {value}" for name, value in fields))
        if now - self._sampled >= PLAIN_SAMPLE_SECONDS:
            self._sampled = now
            for label, text in sample(step, turns, payoffs):
                self._print(f"    {label}: {text}")

    def _left(self, now: float) -> float:
        done = self.step - self._first_step
        return (now - self._began) / done * (self.steps - self.step) if done else 0.0

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)


def duration(seconds: float) -> str:
    """Minutes and seconds, hours where there are some.

    >>> duration(75), duration(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def open_display(console: Console, title: str, folder: Path) -> Display:
    """The live display on a terminal that can redraw, else the plain one."""
    can_redraw = console.is_terminal and not console.is_dumb_terminal
    return (LiveDisplay if can_redraw else PlainDisplay)(console, title, folder)
