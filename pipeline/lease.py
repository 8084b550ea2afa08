"""One driver a run: a lock in the run's storage, on a local disk and on object stores alike, that ends with its holder.

On a local disk (a shared one too) it is a file lock, which the kernel gives back. An object store has no locks, but it
can write an object only where there is none: lease number n is the object ``RUN/.lease/n.json``, whoever creates it
holds the run, and says so again every few seconds by writing a new beat into it. A driver that finds a lease without
an end watches it: a beat that changes means that the run is taken; one that stands still for `TTL` seconds, by the
watcher's own clock, means that its holder is gone, and number n + 1 may be created. No clocks are compared and nothing
is listed. A holder that could not write its beat for that long has lost the run, and leaves at once.
"""

from __future__ import annotations

import json
import os
import socket
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

from dataprep import storage
from dataprep.schema import UserError
from pipeline.own_copy import JOB_SETTINGS
from pipeline.progress import console
from pipeline.store import Run, now

BEAT = 8.0  # seconds between two signs of life
TTL = 60.0  # seconds without one after which the holder counts as gone; a network cut shorter than this costs nothing
SAFE = 0.75  # of TTL: a holder stops so much earlier, so that it has left before anyone may follow
LONG_GONE = 900.0  # seconds by the clocks of two machines, which may be minutes apart: nobody needs to watch any more
FOLDER = ".lease"


def driver() -> dict[str, Any]:
    """Who this process is, for others to read: host, process id, and the Ray job that it is the entry point of."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "job": job_id()}


def _machine() -> str | None:
    """What tells whether a process id means the same process here; None where nothing does."""
    boot, pids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {pids.readlink()}" if boot.exists() and pids.is_symlink() else None


def in_job() -> bool:
    """Whether this process is the entry point of a Ray job."""
    return JOB_SETTINGS in os.environ


def job_id() -> str | None:
    """The submission id of the Ray job that this process is the entry point of; None where it is none."""
    settings = json.loads(os.environ.get(JOB_SETTINGS, "{}"))
    found = settings.get("metadata", {}).get("job_submission_id")
    return str(found) if found else None


def lock(run: Run) -> AbstractContextManager[Any]:
    """Keeps every other driver out of ``run`` while inside.

    Raises:
        UserError: another one is at work there, or the folder cannot be written.
    """
    return _file_lock(run) if storage.is_local(run.root) else _lease(run)


def is_driven(run: Run) -> bool:
    """Whether a driver is at work on ``run``."""
    if not storage.is_local(run.root):
        number, lease = _newest(run)
        return number > 0 and not (lease["released"] or _dead(lease) or _age(lease) > 2 * TTL)
    path = Path(run.root) / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _taken(run: Run, by: str = "") -> UserError:
    return UserError(f"run={run.root}: another imagen-ray is at work there{by}; wait for it or choose another run")


def _file_lock(run: Run) -> FileLock:
    try:
        Path(run.root).mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(run.root) / ".lock", timeout=0)
        lock.acquire()
        lock.release()
    except Timeout as error:
        raise _taken(run) from error
    except OSError as error:
        raise UserError(f"run={run.root}: cannot be written ({error.strerror}); choose another folder") from error
    return lock


# ------------------------------------------------------------------------------------------- on object stores


@contextmanager
def _lease(run: Run) -> Iterator[None]:
    try:
        number, holder = _acquire(run)
    except OSError as error:
        raise UserError(
            f"run={run.root}: cannot be read and written ({error}); check the bucket and the credentials"
        ) from error
    heart = _Heart(run, number, holder)
    heart.start()
    try:
        yield
    finally:
        heart.stop()


def _path(run: Run, number: int) -> str:
    return run.path(FOLDER, f"{number:08d}.json")


def _newest(run: Run) -> tuple[int, dict[str, Any]]:
    """The lease with the highest number, and that number; 0 where nobody ever held one.

    Numbers have no gaps and no lease is ever deleted, so it is found by reading upwards from a hint.
    """
    number = int(storage.read_or_none(run.path(FOLDER, "newest")) or 0)
    found = storage.read_or_none(_path(run, number)) if number else None
    while (above := storage.read_or_none(_path(run, number + 1))) is not None:
        number, found = number + 1, above
    return number, json.loads(found) if found else {}


def _acquire(run: Run) -> tuple[int, str]:
    """The number of the lease that was won, and the identity that is written in it."""
    number, lease = _newest(run)
    if number and not (lease["released"] or _dead(lease) or _age(lease) > LONG_GONE):
        _await_silence(run, number, lease)
    # Its own, lest two that came at the same second from processes of one number, or from one process, look the same.
    holder = uuid.uuid4().hex
    if not storage.create(_path(run, number + 1), _content(holder, 0)):
        raise _taken(run, ": it came first by a moment")
    storage.write_bytes(run.path(FOLDER, "newest"), str(number + 1).encode())
    return number + 1, holder


def _await_silence(run: Run, number: int, lease: dict[str, Any]) -> None:
    """Returns once ``lease`` has ended or stood still for `TTL` seconds; UserError where its holder lives."""
    who = f" (process {lease['pid']} on {lease['host']}" + (f", job {lease['job']})" if lease["job"] else ")")
    console.print(f"[dim]{run.root} is held{who}: watching for {TTL:.0f} s whether that driver still lives[/]")
    until = time.monotonic() + TTL
    while time.monotonic() < until:
        time.sleep(min(BEAT / 4, 2.0))
        seen = json.loads(storage.read_bytes(_path(run, number)))
        if seen["released"]:
            return
        if seen["beat"] != lease["beat"] or storage.read_or_none(_path(run, number + 1)) is not None:
            raise _taken(run, who)


def _dead(lease: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is not there any more; False where that is not known."""
    here = _machine()
    return here is not None and lease["machine"] == here and not Path(f"/proc/{lease['pid']}").exists()


def _age(lease: dict[str, Any]) -> float:
    """Seconds since the lease's last beat, as far as two machines' clocks agree."""
    return abs((datetime.now(UTC) - datetime.fromisoformat(lease["time"])).total_seconds())


def _content(holder: str, beat: int, released: bool = False) -> bytes:
    lease = driver() | {"id": holder, "beat": beat, "time": now(), "released": released}
    return json.dumps(lease).encode()


class _Heart(threading.Thread):
    """Writes a beat into the lease every few seconds; ends the process where it cannot, or where another took over."""

    def __init__(self, run: Run, number: int, holder: str) -> None:
        super().__init__(daemon=True, name="lease")
        self.holder = holder
        self.lease, self.above = _path(run, number), _path(run, number + 1)
        self.root, self.over, self.beat = run.root, threading.Event(), 0
        self.fuse = self._new_fuse()

    def _new_fuse(self) -> threading.Timer:
        # Apart from the thread that beats: a write that hangs must not keep it from burning down.
        fuse = threading.Timer(SAFE * TTL, self._leave, [f"its storage could not be written for {SAFE * TTL:.0f} s"])
        fuse.daemon = True
        fuse.start()
        return fuse

    def run(self) -> None:
        """Beats until told to stop."""
        while not self.over.wait(BEAT):
            self.beat += 1
            try:
                storage.write_bytes(self.lease, _content(self.holder, self.beat))
                taken = storage.read_or_none(self.above) is not None
            except Exception as error:
                console.print(
                    f"[yellow]{self.root}: no sign of life could be written ({escape(str(error))}); trying again[/]"
                )
                continue
            if taken:
                self._leave("another driver took it over")
            self.fuse.cancel()
            self.fuse = self._new_fuse()

    def _leave(self, why: str) -> None:
        if self.over.is_set():
            return
        console.print(f"[red]error:[/] run={self.root}: {escape(why)}; this driver leaves. Run it again to go on")
        os._exit(1)  # whatever the other threads are at, none of it may reach the run any more

    def stop(self) -> None:
        """Ends the lease, so that the next driver need not wait."""
        self.over.set()
        self.join()
        self.fuse.cancel()
        storage.write_bytes(self.lease, _content(self.holder, self.beat, released=True))
