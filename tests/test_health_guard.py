"""The match against the start, what a trainer asks each step, what an alarm does, and replays of finished runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripted import turn_of
from sparring.domains import Query
from sparring.health.anchor import Anchor
from sparring.health.figures import said
from sparring.health.guard import Guard, UnhealthyRun
from sparring.health.monitor import Monitor
from sparring.health.replay import replayed, said_in
from sparring.health.rules import Level
from sparring.lm.base import SamplingParams
from sparring.records import turn_rows
from sparring.roles import Role
from sparring.runfolder import RunFolder
from sparring.settings.health import HealthConfig
from sparring.types import Payoff, Turn

CHALLENGER = Role("challenger", "ask", SamplingParams(8))
SOLVER = Role("solver", "{{ query }}", SamplingParams(8))
QUICK: dict[str, dict[str, float | None]] = {"valid_fall": {"patience": 1}}


def played(*queries: str) -> tuple[list[Turn], dict[Turn, Payoff]]:
    """One step of these queries, each answered once; the empty one is invalid."""
    turns: list[Turn] = []
    payoffs: dict[Turn, Payoff] = {}
    for text in queries:
        query = turn_of(CHALLENGER, CHALLENGER.prompt(), text).noting(query=Query(text, None if text else "malformed"))
        turns.append(query)
        if text:
            answer = turn_of(
                SOLVER, SOLVER.prompt(query=text, parent=query, info={"query_text": text}), f"as to {text}"
            )
            turns.append(answer)
            payoffs[answer] = Payoff(1.0, {"reward": float(len(text) % 2), "quality": None})
    return turns, payoffs


# --- the match -----------------------------------------------------------------------------------


def test_the_match_by_hand() -> None:
    anchor = Anchor()
    assert not anchor.begun
    anchor.begin([1.0, 0.0, 0.0, 1.0])
    # One win, one loss, two ties.
    figures = anchor.figures([1.0, 1.0, 0.0, 0.0])
    assert figures["health/anchor/win_rate"] == 0.5
    assert 0 <= figures["health/anchor/low"] < 0.5 < figures["health/anchor/high"] <= 1
    assert figures["health/anchor/fall"] == -figures["health/anchor/high"]  # there was no best before


def test_a_fall_is_from_the_best_match() -> None:
    anchor = Anchor()
    anchor.begin([0.0] * 200)
    best = anchor.figures([1.0] * 120 + [0.0] * 80)
    now = anchor.figures([1.0] * 20 + [0.0] * 180)
    assert now["health/anchor/fall"] == pytest.approx(best["health/anchor/low"] - now["health/anchor/high"])
    assert now["health/anchor/fall"] > 0.1
    later = anchor.figures([1.0] * 20 + [0.0] * 180)
    assert later["health/anchor/fall"] == now["health/anchor/fall"]  # from the best, not from the one before
    again = Anchor()
    again.restore(json.loads(json.dumps(anchor.state())))
    assert again.figures([1.0] * 200) == anchor.figures([1.0] * 200)


def test_the_start_against_itself_rings_nothing() -> None:
    guard = Guard(HealthConfig(match_every=1), print, lambda: [1.0, 0.0, 1.0])
    assert guard.match(0) == {}
    turns, payoffs = played("a", "b")
    for step in range(1, 9):
        guard.step(step, turns, payoffs, guard.match(step))
    assert not [finding for finding in guard.status.findings if finding.rule.name.startswith("anchor")]


def test_losing_to_the_start_rings() -> None:
    scores = [[1.0] * 100, [0.0] * 50 + [1.0] * 50]
    guard = Guard(HealthConfig(match_every=10, warning_period=0), print, lambda: scores.pop(0))
    assert guard.plays(0) and guard.plays(10) and not guard.plays(5)
    guard.match(0)
    figures = guard.match(10)
    guard.step(10, [], {}, figures)
    assert [finding.rule.name for finding in guard.status.findings] == ["anchor"]
    assert guard.status.level is Level.ALARM


def test_no_match_without_prompts_or_where_it_is_off() -> None:
    assert not Guard(HealthConfig(), print).plays(25)
    assert not Guard(HealthConfig(match_every=0), print, lambda: [1.0]).plays(0)
    with pytest.raises(ValueError, match=r"health\.match_n"):
        Anchor().begin([])
    late = Guard(HealthConfig(match_every=1), print, lambda: [1.0])
    assert late.match(1) == {}  # a run that began without health: its start is not known


# --- a run ---------------------------------------------------------------------------------------


class Run:
    """What a trainer does for a reaction."""

    def __init__(self, guard: Guard, healthy: int | None) -> None:
        self.guard, self.healthy = guard, healthy
        self.kept: list[tuple[int, int]] = []
        self.saved = guard.state()

    def keep(self, step: int) -> None:
        self.kept.append((step, self.guard.rollbacks))
        self.saved = json.loads(json.dumps(self.guard.state()))

    def go_back(self) -> int | None:
        if self.healthy is not None:
            self.guard.restore(self.saved)
        return self.healthy


def collapsing(held_out: Callable[[], list[float]] | None = None, **settings: Any) -> tuple[Guard, list[str]]:
    """A guard that has just warned: valid queries fell from all to none."""
    told: list[str] = []
    guard = Guard(HealthConfig(first_steps=2, warning_period=1, rules=QUICK, **settings), told.append, held_out)
    turns, payoffs = played("a", "b")
    for step, share in enumerate((1.0, 1.0, 0.0), 1):
        guard.step(step, turns, payoffs, {"game/valid_share": share})
    return guard, told


def test_a_warning_then_an_alarm_are_told_and_counted() -> None:
    guard, told = collapsing()
    assert guard.status.level is Level.WARNING
    figures = guard.step(4, *played("a"), {"game/valid_share": 0.0})
    assert figures["health/level"] == 2.0 and figures["health/rollbacks"] == 0.0
    assert figures["health/queries/distinct"] == 1.0
    assert [text.partition(":")[0] for text in told] == ["step 3", "step 4"]
    assert "health alarm 'valid_fall': game/valid_share is 0, -1 against 1 at the start" in told[1]


def alarmed(**settings: Any) -> tuple[Guard, list[str]]:
    guard, told = collapsing(**settings)
    guard.step(4, *played("a"), {"game/valid_share": 0.0})
    return guard, told


def test_a_warning_never_stops_a_run() -> None:
    guard, _ = collapsing()
    run = Run(guard, None)
    assert guard.react(3, run) == 3
    assert run.kept == []


def test_an_alarm_stops_a_run_that_is_saved_first() -> None:
    guard, _ = alarmed()
    run = Run(guard, None)
    with pytest.raises(UnhealthyRun, match=r"stopped after step 4.*valid_fall.*health\.on_alarm=go_on") as raised:
        guard.react(4, run)
    assert run.kept == [(4, 0)]
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_an_alarm_may_be_gone_on_from() -> None:
    guard, _ = alarmed(on_alarm="go_on")
    run = Run(guard, 2)
    assert guard.react(4, run) == 4
    assert run.kept == []


def test_an_alarm_may_send_a_run_back_with_other_weights_so_many_times() -> None:
    guard, told = collapsing(on_alarm="roll_back", rollbacks=2, beta_factor=3.0, alpha_factor=0.5)
    run = Run(guard, 2)  # saved with a warning, which is as good here
    for times, (beta, alpha) in enumerate(((3.0, 0.5), (9.0, 0.25)), 1):
        guard.step(4, *played("a"), {"game/valid_share": 0.0})
        assert guard.react(4, run) == 2
        assert (guard.rollbacks, guard.beta_factor, guard.alpha_factor) == (times, beta, alpha)
        assert run.kept[-1] == (2, times)  # a process that dies now goes on from there, as often sent back
    assert "back to step 2, with learner.beta times 9 and game.alpha times 0.25" in told[-1]
    guard.step(4, *played("a"), {"game/valid_share": 0.0})
    with pytest.raises(UnhealthyRun):
        guard.react(4, run)


def test_a_sound_checkpoint_is_older_than_what_the_rules_look_back_on() -> None:
    """Valid queries fell at step 3, warned of at once: with a lookback of 2 step 1 is sound, 2 is not."""
    guard, _ = collapsing(on_alarm="roll_back", lookback=2)
    guard.step(4, *played("a"), {"game/valid_share": 0.0})
    saved = [{"step": step, "health": {"level": 0}} for step in (1, 2, 3)]
    assert [guard.sound(state) for state in saved] == [True, False, False]
    assert not guard.sound({"step": 1, "health": {"level": 1}})
    assert not guard.sound({"step": 1})  # of a run before it had health
    well = Guard(HealthConfig(on_alarm="roll_back", lookback=2), print)
    well.step(7, *played("a"), {})
    assert [well.sound({"step": step, "health": {"level": 0}}) for step in (6, 7)] == [True, False]


def test_without_a_healthy_checkpoint_a_roll_back_stops() -> None:
    guard, _ = alarmed(on_alarm="roll_back")
    with pytest.raises(UnhealthyRun):
        guard.react(4, Run(guard, None))


def test_a_guard_survives_its_checkpoint() -> None:
    guard, _ = collapsing(match_every=1, held_out=lambda: [1.0, 0.0])
    guard.match(0)
    guard.rollbacks = 1
    told: list[str] = []
    again = Guard(HealthConfig(first_steps=2, warning_period=1, rules=QUICK), told.append, lambda: [1.0, 1.0])
    again.restore(json.loads(json.dumps(guard.state())))
    assert again.state() == guard.state()
    assert again.rollbacks == 1
    assert again.match(1)["health/anchor/win_rate"] == 0.75
    assert again.status.level is Level.WARNING
    turns, payoffs = played("a", "c", "")
    figures = {"game/valid_share": 0.0}
    assert again.step(4, turns, payoffs, figures) == guard.step(4, turns, payoffs, figures)
    assert len(told) == 1


# --- replays -------------------------------------------------------------------------------------


def test_a_replay_of_a_runs_folder_is_what_the_run_had(tmp_path: Path) -> None:
    config = HealthConfig(first_steps=2, warning_period=1, rules=QUICK)
    live = Monitor(config)
    folder = RunFolder(tmp_path / "run").create("{}", {})
    steps = [("a b", "c d"), ("a b", ""), ("e f", ""), ("", "")]
    want = []
    folder.append_metrics({"step": 0})
    for step, queries in enumerate(steps, 1):
        turns, payoffs = played(*queries)
        metrics = {"game/valid_share": sum(map(bool, queries)) / 2}
        want.append((step, *live.step(turns, payoffs, metrics)))
        folder.append_metrics({"step": step, **metrics})
        folder.write_turns(step, turn_rows(turns, payoffs, {}, set()))
        assert said_in(folder.read_turns([step])) == said(turns, payoffs)
    folder.close()
    got = list(replayed(RunFolder(tmp_path / "run"), Monitor(config)))
    assert [(step, status) for step, _, status in got] == [(step, status) for step, _, status in want]
    for (_, figures, _), (_, health, _) in zip(got, want, strict=True):
        assert health.items() <= figures.items()
    assert got[-1][2].level is Level.ALARM


def test_a_replay_without_turns_judges_the_metrics(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create("{}", {})
    for step, share in enumerate((1.0, 1.0, 0.0, 0.0), 1):
        folder.append_metrics({"step": step, "game/valid_share": share})
    folder.close()
    config = HealthConfig(first_steps=2, warning_period=1, rules=QUICK)
    found = [status.level for _, _, status in replayed(RunFolder(tmp_path / "run"), Monitor(config))]
    assert found == [Level.OK, Level.OK, Level.WARNING, Level.ALARM]
