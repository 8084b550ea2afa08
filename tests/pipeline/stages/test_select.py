"""Stage select on a cluster: the tables of one process, whatever is interrupted."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from dataprep.filters import exchange, pair_shards
from dataprep.filters.config import SelectConfig
from dataprep.filters.pair_shards import PairShard, group_shards
from dataprep.filters.select import select_pairs
from dataprep.filters.steps import LocalRunner, StepTask, StepWorker, TaskResult
from dataprep.io import storage
from dataprep.io.parquet import read_table, write_table
from pipeline.runtime.errors import StageError
from pipeline.stages.select import ENDED, EXCHANGE, ClusterRunner
from tests.helpers.contexts import make_context
from tests.helpers.selection import make_repetitive_rows, write_shards

CONFIG = SelectConfig(min_side=0, top_similarity=0.8, max_caption_repeats=2, duplicate_pairs=True)

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PairShard]:
    """Ten shards in five groups, with exchanges of several parts."""
    monkeypatch.setattr(pair_shards, "GROUP_ROWS", 200)
    monkeypatch.setattr(exchange, "PART_BYTES", 8000)
    folder = tmp_path / "inputs"
    folder.mkdir()
    made = write_shards(folder, *make_repetitive_rows(900))
    assert len(group_shards(made)) == 5
    return made


def select_locally(shards: list[PairShard], folder: Path) -> dict[str, bytes]:
    tables = select_pairs(shards, CONFIG, LocalRunner(folder)).tables.values()
    return {Path(path).name: Path(path).read_bytes() for path in tables}


def read_tables(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.parquet")}


def test_tables_on_a_cluster_are_those_of_one_process(shards: list[PairShard], tmp_path: Path) -> None:
    ctx = make_context(tmp_path / "run", "select")
    runner = ClusterRunner(ctx)
    runner.begin()
    chosen = select_pairs(shards, CONFIG, runner)
    runner.end()
    assert read_tables(ctx.folder) == select_locally(shards, tmp_path / "local")
    assert not storage.exists(ctx.path(EXCHANGE)) and not storage.exists(ctx.path(ENDED))
    # The manifest knows the tables alone, a record a shard.
    assert [marker.id for marker in ctx.finished] == [shard.id for shard in shards]
    dropped = {f"dropped_{step['filter']}": step["dropped"] for step in chosen.funnel if step["dropped"]}
    assert ctx.counters == {"rows": chosen.rows, "kept": chosen.kept} | dropped
    assert sum(dropped.values()) == chosen.rows - chosen.kept > 300


class Interrupted(ClusterRunner):
    """Stops before its step number ``last``."""

    def __init__(self, ctx: Any, last: int) -> None:
        super().__init__(ctx)
        self.last = last
        self.names: list[str] = []

    def run(
        self, name: str, worker: type[StepWorker], arguments: Mapping[str, Any], tasks: Sequence[StepTask]
    ) -> list[TaskResult]:
        if len(self.names) == self.last:
            raise KeyboardInterrupt
        self.names.append(name)
        return super().run(name, worker, arguments, tasks)


def list_times(folder: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*.bin")}


def test_an_interrupted_selection_goes_on_where_it_was(shards: list[PairShard], tmp_path: Path) -> None:
    first = make_context(tmp_path / "run", "select")
    with pytest.raises(KeyboardInterrupt):
        select_pairs(shards, CONFIG, Interrupted(first, 12))
    before = list_times(first.folder)
    assert len(before) > 12
    ctx = make_context(tmp_path / "run", "select")
    runner = Interrupted(ctx, 1000)
    select_pairs(shards, CONFIG, runner)
    after = list_times(ctx.folder)
    assert {path: after[path] for path in before} == before and len(after) > len(before)  # nothing was done again
    assert len(set(runner.names)) == len(runner.names) > 12
    assert read_tables(ctx.folder) == select_locally(shards, tmp_path / "local")


def test_a_half_removed_exchange_is_not_used(shards: list[PairShard], tmp_path: Path) -> None:
    first = make_context(tmp_path / "run", "select")
    with pytest.raises(KeyboardInterrupt):
        select_pairs(shards, CONFIG, Interrupted(first, 8))
    for path in list(Path(first.folder).rglob("*.bin"))[::2]:
        path.unlink()  # as a driver that died while it removed the exchange
    storage.write_bytes(first.path(ENDED), b"")
    ctx = make_context(tmp_path / "run", "select")
    runner = ClusterRunner(ctx)
    runner.begin()
    select_pairs(shards, CONFIG, runner)
    assert read_tables(ctx.folder) == select_locally(shards, tmp_path / "local")


def test_a_task_that_keeps_failing_ends_the_stage(shards: list[PairShard], tmp_path: Path) -> None:
    write_table(read_table(shards[3].annotations, "annotations").slice(0, 80), shards[3].annotations, "annotations")
    ctx = make_context(tmp_path / "run", "select", retries=0, max_quarantined=1000)
    with pytest.raises(StageError, match="task 1 of step rows failed: AssertionError: shard 3: 80 rows"):
        select_pairs(shards, CONFIG, ClusterRunner(ctx))


def test_workers_killed_in_the_exchange_change_nothing(shards: list[PairShard], tmp_path: Path) -> None:
    ctx = make_context(tmp_path / "run", "select", retries=20)
    ended = threading.Event()
    killed: list[int] = []

    def kill_workers() -> None:
        while not ended.is_set():
            time.sleep(0.7)
            for child in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(child.cmdline())  # of a worker at a task, or between two
                    if title.startswith(("ray::select", "ray::WorkerProcess")) and Path(ctx.path(EXCHANGE)).exists():
                        os.kill(child.pid, signal.SIGKILL)
                        killed.append(child.pid)
                        break
                except (psutil.NoSuchProcess, ProcessLookupError):
                    continue
            if len(killed) >= 5:
                return

    killer = threading.Thread(target=kill_workers)
    killer.start()
    try:
        select_pairs(shards, CONFIG, ClusterRunner(ctx))
    finally:
        ended.set()
        killer.join()
    assert killed
    assert read_tables(ctx.folder) == select_locally(shards, tmp_path / "local")
