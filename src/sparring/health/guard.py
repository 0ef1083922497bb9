"""What a trainer asks of a run's health each step, and what happens on an alarm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from sparring.health.monitor import Monitor
from sparring.health.rules import Level, Status
from sparring.settings.health import HealthConfig
from sparring.types import Payoffs, Turn


class UnhealthyRun(RuntimeError):  # noqa: N818 - nothing failed: the run is not worth going on with
    """An alarm stopped the run; everything up to `step` is saved."""

    def __init__(self, findings: str, step: int) -> None:
        super().__init__(
            f"stopped after step {step}, and everything is saved: {findings}. To go on all the same set "
            "health.on_alarm=go_on, or the rule's threshold (health.rules), in the run's config.yaml and resume"
        )
        self.findings, self.step = findings, step

    def __reduce__(self) -> tuple[type[UnhealthyRun], tuple[str, int]]:
        return type(self), (self.findings, self.step)


class Run(Protocol):
    """What a reaction may ask of a run."""

    def keep(self, step: int) -> None:
        """Save what was learned up to this step."""
        ...

    def go_back(self) -> int | None:
        """Be as at the newest checkpoint that is sound (`Guard.sound`); its step, None where there is none."""
        ...


class Reaction(ABC):
    """What happens on an alarm. spares: it wants a sound checkpoint to be there, however old."""

    spares: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, step: int, guard: Guard, run: Run, *, last: bool) -> int:
        """The step to go on from; last: none follows."""


class GoOn(Reaction):
    """Nothing but what was said."""

    spares: ClassVar[bool] = False

    def __call__(self, step: int, guard: Guard, run: Run, *, last: bool) -> int:
        """See Reaction."""
        return step


class Stop(Reaction):
    """Save and end."""

    def __call__(self, step: int, guard: Guard, run: Run, *, last: bool) -> int:
        """See Reaction.

        Raises:
            UnhealthyRun: unless the run ends here anyway; it is then finished, and what was found has been told.
        """
        if last:
            return step
        run.keep(step)
        alarms = [str(finding) for finding in guard.status.findings if finding.level is Level.ALARM]
        raise UnhealthyRun("; ".join(alarms), step)


@dataclass(frozen=True)
class RollBack(Reaction):
    """Go on from the last sound checkpoint with a larger β and a smaller α; after so many times, stop."""

    times: int

    def __call__(self, step: int, guard: Guard, run: Run, *, last: bool) -> int:
        """See Reaction.

        Raises:
            UnhealthyRun: there is no sound checkpoint, or the run has gone back often enough.
        """
        before = guard.rollbacks
        healthy = run.go_back() if before < self.times else None
        if healthy is None:
            return Stop()(step, guard, run, last=last)
        guard.rollbacks = before + 1  # not the checkpoint's count: an older one would start it anew
        factors = {"learner.beta": guard.beta_factor, "game.alpha": guard.alpha_factor}
        changed = " and ".join(f"{name} times {factor:g}" for name, factor in factors.items() if factor != 1)
        guard.say(f"step {step}: back to step {healthy}, with {changed}")
        run.keep(healthy)  # the checkpoint knows from now on how often the run came back to it
        return healthy


REACTIONS: Mapping[str, Callable[[HealthConfig], Reaction]] = {
    "go_on": lambda config: GoOn(),
    "stop": lambda config: Stop(),
    "roll_back": lambda config: RollBack(config.rollbacks),
}


class Guard:
    """Watches a run in its trainer.

    Args:
        say: told each warning and alarm once.
        held_out: scores of the policy on the match's prompts, one each; None: there are none.

    Attributes:
        status: how the run is after the last step.
        rollbacks: times that the run went back.
    """

    def __init__(
        self, config: HealthConfig, say: Callable[[str], None], held_out: Callable[[], Sequence[float]] | None = None
    ) -> None:
        self._config, self.say, self._held_out = config, say, held_out
        self._monitor = Monitor(config)
        self._react = REACTIONS[config.on_alarm](config)
        self.status = Status(Level.OK)
        self.rollbacks = 0
        self._since: int | None = None  # the first step of the findings that last until now
        self._sound_until = 0
        self._told_of_no_start = False

    @property
    def beta_factor(self) -> float:
        """What learner.beta is multiplied by."""
        return self._config.beta_factor**self.rollbacks

    @property
    def role_factors(self) -> dict[str, float]:
        """What roles' weights are multiplied by, by role: game.alpha is the Challenger's."""
        return {"challenger": self.alpha_factor}

    @property
    def alpha_factor(self) -> float:
        """What game.alpha is multiplied by."""
        return self._config.alpha_factor**self.rollbacks

    def plays(self, step: int) -> bool:
        """Whether a match against the start is due after this step; step 0 is the start itself."""
        every = self._config.match_every
        return self._held_out is not None and bool(every) and step % every == 0

    def match(self, step: int) -> dict[str, float]:
        """health/anchor/* of a match; nothing at step 0, where the start's scores are taken, or where they are not."""
        assert self._held_out is not None
        if step == 0:
            self._monitor.anchor.begin(self._held_out())
        if step and not self._monitor.anchor.begun and not self._told_of_no_start:
            self._told_of_no_start = True
            self.say(f"step {step}: no match against the run's start, whose scores were not taken when it began")
        if step == 0 or not self._monitor.anchor.begun:
            return {}
        return self._monitor.anchor.figures(self._held_out())

    def step(
        self, step: int, turns: Sequence[Turn], payoffs: Payoffs, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """health/* of one step; metrics: all its other figures, a match's among them."""
        figures, status = self._monitor.step(turns, payoffs, metrics)
        self.found(step, status)
        for finding in self.status.news:
            self.say(f"step {step}: {finding}")
        return {**figures, "health/rollbacks": float(self.rollbacks)}

    def found(self, step: int, status: Status) -> None:
        """How the run is after a step."""
        self.status = status
        self._since = None if status.level is Level.OK else self._since or step
        self._sound_until = (self._since or step + 1) - self._config.lookback

    def sound(self, saved: Mapping[str, Any]) -> bool:
        """Whether to go back to a checkpoint of this state: nothing was found there, nor `lookback` steps later.

        A rule sees the median of some steps, so what it finds has begun before.
        """
        return "health" in saved and not saved["health"]["level"] and saved["step"] <= self._sound_until

    def spared(self, saved: Sequence[Mapping[str, Any]]) -> list[int]:
        """Of checkpoints by their states, newest first: the newest sound one and what may become sound after it."""
        if not self._react.spares:
            return []
        end = next((place + 1 for place, state in enumerate(saved) if self.sound(state)), len(saved))
        return [place for place, state in enumerate(saved[:end]) if "health" in state and not state["health"]["level"]]

    def react(self, step: int, run: Run, *, last: bool = False) -> int:
        """What the user chose for an alarm; the step to go on from. last: the run ends with this step.

        Raises:
            UnhealthyRun: the run is to stop.
        """
        return self._react(step, self, run, last=last) if self.status.level is Level.ALARM else step

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON; `level` tells a healthy one."""
        return {
            "level": int(self.status.level),
            "since": self._since,
            "match_n": self._config.match_n,
            "rollbacks": self.rollbacks,
            "monitor": self._monitor.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            ValueError: the match's questions are not those that the start was asked.
        """
        began, match_n = state.get("match_n", self._config.match_n), self._config.match_n
        if began != match_n and self._config.match_every and state["monitor"]["anchor"]["start"]:
            raise ValueError(
                f"health.match_n is {match_n}, but the run began with {began} and its start was scored on those "
                "questions: set it back, or health.match_every to 0"
            )
        self.status = Status(Level(state["level"]))
        self._since = state.get("since")
        self.rollbacks = int(state["rollbacks"])
        self._monitor.restore(state["monitor"])
