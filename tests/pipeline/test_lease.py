"""One driver a run where no file lock reaches: who comes second waits, sees the first live or gone, and acts on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from dataprep import storage
from dataprep.schema import UserError
from pipeline import lease
from pipeline.lease import is_driven, job_id, lock
from pipeline.store import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "TTL", 0.6)
    return Run(f"memory://{uuid.uuid4().hex}/run")


def held(run: Run, number: int) -> dict:
    return json.loads(storage.read_bytes(run.path(".lease", f"{number:08d}.json")))


def leave_behind(run: Run, **changes: object) -> None:
    """A lease of a driver elsewhere, without an end."""
    content = json.loads(lease._content("other", 3)) | {"host": "elsewhere", "machine": "another"} | changes
    assert storage.create(run.path(".lease", "00000001.json"), json.dumps(content).encode())


def test_a_run_is_free_again_once_its_driver_has_left(run: Run) -> None:
    assert not is_driven(run)
    for number in (1, 2, 3):
        with lock(run):
            assert is_driven(run) and not held(run, number)["released"]
        assert not is_driven(run) and held(run, number)["released"]


def test_a_driver_that_lives_keeps_others_out(run: Run) -> None:
    with lock(run), pytest.raises(UserError, match=r"another imagen-ray is at work there \(process \d+ on "), lock(run):
        pass
    with lock(run):
        assert held(run, 2)["pid"] == os.getpid()


def test_a_driver_that_died_elsewhere_is_followed_once_it_stood_still(run: Run, capsys: pytest.CaptureFixture) -> None:
    leave_behind(run, job="job-1")
    assert is_driven(run)
    with lock(run):
        assert held(run, 2)["pid"] == os.getpid()
    assert "on elsewhere, job job-1): watching" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("changes", [{"released": True}, {"time": "2020-01-01T00:00:00+00:00"}])
def test_nobody_is_watched_who_is_known_to_be_gone(run: Run, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_await_silence", lambda *_: pytest.fail("watched"))
    leave_behind(run, **changes)
    with lock(run):
        assert held(run, 2)["pid"] == os.getpid()


@pytest.mark.skipif(lease._machine() is None, reason="no /proc on this system")
def test_a_dead_process_of_this_machine_is_not_watched(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_await_silence", lambda *_: pytest.fail("watched"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leave_behind(run, machine=lease._machine(), pid=ended.pid)
    with lock(run):
        assert held(run, 2)["pid"] == os.getpid()


def test_of_two_that_follow_a_dead_driver_one_gets_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    create, one_at_a_time = storage.create, threading.Lock()

    def atomic(path: str, data: bytes) -> bool:
        with one_at_a_time:  # a store with conditional writes looks and writes in one step; memory:// takes two
            return create(path, data)

    monkeypatch.setattr(storage, "create", atomic)
    leave_behind(run)
    outcome: list[str] = []
    leave = threading.Event()

    def follow() -> None:
        try:
            with lock(run):
                outcome.append("in")
                leave.wait(10)
        except UserError:
            outcome.append("out")

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(outcome) < 4:
        leave.wait(0.01)
    leave.set()
    for thread in threads:
        thread.join()
    assert sorted(outcome) == ["in", "out", "out", "out"]


@pytest.mark.parametrize("cause", ["followed", "cut off"])
def test_a_driver_that_lost_its_lease_leaves_at_once(run: Run, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = threading.Event()
    monkeypatch.setattr(lease.os, "_exit", lambda status: left.set())
    with lock(run):
        if cause == "followed":
            storage.write_bytes(run.path(".lease", "00000002.json"), lease._content("other", 0))
        else:
            write = storage.write_bytes

            def cut(path: str, data: bytes) -> None:
                raise OSError("no route to host")

            monkeypatch.setattr(storage, "write_bytes", cut)
        assert left.wait(10)
        if cause == "cut off":
            monkeypatch.setattr(storage, "write_bytes", write)


def test_the_hint_may_be_old(run: Run) -> None:
    for _ in range(3):
        with lock(run):
            pass
    storage.write_bytes(run.path(".lease", "newest"), b"1")
    with lock(run):
        assert held(run, 4)["pid"] == os.getpid()


def test_the_job_is_known_by_what_ray_sets_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert job_id() is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "smoke-1"}}')
    assert job_id() == "smoke-1"
    assert lease.driver()["job"] == "smoke-1"
