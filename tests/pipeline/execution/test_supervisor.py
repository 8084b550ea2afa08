"""A killed driver is restarted a limited number of times; one that exits by itself is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.execution import supervisor as module
from pipeline.execution.supervisor import supervise_driver
from pipeline.runtime.errors import StageError


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the driver a script that logs each start, kills itself as often as its argument says, then exits with 3."""
    log = tmp_path / "starts"
    script = (
        "import os, signal, sys, time; log, kills = sys.argv[1], int(sys.argv[2])\n"
        "open(log, 'a').write('x')\n"
        "if kills < 0: signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(60)\n"
        "if len(open(log).read()) <= kills: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(3)"
    )
    start = subprocess.Popen
    monkeypatch.setattr(
        module.subprocess, "Popen", lambda words: start([sys.executable, "-c", script, str(log), words[-1]])
    )
    return log


@pytest.mark.parametrize("kills", [0, 2])
def test_killed_drivers_are_restarted(driver: Path, kills: int) -> None:
    assert supervise_driver(["run", str(kills)], 2) == 3
    assert len(driver.read_text()) == kills + 1


def test_retries_are_limited(driver: Path) -> None:
    with pytest.raises(StageError, match="killed 3 times, last by SIGKILL"):
        supervise_driver(["run", "9"], 2)


def test_sigterm_is_passed_on(driver: Path) -> None:
    def send_sigterm() -> None:
        while not driver.exists():
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send_sigterm).start()
    assert supervise_driver(["run", "-1"], 2) == 7
    assert driver.read_text() == "x"
