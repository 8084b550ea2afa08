"""Stages that begin on the shards that their input has finished: the same files, kills, errors, lag."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dataprep.io.signals import SHUTDOWN
from pipeline.runtime import shard_map
from pipeline.runtime.errors import StageError
from tests.helpers.thread_workers import run_in_threads
from tests.helpers.toy_pipeline import MAPPED, STAGES, Toy, describe

DEAD: dict[str, tuple[int, ...]] = {"first": (0, 5), "left": (3,), "right": (7,)}


@pytest.fixture(autouse=True)
def _retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_map, "BACKOFF", 0.01)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_threads(monkeypatch, cpus=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the pipeline writes without streaming."""
    toy = Toy(tmp_path_factory.mktemp("plain") / "toy", stream=False)
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_in_threads(monkeypatch, cpus=2)
        made = describe(toy.run())
    order = [stage for stage, _, _, _ in toy.read_notes()]
    assert order == sorted(order, key=MAPPED.index)  # one stage after another
    return made


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize("workers", [1, 2])
def test_streaming_overlaps_the_stages_and_changes_no_file(workers: int, plain: dict[str, Any], tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", workers=workers, seconds={"rows": 0.2, "first": 0.2})
    assert describe(toy.run()) == plain
    notes = toy.read_notes()
    for before, after in [("first", "left"), ("first", "right")]:
        last = max(at for stage, _, what, at in notes if (stage, what) == (before, "end"))
        begun = [shard for stage, shard, what, at in notes if (stage, what) == (after, "start") and at < last]
        assert len(begun) >= 3, f"{after} waited for {before}"
    assert set(toy.states().values()) == {"done"}


@pytest.mark.usefixtures("in_threads")
def test_dead_workers_of_every_stage_change_no_file(plain: dict[str, Any], tmp_path: Path) -> None:
    check_dead_workers(Toy(tmp_path / "toy", dies=DEAD), plain)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(600)
def test_dead_processes_of_every_stage_change_no_file(plain: dict[str, Any], tmp_path: Path) -> None:
    """On real Ray, whose three pools share two CPUs."""
    check_dead_workers(Toy(tmp_path / "toy", dies=DEAD, workers=2), plain)


def check_dead_workers(toy: Toy, plain: dict[str, Any]) -> None:
    assert describe(toy.run()) == plain
    started = Counter((stage, shard) for stage, shard, what, _ in toy.read_notes() if what == "start")
    twice = {key for key, count in started.items() if count == 2}
    assert twice == {(stage, shard) for stage, shards in DEAD.items() for shard in shards}


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize("ended", [("left", 2), ("right", 5)])
def test_a_stopped_run_resumes_without_repeating_finished_shards(
    ended: tuple[str, int], plain: dict[str, Any], tmp_path: Path
) -> None:
    toy = Toy(tmp_path / "toy", lag=1, seconds={"left": 0.1, "right": 0.1})

    def stop() -> None:
        while not any((stage, shard, what) == (*ended, "end") for stage, shard, what, _ in toy.read_notes()):
            time.sleep(0.02)
        SHUTDOWN.set()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with pytest.raises(StageError, match="stopped by SIGTERM; finished shards are kept"):
            toy.run()
    finally:
        thread.join()
        SHUTDOWN.clear()
    assert toy.states()["whole"] == "pending"
    before, committed = len(toy.read_notes()), list_committed(toy)
    toy.stream = ended[0] == "left"  # the other run goes on without streaming
    assert describe(toy.run()) == plain
    again = {(stage, shard) for stage, shard, _, _ in toy.read_notes()[before:]}
    assert committed and not again & committed


def list_committed(toy: Toy) -> set[tuple[str, int]]:
    """Returns (stage, shard) of every shard that has a marker or belongs to a finished stage."""
    folder = toy.folder / "run" / "stages"
    found = {(path.parts[-4], int(path.stem)) for path in folder.glob("*/*/.shards/*.json") if path.stem.isdigit()}
    finished = {path.parts[-3] for path in folder.glob("*/*/manifest.json")}
    return found | {(stage, shard) for stage in finished for shard in range(toy.shards)}


@pytest.mark.usefixtures("in_threads")
def test_a_stage_is_held_back_while_its_readers_lag(tmp_path: Path) -> None:
    most = {}
    for lag in (2, 100):
        toy = Toy(tmp_path / f"{lag}", shards=12, lag=lag, seconds={"left": 0.15})
        toy.run()
        waiting, most[lag] = 0, 0
        for stage, _, what, _ in toy.read_notes():
            waiting += (stage, what) == ("first", "end")
            waiting -= (stage, what) == ("left", "start")
            most[lag] = max(most[lag], waiting)
    # Two wait, one more was being made, one is on its way to the worker of `left`.
    assert 1 <= most[2] <= 4 and most[100] >= 6, most


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize("failing", ["left", "right"])
def test_an_error_is_reported_once_the_stages_beside_it_have_finished(failing: str, tmp_path: Path) -> None:
    other = {"left": "right", "right": "left"}[failing]
    toy = Toy(tmp_path / "toy", fails={failing: (1,)}, lag=1)
    with pytest.raises(StageError, match=rf"stage {failing} failed: 1 of 8 shards failed 2 times .* cannot be read"):
        toy.run()
    expected = {"rows": "done", "first": "done", failing: "failed", other: "done", "whole": "pending"}
    assert toy.states() == expected


@pytest.mark.usefixtures("in_threads")
def test_an_input_that_fails_stops_its_readers_and_is_the_error(plain: dict[str, Any], tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy", fails={"first": (4,)})
    with pytest.raises(StageError, match="stage first failed: 1 of 8 shards failed 2 times"):
        toy.run()
    assert toy.states() == dict.fromkeys(STAGES, "pending") | {"rows": "done", "first": "failed"}
    done = {(stage, shard) for stage, shard in list_committed(toy) if stage == "left"}
    assert done == {("left", shard) for shard in (0, 1, 2, 3, 5, 6, 7)}  # what was handed over is finished and kept
    toy.fails = {}
    before = len(toy.read_notes())
    assert describe(toy.run())["whole"] == plain["whole"]
    assert {shard for stage, shard, _, _ in toy.read_notes()[before:] if stage == "left"} == {4}


@pytest.mark.usefixtures("in_threads")
def test_shards_that_an_input_gave_up_are_left_out(tmp_path: Path) -> None:
    def made(stream: bool) -> dict[str, Any]:
        toy = Toy(tmp_path / f"{stream}", stream=stream, fails={"first": (4,)}, quarantine=1)
        return describe(toy.run())

    streamed = made(True)
    assert streamed == made(False)
    assert [item["shard"] for item in streamed["first"]["quarantined"]] == [4]
    assert len(streamed["left"]["shards"]) == 7
