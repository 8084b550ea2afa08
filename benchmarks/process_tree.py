"""Runs a command and measures all of its processes: wall seconds, CPU-seconds, peak memory.

CPU-seconds are those of a control group that the command is started in (Linux, cgroup v1 or v2, as root or where the
folder is writable), so processes that detach, end unseen or are never waited for count too: Ray's daemons ignore
SIGCHLD, and `os.wait4` misses half of a run's CPU time. Without a writable control group, each process counts as it was
last seen, twenty times a second. Memory is the sum of the processes' proportional set sizes (a page that N processes
share counts 1/N in each), looked at twice a second; that of tmpfs files, such as Ray's object store, counts where it is
mapped. Looking costs 1 to 2% of a core, the same for both sides.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

GROUPS = (
    ("/sys/fs/cgroup/cpuacct", "cpuacct.usage"),
    ("/sys/fs/cgroup/unified", "cpu.stat"),
    ("/sys/fs/cgroup", "cpu.stat"),
)
LOOK, LOOK_AT_MEMORY = 0.05, 0.5  # seconds
ENDING = 30.0  # seconds that processes may outlive the command


class Measured(NamedTuple):
    """What a command took. ``seconds`` end with the command, ``cpu_seconds`` with its last process."""

    returncode: int
    output: str
    seconds: float
    cpu_seconds: float
    peak_mib: float
    counted_by: str


class _Group:
    """A control group of its own."""

    def __init__(self) -> None:
        for root, file in GROUPS:
            self.folder, self.file = Path(root) / f"benchmark-{uuid.uuid4().hex[:8]}", file
            with suppress(OSError):
                self.folder.mkdir()
                if (self.folder / file).exists() and os.access(self.folder / "cgroup.procs", os.W_OK):
                    return
                self.folder.rmdir()
        raise PermissionError("no writable control group")

    def enter(self) -> None:
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def list_processes(self) -> list[int]:
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def read_cpu_seconds(self) -> float:
        text = (self.folder / self.file).read_text()
        return int(text) / 1e9 if self.file == "cpuacct.usage" else int(text.split()[1]) / 1e6  # usage_usec comes first

    def close(self) -> None:
        with suppress(OSError):
            self.folder.rmdir()


class _Samples:
    """Stands in for a control group: looks at the descendants of this process that are not in ``before``."""

    def __init__(self) -> None:
        self.before = {child.pid for child in psutil.Process().children(recursive=True)}
        self.known: dict[int, psutil.Process] = {}
        self.cpu: dict[int, float] = {}

    def enter(self) -> None:
        pass

    def list_processes(self) -> list[int]:
        for one in [psutil.Process(), *self.known.values()]:
            with suppress(psutil.Error):
                new = {child.pid: child for child in one.children(recursive=True) if child.pid not in self.before}
                self.known = new | self.known
        for pid, process in list(self.known.items()):
            try:
                self.cpu[pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                del self.known[pid]
        return [*self.known]

    def read_cpu_seconds(self) -> float:
        return sum(self.cpu.values())

    def close(self) -> None:
        pass


def run_measured(words: list[str], folder: Path, env: dict[str, str]) -> Measured:
    """Runs ``words`` in ``folder`` and waits until all of its processes have ended; kills what outlives it by 30 s."""
    try:
        group: _Group | _Samples = _Group()
    except PermissionError:
        group = _Samples()
    log, peak, looked, cpu = folder / "output.log", 0, 0.0, 0.0
    try:
        with log.open("wb") as out:
            start = time.monotonic()
            process = subprocess.Popen(
                words, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, preexec_fn=group.enter
            )
            end, running = math.inf, [process.pid]
            while end == math.inf or (running and time.monotonic() < end + ENDING):
                if end == math.inf and process.poll() is not None:
                    end = time.monotonic()
                running = group.list_processes()
                if time.monotonic() > looked + LOOK_AT_MEMORY:
                    looked = time.monotonic()
                    peak = max(peak, sum(_read_memory(pid) for pid in running))
                cpu = group.read_cpu_seconds()
                time.sleep(LOOK)
        for pid in running:
            with suppress(psutil.Error):
                psutil.Process(pid).kill()
        cpu = max(cpu, group.read_cpu_seconds())
    finally:
        group.close()
    name = "control group" if isinstance(group, _Group) else "samples"
    return Measured(process.returncode, log.read_text(errors="replace"), end - start, cpu, peak / 2**20, name)


def _read_memory(pid: int) -> int:
    """Returns the proportional set size of a process in bytes, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    except (OSError, StopIteration):
        return 0
