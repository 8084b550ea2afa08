"""Incidents of a run, and the legend of the stage graph."""

from __future__ import annotations

from typing import Any

from pipeline.report.sections.run import KINDS, list_incidents
from pipeline.stages.graph import STAGES


def test_incidents_are_listed_and_nothing_else() -> None:
    events: list[dict[str, Any]] = [
        {"time": "2026-01-01T00:00:00.000+00:00", "event": "run_started", "todo": []},
        {"time": "2026-01-01T00:00:01.000+00:00", "event": "quarantined", "stage": "pack", "shard": 3, "reason": "bad"},
        {"time": "2026-01-01T00:00:02.000+00:00", "event": "stage_failed", "stage": "pack", "error": "x" * 999},
    ]
    first, second = list_incidents(events)
    assert first == {"time": "2026-01-01 00:00:01", "what": "quarantined", "stage": "pack", "why": "shard 3: bad"}
    assert second["why"] == "x" * 400


def test_every_kind_of_stage_is_in_the_legend() -> None:
    assert {kind.kind for kind in STAGES.values()} == set(KINDS)
