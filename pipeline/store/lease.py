"""At most one driver per run: a lock in the run's storage that ends with its holder.

On a local or shared disk it is a file lock, which the kernel releases. Object stores have no locks, but they can create
an object only if it does not exist: lease number n is the object ``RUN/.lease/n.json``. Whoever creates it holds the
run, and rewrites it with a new heartbeat every few seconds. A driver that finds an unreleased lease watches it: if the
heartbeat changes, the run is taken; if it does not for `LEASE_TTL` seconds by the watcher's own clock, the holder is
gone, and lease n + 1 may be created. This compares no clocks and lists nothing. A holder that cannot write its
heartbeat for almost that long has lost the run and exits at once.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.markup import escape

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.store.driver import describe_driver, machine_identity
from pipeline.store.run import Run, current_time
from pipeline.terminal import console

HEARTBEAT_INTERVAL = 8.0  # seconds
LEASE_TTL = 60.0  # seconds without a heartbeat after which the holder is gone; shorter network failures are harmless
EXIT_FRACTION = 0.75  # of LEASE_TTL after which a holder exits, so that it is gone before anyone can follow
STALE_AGE = 900.0  # seconds by two machines' clocks, which may differ by minutes: so old a lease is not watched
FOLDER = ".lease"


def lock_run(run: Run) -> AbstractContextManager[Any]:
    """Keeps other drivers out of ``run`` inside the context.

    Raises:
        UserError: another driver holds it, or the folder cannot be written.
    """
    return _lock_file(run) if storage.is_local(run.root) else _hold_lease(run)


def is_driven(run: Run) -> bool:
    """Returns whether a driver holds ``run``."""
    if not storage.is_local(run.root):
        number, lease = _read_newest(run)
        return number > 0 and not (lease["released"] or _holder_exited(lease) or _lease_age(lease) > 2 * LEASE_TTL)
    path = Path(run.root) / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _taken_error(run: Run, holder: str = "") -> UserError:
    return UserError(
        f"run={run.root}: another imagen-ray is running there{holder}; wait for it or choose another folder"
    )


def _lock_file(run: Run) -> FileLock:
    try:
        Path(run.root).mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(run.root) / ".lock", timeout=0)
        lock.acquire()
        lock.release()
    except Timeout as error:
        raise _taken_error(run) from error
    except OSError as error:
        raise UserError(f"run={run.root}: cannot be written ({error.strerror}); choose another folder") from error
    return lock


# ------------------------------------------------------------------------------------------- on object stores


@contextmanager
def _hold_lease(run: Run) -> Iterator[None]:
    try:
        number, holder = _acquire_lease(run)
    except OSError as error:
        raise UserError(
            f"run={run.root}: cannot be read and written ({error}); check the bucket and the credentials"
        ) from error
    heartbeat = _Heartbeat(run, number, holder)
    heartbeat.start()
    try:
        yield
    finally:
        heartbeat.stop()


def _lease_path(run: Run, number: int) -> str:
    return run.path(FOLDER, f"{number:08d}.json")


def _read_newest(run: Run) -> tuple[int, dict[str, Any]]:
    """Returns the highest lease number (0: none) and that lease.

    Numbers have no gaps and leases are never deleted, so it is found by reading upwards from a hint.
    """
    number = int(storage.read_or_none(run.path(FOLDER, "newest")) or 0)
    found = storage.read_or_none(_lease_path(run, number)) if number else None
    while (above := storage.read_or_none(_lease_path(run, number + 1))) is not None:
        number, found = number + 1, above
    return number, json.loads(found) if found else {}


def _acquire_lease(run: Run) -> tuple[int, str]:
    """Returns the number of the acquired lease and the holder id written in it."""
    number, lease = _read_newest(run)
    if number and not (lease["released"] or _holder_exited(lease) or _lease_age(lease) > STALE_AGE):
        _await_expiry(run, number, lease)
    holder = uuid.uuid4().hex  # pid and timestamp are not unique across hosts
    if not storage.create(_lease_path(run, number + 1), _encode_lease(holder, 0)):
        raise _taken_error(run, ", started just before this one")
    storage.write_bytes(run.path(FOLDER, "newest"), str(number + 1).encode())
    return number + 1, holder


def _await_expiry(run: Run, number: int, lease: dict[str, Any]) -> None:
    """Returns once ``lease`` is released or had no heartbeat for `LEASE_TTL` s; UserError if its holder is alive."""
    holder = f" (process {lease['pid']} on {lease['host']}" + (f", job {lease['job']})" if lease["job"] else ")")
    console.print(f"[dim]{run.root} is locked{holder}: checking for {LEASE_TTL:.0f} s whether that driver is alive[/]")
    until = time.monotonic() + LEASE_TTL
    while time.monotonic() < until:
        time.sleep(min(HEARTBEAT_INTERVAL / 4, 2.0))
        seen = json.loads(storage.read_bytes(_lease_path(run, number)))
        if seen["released"]:
            return
        if seen["beat"] != lease["beat"] or storage.read_or_none(_lease_path(run, number + 1)) is not None:
            raise _taken_error(run, holder)


def _holder_exited(lease: dict[str, Any]) -> bool:
    """Returns whether the holder is known to be an ended process of this machine."""
    here = machine_identity()
    return here is not None and lease["machine"] == here and not Path(f"/proc/{lease['pid']}").exists()


def _lease_age(lease: dict[str, Any]) -> float:
    """Returns the seconds since the last heartbeat, up to the difference of the two machines' clocks."""
    return abs((datetime.now(UTC) - datetime.fromisoformat(lease["time"])).total_seconds())


def _encode_lease(holder: str, beat: int, released: bool = False) -> bytes:
    lease = describe_driver() | {"id": holder, "beat": beat, "time": current_time(), "released": released}
    return json.dumps(lease).encode()


class _Heartbeat(threading.Thread):
    """Writes heartbeats into the lease; exits the process if it cannot, or if another driver took the run over."""

    def __init__(self, run: Run, number: int, holder: str) -> None:
        super().__init__(daemon=True, name="lease")
        self.holder = holder
        self.lease, self.above = _lease_path(run, number), _lease_path(run, number + 1)
        self.root, self.stopping, self.beat = run.root, threading.Event(), 0
        self.exit_timer = self._start_exit_timer()

    def _start_exit_timer(self) -> threading.Timer:
        # A thread of its own: a hanging write must not delay it.
        seconds = EXIT_FRACTION * LEASE_TTL
        timer = threading.Timer(seconds, self._exit_process, [f"its storage could not be written for {seconds:.0f} s"])
        timer.daemon = True
        timer.start()
        return timer

    def run(self) -> None:
        """Writes heartbeats until `stop`."""
        while not self.stopping.wait(HEARTBEAT_INTERVAL):
            self.beat += 1
            try:
                storage.write_bytes(self.lease, _encode_lease(self.holder, self.beat))
                taken = storage.read_or_none(self.above) is not None
            except Exception as error:
                console.print(f"[yellow]{self.root}: cannot write the heartbeat ({escape(str(error))}); retrying[/]")
                continue
            if taken:
                self._exit_process("another driver took it over")
            self.exit_timer.cancel()
            self.exit_timer = self._start_exit_timer()

    def _exit_process(self, why: str) -> None:
        if self.stopping.is_set():
            return
        console.print(f"[red]error:[/] run={self.root}: {escape(why)}; this driver exits. Run it again to resume")
        os._exit(1)  # no other thread may write to the run any more

    def stop(self) -> None:
        """Releases the lease, so that the next driver need not wait."""
        self.stopping.set()
        self.join()
        self.exit_timer.cancel()
        storage.write_bytes(self.lease, _encode_lease(self.holder, self.beat, released=True))
