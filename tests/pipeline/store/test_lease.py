"""The lease on an object store: a second driver waits until the first proves alive or gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from typing import Any

import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.store import lease
from pipeline.store.driver import machine_identity
from pipeline.store.lease import is_driven, lock_run
from pipeline.store.run import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(lease, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(lease, "LEASE_TTL", 0.6)
    return Run(f"memory://{uuid.uuid4().hex}/run")


def read_lease(run: Run, number: int) -> dict[str, Any]:
    return dict(json.loads(storage.read_bytes(run.path(".lease", f"{number:08d}.json"))))


def write_foreign_lease(run: Run, **changes: object) -> None:
    """Writes an unreleased lease of a driver on another machine."""
    content = json.loads(lease._encode_lease("other", 3)) | {"host": "elsewhere", "machine": "another"} | changes
    assert storage.create(run.path(".lease", "00000001.json"), json.dumps(content).encode())


def test_a_run_is_free_once_its_driver_has_released_it(run: Run) -> None:
    assert not is_driven(run)
    for number in (1, 2, 3):
        with lock_run(run):
            assert is_driven(run) and not read_lease(run, number)["released"]
        assert not is_driven(run) and read_lease(run, number)["released"]


def test_a_live_driver_keeps_others_out(run: Run) -> None:
    with (
        lock_run(run),
        pytest.raises(UserError, match=r"another imagen-ray is running there \(process \d+ on "),
        lock_run(run),
    ):
        pass
    with lock_run(run):
        assert read_lease(run, 2)["pid"] == os.getpid()


def test_a_lease_without_heartbeat_expires(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_foreign_lease(run, job="job-1")
    assert is_driven(run)
    with lock_run(run):
        assert read_lease(run, 2)["pid"] == os.getpid()
    assert "on elsewhere, job job-1): checking" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("changes", [{"released": True}, {"time": "2020-01-01T00:00:00+00:00"}])
def test_released_and_stale_leases_are_not_watched(
    run: Run, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_await_expiry", lambda *_: pytest.fail("waited"))
    write_foreign_lease(run, **changes)
    with lock_run(run):
        assert read_lease(run, 2)["pid"] == os.getpid()


@pytest.mark.skipif(machine_identity() is None, reason="no /proc on this system")
def test_the_lease_of_an_ended_local_process_is_not_watched(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_await_expiry", lambda *_: pytest.fail("waited"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_foreign_lease(run, machine=machine_identity(), pid=ended.pid)
    with lock_run(run):
        assert read_lease(run, 2)["pid"] == os.getpid()


def test_one_of_several_waiting_drivers_gets_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    create, lock = storage.create, threading.Lock()

    def create_atomically(path: str, data: bytes) -> bool:
        with lock:  # a conditional write is atomic in a real store, but not in memory://
            return create(path, data)

    monkeypatch.setattr(storage, "create", create_atomically)
    write_foreign_lease(run)
    results: list[str] = []
    finish = threading.Event()

    def take_over() -> None:
        try:
            with lock_run(run):
                results.append("in")
                finish.wait(10)
        except UserError:
            results.append("out")

    threads = [threading.Thread(target=take_over) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(results) < 4:
        finish.wait(0.01)
    finish.set()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["in", "out", "out", "out"]


@pytest.mark.parametrize("cause", ["taken over", "cut off"])
def test_a_driver_that_lost_its_lease_exits(run: Run, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exited = threading.Event()
    monkeypatch.setattr(lease.os, "_exit", lambda status: exited.set())
    with lock_run(run):
        if cause == "taken over":
            storage.write_bytes(run.path(".lease", "00000002.json"), lease._encode_lease("other", 0))
        else:
            write = storage.write_bytes

            def fail(path: str, data: bytes) -> None:
                raise OSError("no route to host")

            monkeypatch.setattr(storage, "write_bytes", fail)
        assert exited.wait(10)
        if cause == "cut off":
            monkeypatch.setattr(storage, "write_bytes", write)


def test_the_newest_hint_may_be_outdated(run: Run) -> None:
    for _ in range(3):
        with lock_run(run):
            pass
    storage.write_bytes(run.path(".lease", "newest"), b"1")
    with lock_run(run):
        assert read_lease(run, 4)["pid"] == os.getpid()
