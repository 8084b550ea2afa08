"""The progress of a run, read from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from dataprep.io.errors import UserError
from pipeline.jobs import status
from pipeline.jobs.status import RunStatus, StageStatus, read_status, render_status
from tests.helpers.small_runs import write_small_run


def render(found: RunStatus) -> list[str]:
    console = Console(width=400)
    with console.capture() as captured:
        console.print(render_status(found))
    return captured.get().splitlines()


def test_stages_have_their_state_and_progress(tmp_path: Path) -> None:
    found = read_status(str(write_small_run(tmp_path / "run")))
    assert (found.run, found.status, found.seed, found.error) == (f"{tmp_path}/run", "finished", 7, None)
    assert found.seconds == 600
    assert found.stages == [
        StageStatus("listing", "done", "listing-1", seconds=1.25, files=1, counters={"rows": 3, "usable": 3}),
        StageStatus("download", "pending", "download-1", shards_done=2),
        StageStatus("train.base", "pending", "train.base-1", step=40, loss=0.5),
        StageStatus("train.sr64", "pending", "train.sr64-1"),
    ]


def test_a_run_without_a_driver_is_interrupted(tmp_path: Path) -> None:
    found = read_status(str(write_small_run(tmp_path / "run", "running")))
    assert found.status == "interrupted"
    assert "interrupted (run it again to resume)" in render(found)[0]


def test_the_wall_time_of_a_working_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(write_small_run(tmp_path / "run", "running"))
    monkeypatch.setattr(status, "current_time", lambda: "2026-01-02T04:04:05.000+00:00")
    assert read_status(run).seconds == 600  # its driver was killed
    monkeypatch.setattr(status, "is_driven", lambda run: True)
    assert read_status(run).seconds == 3600


def test_an_error_is_shown_as_it_is(tmp_path: Path) -> None:
    error = "OSError: [red]no room"
    lines = render(read_status(str(write_small_run(tmp_path / "run", "failed", error=error))))
    assert lines[1] == error


def test_the_table_says_how_far_each_stage_is(tmp_path: Path) -> None:
    lines = render(read_status(str(write_small_run(tmp_path / "run"))))
    assert "started 2026-01-02T03:04:05.000+00:00, wall time 10.0 min, seed 7" in lines[0]
    assert [line.split() for line in lines[2:] if line.strip()] == [
        ["listing", "done", "1.2", "1", "rows=3", "usable=3"],
        ["download", "pending", "2", "shards", "done"],
        ["train.base", "pending", "step", "40,", "loss", "0.5000"],
        ["train.sr64", "pending"],
    ]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run.json is missing"):
        read_status(str(tmp_path))
