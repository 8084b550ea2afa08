"""A driver that is killed is started again, a few times; one that ends by itself is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import supervise as module
from pipeline.context import StageError
from pipeline.supervise import supervise


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the driver a script that notes each start, is killed as often as its word says, then exits with 3."""
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
def test_killed_drivers_start_again(driver: Path, kills: int) -> None:
    assert supervise(["run", str(kills)], 2) == 3
    assert len(driver.read_text()) == kills + 1


def test_the_budget_ends(driver: Path) -> None:
    with pytest.raises(StageError, match="killed 3 times, the last time by SIGKILL"):
        supervise(["run", "9"], 2)


def test_a_notice_is_passed_on(driver: Path) -> None:
    import threading
    import time

    def tell() -> None:
        while not driver.exists():
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=tell).start()
    assert supervise(["run", "-1"], 2) == 7
    assert driver.read_text() == "x"
