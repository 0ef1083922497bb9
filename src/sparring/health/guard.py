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
        """Be as at the newest checkpoint of a healthy step; that step, None where there is none."""
        ...


class Reaction(ABC):
    """What happens on an alarm. goes_back: it needs a healthy checkpoint, however old."""

    goes_back: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, step: int, guard: Guard, run: Run) -> int:
        """The step to go on from."""


class GoOn(Reaction):
    """Nothing but what was said."""

    def __call__(self, step: int, guard: Guard, run: Run) -> int:
        """See Reaction."""
        return step


class Stop(Reaction):
    """Save and end."""

    def __call__(self, step: int, guard: Guard, run: Run) -> int:
        """See Reaction.

        Raises:
            UnhealthyRun: always.
        """
        run.keep(step)
        alarms = [str(finding) for finding in guard.status.findings if finding.level is Level.ALARM]
        raise UnhealthyRun("; ".join(alarms), step)


@dataclass(frozen=True)
class RollBack(Reaction):
    """Go on from the last healthy checkpoint with a larger β and a smaller α; after so many times, stop."""

    times: int
    goes_back: ClassVar[bool] = True

    def __call__(self, step: int, guard: Guard, run: Run) -> int:
        """See Reaction.

        Raises:
            UnhealthyRun: there is no healthy checkpoint, or it was gone back to often enough.
        """
        before = guard.rollbacks
        healthy = run.go_back() if before < self.times else None
        if healthy is None:
            return Stop()(step, guard, run)
        guard.rollbacks = before + 1  # not the checkpoint's count: an older one would start it anew
        guard.say(
            f"step {step}: back to step {healthy}, with learner.beta times {guard.beta_factor:g} and game.alpha times "
            f"{guard.alpha_factor:g}"
        )
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

    @property
    def goes_back(self) -> bool:
        """Whether the run may have to go back to a healthy checkpoint."""
        return self._react.goes_back

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
        if step == 0 or not self._monitor.anchor.begun:
            return {}
        return self._monitor.anchor.figures(self._held_out())

    def step(
        self, step: int, turns: Sequence[Turn], payoffs: Payoffs, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """health/* of one step; metrics: all its other figures, a match's among them."""
        figures, self.status = self._monitor.step(turns, payoffs, metrics)
        for finding in self.status.news:
            self.say(f"step {step}: {finding}")
        return {**figures, "health/rollbacks": float(self.rollbacks)}

    def react(self, step: int, run: Run) -> int:
        """What the user chose for an alarm; the step to go on from.

        Raises:
            UnhealthyRun: the run is to stop.
        """
        return self._react(step, self, run) if self.status.level is Level.ALARM else step

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON; `level` tells a healthy one."""
        return {"level": int(self.status.level), "rollbacks": self.rollbacks, "monitor": self._monitor.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.status = Status(Level(state["level"]))
        self.rollbacks = int(state["rollbacks"])
        self._monitor.restore(state["monitor"])
