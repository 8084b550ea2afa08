"""Progress: a line now and then without a terminal, one display for all bars on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline import terminal


def test_lines_have_the_rate_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress("train.base", 500, "steps") as update:
        for done, seconds in ((40, 20.0), (60, 5.0), (140, 15.0)):  # resumed at 40; the second comes too soon
            now[0] += seconds
            update(done, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  train.base: 40/500 steps  loss 0.5", "  train.base: 140/500 steps 5.0/s, 0:01:12 left loss 0.5"]


def test_a_total_may_grow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage that begins before its input has finished does not know yet how many shards there will be."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress("annotate", 2, "shards") as update:
        for done, total in ((1, 4), (3, 10)):
            now[0] += 20.0
            update(done, "", total)
    assert capsys.readouterr().err.splitlines() == [
        "  annotate: 1/4 shards",
        "  annotate: 3/10 shards 0.1/s, 0:01:10 left",
    ]


def test_bars_of_stages_that_run_side_by_side_share_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "console", Console(file=io.StringIO(), force_terminal=True, width=120))
    with terminal.progress("score", 4, "shards") as one:
        shared = terminal._DISPLAY.display
        assert shared is not None
        with terminal.progress("embed", 8, "shards") as other:
            assert terminal._DISPLAY.display is shared
            one(1)
            other(2, "note")
            assert [(task.description, task.completed) for task in shared.tasks] == [("score", 1), ("embed", 2)]
            other(2, "", 9)
            assert [task.total for task in shared.tasks] == [4, 9]
        assert [task.description for task in shared.tasks] == ["score"]
    assert terminal._DISPLAY.display is None
