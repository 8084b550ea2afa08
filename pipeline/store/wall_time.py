"""The wall time of a run, read from its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

ENDS = ("run_finished", "run_failed")
OTHERS = ("forgotten",)  # events of commands that run no stage


def measure_wall(events: Sequence[Mapping[str, Any]], now: str | None = None) -> float:
    """Returns the wall time in seconds of all ``imagen-ray run`` commands that worked on a run.

    Stages that ran side by side count once; a stage that was redone counts each time.

    Args:
        events: the lines of events.jsonl, oldest first.
        now: the current time in ISO 8601, if a command is working. Without it, and for a command that was killed, the
            last event is the end.
    """
    spans: list[tuple[datetime, datetime]] = []
    is_open = False
    for event in events:
        kind, time = event["event"], datetime.fromisoformat(event["time"])
        if kind == "run_started":
            spans.append((time, time))
            is_open = True
        elif is_open and kind not in OTHERS:
            spans[-1] = (spans[-1][0], time)
            is_open = kind not in ENDS
    if is_open and now is not None:
        spans[-1] = (spans[-1][0], datetime.fromisoformat(now))
    return sum((end - start).total_seconds() for start, end in spans)
