"""Mapping a worker over shards on real Ray: commit, resume, retry, dead processes, quarantine."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from pipeline.runtime import shard_map
from pipeline.runtime.context import Context
from pipeline.runtime.errors import StageError
from pipeline.runtime.shard_map import map_shards
from pipeline.runtime.shard_worker import ShardTask
from pipeline.store.artifact import Shard
from pipeline.store.markers import read_markers
from tests.helpers.contexts import make_context

pytestmark = pytest.mark.usefixtures("local_ray")
# Ray's workers cannot import test modules: their classes are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Upper:
    """Writes its input in upper case; fails as the shard's text says."""

    def __init__(self, notes: str) -> None:
        self.notes = Path(notes)

    def __call__(self, task: ShardTask) -> dict[str, int]:
        text = Path(task.files["in.txt"]).read_text()
        note = self.notes / f"{task.id}"
        note.write_text(note.read_text() + "x" if note.exists() else "x")
        tries = len(note.read_text())
        if text.startswith("flaky") and tries < 2:
            raise OSError("not yet")
        if text.startswith("dies") and tries < 2:
            os._exit(1)
        if text.startswith("poison"):
            raise ValueError("cannot be read")
        if text.startswith("user"):
            raise UserError("key=value: change it")
        (task.out / shard_name(task.id, "txt")).write_text(text.upper())
        return {"rows": 1, "tries": tries}


def run_upper(tmp_path: Path, texts: list[str], retries: int = 1, quarantine: int = 9) -> Context[Any, Any]:
    for name in ("in", "notes"):
        (tmp_path / name).mkdir(exist_ok=True)
    work = []
    for index, text in enumerate(texts):
        path = tmp_path / "in" / f"{index}.txt"
        path.write_text(text)
        work.append(Shard(index, {"in.txt": str(path)}))
    ctx = make_context(tmp_path / "run", "upper", cpus=2, retries=retries, max_quarantined=quarantine)
    map_shards(ctx, Upper, {"notes": str(tmp_path / "notes")}, work)
    return ctx


def test_outputs_and_counters_of_all_shards_are_collected(tmp_path: Path) -> None:
    done = run_upper(tmp_path, ["a", "b", "c"])
    assert [output.path for marker in done.finished for output in marker.outputs] == [
        "00000.txt",
        "00001.txt",
        "00002.txt",
    ]
    assert done.counters == {"rows": 3, "tries": 3}
    assert Path(done.path("00001.txt")).read_text() == "B"
    assert set(read_markers(done.folder)) == {0, 1, 2}


def test_finished_shards_are_not_processed_again(tmp_path: Path) -> None:
    first = run_upper(tmp_path, ["a", "b"])
    Path(first.path(".shards", "00001.json")).unlink()
    second = run_upper(tmp_path, ["a", "b"])
    assert [len((tmp_path / "notes" / str(i)).read_text()) for i in (0, 1)] == [1, 2]
    assert [marker.outputs for marker in second.finished] == [marker.outputs for marker in first.finished]


def test_transient_failures_are_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_map, "BACKOFF", 0.01)
    done = run_upper(tmp_path, ["flaky", "dies", "fine"])
    assert done.quarantined == []
    assert done.counters["rows"] == 3


def test_a_shard_that_always_fails_is_quarantined_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_map, "BACKOFF", 0.01)
    done = run_upper(tmp_path, ["a", "poison", "c"])
    assert done.quarantined == [{"shard": 1, "reason": "ValueError: cannot be read"}]
    assert [output.path for marker in done.finished for output in marker.outputs] == ["00000.txt", "00002.txt"]
    assert len((tmp_path / "notes" / "1").read_text()) == 2  # the first try and one retry


def test_user_errors_are_not_retried(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="key=value: change it"):
        run_upper(tmp_path, ["user"], retries=5)
    assert len((tmp_path / "notes" / "0").read_text()) == 1


def test_too_many_quarantined_shards_fail_the_stage_but_finished_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_map, "BACKOFF", 0.01)
    remedy = r"1 of 2 shards failed 2 times .* shard 1: ValueError: cannot be read.* set cluster\.max_quarantined=1"
    with pytest.raises(StageError, match=remedy):
        run_upper(tmp_path, ["a", "poison"], quarantine=0)
    assert set(read_markers(make_context(tmp_path / "run", "upper").folder)) == {0}


def test_no_shards_are_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="upper: no shard to process"):
        run_upper(tmp_path, [])


class WriteOwnName:
    """Writes the id of the process that it runs in and a name of its own."""

    def __init__(self, mark: int) -> None:
        self.name = f"{os.getpid()} {uuid.uuid4()}"

    def __call__(self, task: ShardTask) -> dict[str, int]:
        (task.out / shard_name(task.id, "txt")).write_text(self.name)
        return {}


def test_workers_are_kept_for_the_next_call_with_the_same_arguments_and_processes_for_all(tmp_path: Path) -> None:
    ctx = make_context(tmp_path / "run", "kept", cpus=1)
    processes = set[str]()

    def run_pass(subfolder: str, mark: int, keep: bool) -> set[str]:
        shards = [Shard(number, {}) for number in range(3)]
        map_shards(ctx, WriteOwnName, {"mark": mark}, shards, subfolder=subfolder, keep_workers=keep)
        names = {path.read_text() for path in Path(ctx.path(subfolder)).glob("*.txt")}
        processes.update(name.split()[0] for name in names)
        return names

    first = run_pass("first", 1, keep=True)
    assert run_pass("again", 1, keep=True) <= first
    assert len(ctx.pools) == 1
    assert not run_pass("other", 2, keep=True) & first
    assert len(ctx.pools) == 1
    ctx.close_pools()
    assert ctx.pools == {}
    before = set(processes)
    assert not run_pass("fresh", 1, keep=False) & first
    assert processes & before
