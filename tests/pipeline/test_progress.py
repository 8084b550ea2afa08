"""Progress without a terminal: a line now and then, with the rate and the time left."""

from __future__ import annotations

import pytest

from pipeline import progress


def test_lines_tell_the_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress("train.base", 500, "steps") as update:
        for done, seconds in ((40, 20.0), (60, 5.0), (140, 15.0)):  # resumed at 40; the second comes too soon
            now[0] += seconds
            update(done, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  train.base: 40/500 steps  loss 0.5", "  train.base: 140/500 steps 5.0/s, 0:01:12 left loss 0.5"]
