"""The end of a command, without Ray and with a local one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import process_exit, ray_session
from tests.helpers.paths import ROOT

WITH_LOCAL_RAY = """
import atexit, threading, time
import psutil
from pipeline.runtime.config import ClusterConfig
from pipeline.runtime.process_exit import exit_process
from pipeline.runtime.ray_session import connect_ray

connect_ray(ClusterConfig(cpus=1))
print("processes", *(child.pid for child in psutil.Process().children(recursive=True)))
atexit.register(print, "exit functions ran")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread ended"))).start()
exit_process(7)
"""


@pytest.mark.parametrize("code", [0, 3, None, "a message"])
def test_without_a_local_ray_it_is_sys_exit(code: int | str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "_STARTED_HERE", threading.Event())
    with pytest.raises(SystemExit) as end:
        process_exit.exit_process(code)
    assert end.value.code == code


def test_a_local_ray_ends_with_all_its_processes_and_everything_is_written(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WITH_LOCAL_RAY]
    with (tmp_path / "out").open("w") as out:  # a pipe would be kept open by Ray's processes
        status = subprocess.run(words, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    text = (tmp_path / "out").read_text()
    assert status == 7, text
    assert text.splitlines()[-2:] == ["thread ended", "exit functions ran"]
    processes = next(line for line in text.splitlines() if line.startswith("processes")).split()[1:]
    assert len(processes) >= 5  # raylet, its two agents, the control store, its monitor
    deadline = time.monotonic() + 30
    while alive := [pid for pid in map(int, processes) if _is_running(pid)]:
        assert time.monotonic() < deadline, f"processes of Ray are left: {alive}"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
