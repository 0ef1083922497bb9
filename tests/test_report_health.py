"""The report's health: what the rules found, where it is marked, and which limits are drawn."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex

from report_runs import panels_of, turn_rows, words, write_metrics, write_turns
from sparring.health.defaults import RULES
from sparring.health.monitor import Monitor
from sparring.health.replay import replayed
from sparring.health.rules import Level
from sparring.report.drawing import ALARM, WARNING
from sparring.report.figures import charts
from sparring.report.health_charts import health_charts
from sparring.report.methods import methods_of
from sparring.report.page import page_html
from sparring.report.run import read_run, read_runs
from sparring.runfolder import RunFolder
from sparring.settings.health import HealthConfig

STEPS = 40


def falling(folder: Path, config: str = "seed: 0\n", **more: Any) -> Path:
    """Valid queries fall from 95 % to 30 % at step 21; health is recorded."""
    rows = [
        {"step": step, "game/valid_share": 0.95 if step < 21 else 0.3, "health/level": 0.0, "kl/solver": 0.1, **more}
        for step in range(1, STEPS + 1)
    ]
    return write_metrics(folder, rows, config)


def lines_at(panel: Any, colour: str) -> list[float]:
    """Heights of the lines across in a colour."""
    lines = panel.figure.axes[0].lines
    return [line.get_ydata()[0] for line in lines if to_hex(line.get_color()) == colour and line.get_marker() == "None"]


def marks(panel: Any) -> list[tuple[str, float]]:
    """(shape, step) of the marks."""
    lines = panel.figure.axes[0].lines
    return [(line.get_marker(), line.get_xdata()[0]) for line in lines if line.get_marker() in ("^", "D")]


def panel_of(name: str, *folders: Path) -> Any:
    (panel,) = [panel for panel in panels_of(*folders) if panel.name == name]
    return panel


def test_an_episode_from_its_first_warning_to_the_end(tmp_path: Path) -> None:
    health = read_run(falling(tmp_path / "a")).health
    fall, low = health.episodes
    # The median of ten passes the threshold with the fifth bad value, at step 25; an alarm after five warnings.
    assert (fall.first.rule.name, fall.start, fall.alarm, fall.end, fall.ongoing) == ("valid_fall", 25, 30, 40, True)
    assert (low.first.rule.name, low.start, low.alarm) == ("valid", 26, None)
    assert health.alarms == [fall]
    assert [step for step, level in health.levels if level is Level.WARNING] == list(range(25, 30))
    assert not health.replayed


def test_an_episode_ends_when_the_figure_is_well_again(tmp_path: Path) -> None:
    rows = [
        {"step": step, "health/level": 0.0, "sampler_gap/solver": 0.2 if 10 <= step < 16 or 30 <= step < 36 else 0.0}
        for step in range(1, STEPS + 1)
    ]
    first, second = read_run(write_metrics(tmp_path / "a", rows)).health.episodes
    assert (first.start, first.end, first.ongoing) == (12, 17, False)  # the median of five
    assert (second.start, second.end, second.ongoing) == (32, 37, False)
    assert first.alarm is None


def test_what_the_rules_found_is_on_the_page(tmp_path: Path) -> None:
    html = page_html([falling(tmp_path / "a")])
    text = words(html)
    assert "An alarm valid_fall from step 30: game/valid_share is 0.3, −0.65 against 0.95 at the start." in text
    row = words(
        "<table>" + html.split('<table class="words">')[1].split("<tbody>")[1].split("</tr>")[0] + "</tr></table>"
    )
    assert row == (
        "25 – end alarm from 30 valid_fallgame/valid_share is 0.3, −0.65 against 0.95 at the start"
        "warning below −0.2, alarm below −0.35 from the startthe Challenger gives up the form it is asked for: "
        "raise learner.beta, lower game.alpha, or play lsp"
    )
    assert "What the rules found: 2 cases" in text


def test_alarms_are_marked_on_the_curve_and_limits_drawn(tmp_path: Path) -> None:
    panel = panel_of("valid", falling(tmp_path / "a"))
    assert sorted(marks(panel)) == [("D", 30), ("^", 25), ("^", 26)]
    assert sorted(lines_at(panel, WARNING)) == pytest.approx([0.5, 0.75])
    assert sorted(lines_at(panel, ALARM)) == pytest.approx([0.2, 0.6])
    assert "valid_fall: warning below −0.2, alarm below −0.35 from the start; valid: " in panel.caption


def test_several_runs_have_the_common_limits_only_and_a_lane_each(tmp_path: Path) -> None:
    folders = [falling(tmp_path / "a"), falling(tmp_path / "b", "seed: 0\nbeta: 1\n")]
    panel = panel_of("valid", *folders)
    assert lines_at(panel, WARNING) == [0.5]
    assert marks(panel).count(("D", 30)) == 2
    timeline = panel_of("health", *folders)
    assert [text.get_text() for text in timeline.figure.axes[0].texts] == ["a", "b"]
    assert "2 runs" in words(page_html(folders))


def test_the_timeline_has_a_lane_for_each_rule_and_figure(tmp_path: Path) -> None:
    axes = panel_of("health", falling(tmp_path / "a")).figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["valid_fall: game/valid_share", "valid: game/valid_share"]
    spans = {
        to_hex(bars.get_facecolor()[0]): [path.get_extents().intervalx.tolist() for path in bars.get_paths()]
        for bars in axes.collections[:2]
    }
    assert spans == {WARNING: [[24.5, 29.5]], ALARM: [[29.5, 40.5]]}


def test_limits_far_from_every_value_are_told_but_not_drawn(tmp_path: Path) -> None:
    panel = panel_of("kl", falling(tmp_path / "a"))
    assert lines_at(panel, WARNING) == []
    assert "Rule kl: warning above 0.75, alarm above 1.5." in panel.caption


def test_limits_in_times_of_the_start(tmp_path: Path) -> None:
    rows = [{"step": step, "health/level": 0.0, "entropy/solver": 2.0 if step < 12 else 0.5} for step in range(1, 20)]
    panel = panel_of("entropy", write_metrics(tmp_path / "a", rows))
    assert lines_at(panel, WARNING) == [pytest.approx(0.7)]
    assert lines_at(panel, ALARM) == [pytest.approx(0.3)]
    short = write_metrics(tmp_path / "b", rows[:9])
    assert lines_at(panel_of("entropy", short), WARNING) == [], "there is no start to count from yet"


def test_a_runs_own_thresholds_judge_it(tmp_path: Path) -> None:
    config = "health:\n  warning_period: 0\n  rules:\n    kl: {warning: 0.05, alarm: 0.08, patience: 3}\n"
    folder = falling(tmp_path / "a", config)
    kl = next(one for one in read_run(folder).health.episodes if one.first.rule.name == "kl")
    assert (kl.start, kl.alarm) == (3, 3)
    assert lines_at(panel_of("kl", folder), ALARM) == [0.08]
    other = falling(tmp_path / "b", "health:\n  rules: {no_such: {alarm: 1}}\n")
    run = read_run(other)
    assert any("health could not be read, so the default rules judge" in note for note in run.notes)
    assert [one.first.rule.name for one in run.health.episodes] == ["valid_fall", "valid"]


def test_roll_backs_are_told_and_marked(tmp_path: Path) -> None:
    folder = falling(tmp_path / "a")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["health/rollbacks"] = 0.0 if row["step"] < 16 else 2.0
    write_metrics(folder, rows, "seed: 0\n")
    assert read_run(folder).health.rollbacks == ((15, 2),)
    assert "rolled back to step 15 after an alarm, 2 times so far" in words(page_html([folder]))
    texts = [text.get_text() for text in panel_of("kl", folder).figure.axes[0].texts]
    assert "rolled back ×2" in texts


def test_a_run_without_figures_of_health_is_replayed(tmp_path: Path) -> None:
    rows = [{"step": step, "game/valid_share": 0.95 if step < 15 else 0.1} for step in range(1, 31)]
    folder = write_metrics(tmp_path / "a", rows)
    for step in range(1, 31):
        write_turns(folder / "turns", step, turn_rows(step))
    run = read_run(folder)
    judged = list(replayed(RunFolder(folder), Monitor(HealthConfig())))
    assert run.health.replayed
    assert run.health.levels == tuple((step, status.level) for step, _, status in judged)
    assert [row["health/queries/seen"] for row in run.rows[1:]] == [
        figures["health/queries/seen"] for _, figures, _ in judged[1:]
    ]
    assert "The run recorded no figures of health: worked out now" in words(page_html([folder]))
    assert "seen" in {panel.name for panel in panels_of(folder)}


def test_turns_that_tell_nothing_are_said_once(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "a", [{"step": step, "game/valid_share": 0.9} for step in (1, 2)])
    for step in (1, 2):
        write_turns(folder / "turns", step, [{"step": step, "other": "x"}])
    run = read_run(folder)
    (note,) = [note for note in run.notes if "health" in note]
    assert note.startswith("The turns of 2 step(s) tell nothing of the run's health (step 1:")
    assert "health/queries/seen" not in run.rows[-1]


def test_a_healthy_run_is_said_to_be_well(tmp_path: Path) -> None:
    folder = write_metrics(
        tmp_path / "a", [{"step": step, "health/level": 0.0, "kl/solver": 0.1} for step in (1, 2, 3)]
    )
    assert "No rule found anything." in words(page_html([folder]))
    assert "health" not in {panel.name for panel in panels_of(folder)}


def test_every_rules_figure_is_drawn(tmp_path: Path) -> None:
    names = [rule.figure.replace("health/*/", "health/answers/").replace("*", "solver") for rule in RULES]
    rows = [{"step": step, **dict.fromkeys(names, 0.5)} for step in (1, 2)]
    methods = methods_of(read_runs([write_metrics(tmp_path / "a", rows)]))
    drawn = {
        key for chart in (*charts(methods), *health_charts(methods)) if hasattr(chart, "lines") for key in chart.lines
    }
    for rule in RULES:
        assert any(fnmatchcase(key, rule.figure) for key in drawn), rule.name


def test_matches_against_the_start_have_their_interval_and_parity(tmp_path: Path) -> None:
    rows = [
        {"step": step, "health/anchor/win_rate": 0.6, "health/anchor/low": 0.55, "health/anchor/high": 0.7}
        for step in (25, 50)
    ]
    panel = panel_of("anchor", write_metrics(tmp_path / "a", rows))
    axes = panel.figure.axes[0]
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().intervaly.tolist() == pytest.approx([0.55, 0.7])
    assert 0.5 in [line.get_ydata()[0] for line in axes.lines]
