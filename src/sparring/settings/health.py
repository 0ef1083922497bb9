"""Settings of a run's health: what is watched, and what happens on an alarm."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparring.health.defaults import RULES
from sparring.health.rules import Rule, overridden
from sparring.settings.base import Count, Section, Share


class HealthConfig(Section):
    """What is watched while a run goes on, and what happens on an alarm."""

    on_alarm: Literal["go_on", "stop", "roll_back"] = Field(
        default="stop",
        description="stop: save and end; roll_back: go on from the last healthy checkpoint with other weights; go_on",
    )
    warning_period: Annotated[int, Field(ge=0)] = Field(
        default=5, description="steps that a rule must have warned before it is an alarm"
    )
    first_steps: Count = Field(default=10, description="the run's first steps, whose mean drifts are measured from")
    archive: Annotated[int, Field(ge=0)] = Field(
        default=2000, description="past queries that new ones are compared with"
    )
    match_every: Annotated[int, Field(ge=0)] = Field(
        default=25, description="steps between matches against the run's start on held-out prompts; 0: none"
    )
    match_n: Count = Field(default=100, description="held-out prompts a split of such a match")
    beta_factor: Annotated[float, Field(ge=1)] = Field(
        default=2.0, description="roll_back: learner.beta is multiplied by this each time"
    )
    alpha_factor: Share = Field(default=1.0, description="roll_back: game.alpha is multiplied by this each time")
    lookback: Annotated[int, Field(ge=0)] = Field(
        default=10,
        description="roll_back: to a checkpoint at least so many steps before the first warning: rules notice late",
    )
    rollbacks: Count = Field(default=3, description="roll_back: times; the next alarm stops the run")
    rules: dict[str, dict[str, float | None]] = Field(
        default_factory=dict[str, dict[str, float | None]],
        description="thresholds by rule, over the defaults in docs/health.md: rules.kl.alarm=0.8; null: never",
    )

    @model_validator(mode="after")
    def _rules_can_be_made(self) -> Self:
        self.judged_by()
        return self

    @model_validator(mode="after")
    def _a_roll_back_changes_something(self) -> Self:
        if self.on_alarm == "roll_back" and self.beta_factor == 1 and self.alpha_factor == 1:
            raise ValueError(
                "on_alarm=roll_back would run into the same again: raise beta_factor above 1 or lower alpha_factor"
            )
        return self

    def judged_by(self) -> list[Rule]:
        """The rules, with their thresholds as set."""
        return overridden(RULES, self.rules)
