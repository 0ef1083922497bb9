"""Rules by hand: thresholds, directions, patience, the warning period, drift, what is told, what survives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sparring.health.defaults import RULES
from sparring.health.rules import Absolute, Difference, Direction, Health, Level, Ratio, Rule, Status, overridden
from sparring.settings.health import HealthConfig

ABOVE, BELOW = Direction.ABOVE, Direction.BELOW
OK, WARNING, ALARM = Level.OK, Level.WARNING, Level.ALARM


def health(rule: Rule, warning_period: int = 0, first_steps: int = 2) -> Health:
    return Health([rule], warning_period, first_steps)


def levels(watching: Health, values: list[float | None]) -> list[Level]:
    return [watching.step({} if value is None else {"x": value}).level for value in values]


def test_a_threshold_itself_is_still_good() -> None:
    rule = Rule("r", "x", ABOVE, 1.0, 2.0, patience=1)
    assert levels(health(rule), [1.0, 1.01, 2.0, 2.01, 0.5]) == [OK, WARNING, WARNING, ALARM, OK]
    rule = Rule("r", "x", BELOW, 1.0, 0.5, patience=1)
    assert levels(health(rule), [1.0, 0.99, 0.5, 0.49]) == [OK, WARNING, WARNING, ALARM]


def test_without_a_threshold_there_is_never_that_level() -> None:
    assert levels(health(Rule("r", "x", ABOVE, 1.0, None, patience=1)), [9.0]) == [WARNING]
    assert levels(health(Rule("r", "x", ABOVE, None, 2.0, patience=1)), [1.5, 3.0]) == [OK, ALARM]


def test_patience_is_the_median_of_so_many_values() -> None:
    rule = Rule("r", "x", ABOVE, 1.0, 5.0, patience=3)
    # Medians from the third value on: 0, 2, 2, 9; two values are judged by nothing.
    assert levels(health(rule), [9.0, 0.0, 0.0, 2.0, 2.0, 9.0, 9.0]) == [OK, OK, OK, OK, WARNING, WARNING, ALARM]


def test_an_alarm_comes_only_after_the_warning_period() -> None:
    rule = Rule("r", "x", ABOVE, 1.0, 2.0, patience=1)
    assert levels(health(rule, 2), [3.0, 3.0, 3.0, 0.0, 3.0]) == [WARNING, WARNING, ALARM, OK, WARNING]
    # A warning that has lasted counts: the alarm's own threshold needs no second period.
    assert levels(health(rule, 2), [1.5, 1.5, 1.5, 3.0]) == [WARNING, WARNING, WARNING, ALARM]


def test_an_absent_or_broken_figure_leaves_a_rule_where_it_was() -> None:
    rule = Rule("r", "x", ABOVE, 1.0, 2.0, patience=1)
    assert levels(health(rule, 1), [3.0, None, math.nan, math.inf, 0.0, None]) == [WARNING, ALARM, ALARM, ALARM, OK, OK]


def test_drift_is_from_the_mean_of_the_first_steps() -> None:
    rule = Rule("r", "x", ABOVE, 1.0, 2.0, 1, Difference())
    assert levels(health(rule), [9.0, 11.0, 11.5, 12.5]) == [OK, OK, WARNING, ALARM]  # the start is 10
    rule = Rule("r", "x", BELOW, 0.5, 0.1, 1, Ratio())
    assert levels(health(rule), [9.0, 11.0, 5.0, 4.9, 0.9]) == [OK, OK, OK, WARNING, ALARM]
    assert levels(health(rule), [0.0, 0.0, 5.0, -5.0]) == [OK] * 4  # nothing to divide by


def test_baselines_by_hand() -> None:
    assert [baseline(3.0, 2.0) for baseline in (Absolute(), Difference(), Ratio())] == [3.0, 1.0, 1.5]


def test_a_star_judges_each_figure_by_itself() -> None:
    watching = health(Rule("r", "kl/*", ABOVE, 1.0, 2.0, patience=1))
    status = watching.step({"kl/solver": 3.0, "kl/challenger": 0.0, "skl/solver": 9.0})
    assert [finding.figure for finding in status.findings] == ["kl/solver"]


def test_each_level_is_told_once_until_it_is_over() -> None:
    watching = health(Rule("r", "x", ABOVE, 1.0, 2.0, patience=1, advice="do something"), warning_period=1)
    told = [[str(finding) for finding in watching.step({"x": x}).news] for x in (1.5, 1.5, 3.0, 1.5, 3.0, 0.0, 3.0)]
    assert [len(news) for news in told] == [1, 0, 1, 0, 0, 0, 1]
    assert told[2] == ["health alarm 'r': x is 3 (warning above 1, alarm above 2); do something"]
    assert told[6][0].startswith("health warning 'r'")


def test_the_worst_finding_is_the_runs_level() -> None:
    rules = [Rule("a", "x", ABOVE, 1.0, 2.0, patience=1), Rule("b", "y", BELOW, 1.0, 0.0, patience=1)]
    status = Health(rules, 0, 2).step({"x": 3.0, "y": 0.5})
    assert status.level is ALARM
    assert [(finding.rule.name, finding.level) for finding in status.findings] == [("a", ALARM), ("b", WARNING)]
    assert Health(rules, 0, 2).step({}) == Status(OK)


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"health\.rules\.r: .*the warning \(2\) must come before the alarm \(1\)"):
        Rule("r", "x", ABOVE, 2.0, 1.0)
    with pytest.raises(ValueError, match="patience must be at least 1"):
        Rule("r", "x", ABOVE, 1.0, 2.0, patience=0)
    with pytest.raises(ValueError, match="two rules of one name"):
        Health([Rule("r", "x", ABOVE, 1.0, 2.0)] * 2, 0, 1)


# --- thresholds by name --------------------------------------------------------------------------


def test_thresholds_are_changed_by_name() -> None:
    changed = {
        rule.name: rule for rule in overridden(RULES, {"kl": {"alarm": 0.8, "patience": 3.0}, "seen": {"alarm": None}})
    }
    assert (changed["kl"].warning, changed["kl"].alarm, changed["kl"].patience) == (0.75, 0.8, 3)
    assert changed["seen"].alarm is None
    assert [changed[rule.name] for rule in RULES if rule.name not in ("kl", "seen")] == [
        rule for rule in RULES if rule.name not in ("kl", "seen")
    ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"kll": {"alarm": 1}}, "there is no rule 'kll'; there are valid_fall"),
        ({"kl": {"alarm": 0.5}}, "the warning \\(0.75\\) must come before the alarm \\(0.5\\)"),
        ({"kl": {"patience": 2.5}}, "patience is a number of steps, not 2.5"),
        ({"kl": {"patience": None}}, "patience is a number of steps, not None"),
        ({"kl": {"treshold": 1}}, "has warning, alarm and patience, not 'treshold'"),
        ({"kl": {"patience": 0}}, "patience must be at least 1"),
    ],
)
def test_settings_refuse_what_rules_cannot_take(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HealthConfig(rules=rules)


def test_settings_survive_their_own_dump() -> None:
    config = HealthConfig(rules={"kl": {"alarm": None, "patience": 3}}, on_alarm="roll_back")
    assert HealthConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert next(rule for rule in config.judged_by() if rule.name == "kl").alarm is None


def test_a_roll_back_must_change_something() -> None:
    with pytest.raises(ValidationError, match="raise beta_factor above 1 or lower alpha_factor"):
        HealthConfig(on_alarm="roll_back", beta_factor=1.0)


def test_the_default_rules_have_names_of_their_own_and_say_what_to_do() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.advice for rule in RULES)


# --- what survives -------------------------------------------------------------------------------

VALUES = st.lists(
    st.dictionaries(st.sampled_from(["kl/a", "kl/b", "x"]), st.floats(-5, 5) | st.just(math.nan)), max_size=25
)


@given(VALUES, st.integers(0, 25), st.integers(0, 4))
def test_a_resumed_watch_goes_on_as_if_never_stopped(steps: list[dict[str, float]], cut: int, period: int) -> None:
    rules = [Rule("kl", "kl/*", ABOVE, 0.5, 2.0, 3, Difference()), Rule("x", "x", BELOW, 0.0, -1.0, 2)]
    whole, first, again = (Health(rules, period, 2) for _ in range(3))
    told = [whole.step(figures) for figures in steps]
    for figures in steps[:cut]:
        first.step(figures)
    again.restore(json.loads(json.dumps(first.state())))
    assert [again.step(figures) for figures in steps[cut:]] == told[cut:]
    assert again.state() == whole.state()


def test_a_rule_that_was_not_there_starts_anew() -> None:
    before = health(Rule("old", "x", ABOVE, 1.0, 2.0, patience=1))
    before.step({"x": 9.0})
    after = health(Rule("new", "x", ABOVE, 1.0, 2.0, patience=2))
    after.restore(before.state())
    assert levels(after, [9.0, 9.0]) == [OK, ALARM]


def test_the_page_has_the_default_rules_as_they_are() -> None:
    measured = {Absolute(): "is", Difference(): "change", Ratio(): "times"}
    page = (Path(__file__).parent.parent / "docs" / "health.md").read_text(encoding="utf-8")
    table = page[page.index("| rule | figure |") :].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    for row, rule in zip(rows, RULES, strict=True):
        limits = ["never" if limit is None else f"{limit:g}" for limit in (rule.warning, rule.alarm)]
        cells = (rule.name, rule.figure, measured[rule.baseline], rule.direction.name.lower(), *limits, rule.patience)
        assert row == f"| {' | '.join(map(str, cells))} |"


def test_fewer_first_steps_after_a_resume_leave_the_rules_alive() -> None:
    rule = Rule("r", "x", Direction.ABOVE, 0.1, 0.2, 1, Difference())
    before = Health([rule], 0, 4)
    for _ in range(4):
        before.step({"x": 0.0})
    after = Health([rule], 0, 2)
    after.restore(before.state())
    assert after.step({"x": 9.0}).level is Level.ALARM
