"""The wall time of a run: finished, failed, killed and working commands."""

from __future__ import annotations

from pipeline.store.wall_time import measure_wall


def make_events(*entries: tuple[int, str]) -> list[dict[str, str]]:
    return [{"time": f"2026-01-01T00:{minute:02d}:00.000+00:00", "event": kind} for minute, kind in entries]


def test_stages_side_by_side_count_once() -> None:
    stages = [(1, "stage_started"), (2, "stage_started"), (5, "stage_finished"), (6, "stage_finished")]
    assert measure_wall(make_events((0, "run_started"), *stages, (7, "run_finished"))) == 7 * 60


def test_time_between_commands_does_not_count() -> None:
    killed = [(0, "run_started"), (1, "stage_started"), (10, "forgotten")]
    failed = [(20, "run_started"), (22, "run_failed"), (23, "forgotten")]
    assert measure_wall(make_events(*killed, *failed, (30, "run_started"), (34, "run_finished"))) == (1 + 2 + 4) * 60


def test_a_working_command_lasts_until_now() -> None:
    now = "2026-01-01T00:09:00.000+00:00"
    events = make_events((0, "run_started"), (3, "stage_started"))
    assert (measure_wall(events), measure_wall(events, now)) == (3 * 60, 9 * 60)
    assert measure_wall([*events, *make_events((5, "run_finished"))], now) == 5 * 60
    assert measure_wall([], now) == 0
