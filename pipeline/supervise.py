"""Starts a driver again when it is killed: nobody is left inside a killed process to do it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from pipeline.context import StageError
from pipeline.progress import console


def supervise(words: Sequence[str], retries: int) -> int:
    """Runs ``imagen-ray WORDS`` in a process of its own, and again where a signal ended it; gives its exit status.

    An exit of its own accord, also a failed one, is final: the driver has done its own retries by then. SIGTERM is
    passed on, so that the driver can save and leave. Raises StageError where it was killed ``retries`` + 1 times.
    """
    told = False

    def tell(*_: object) -> None:
        nonlocal told
        told = True
        driver.send_signal(signal.SIGTERM)

    for attempt in range(retries + 1):
        driver = subprocess.Popen([sys.executable, "-m", "pipeline", *words])
        before = signal.signal(signal.SIGTERM, tell)
        try:
            status = driver.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
        if status >= 0 or told:
            return abs(status)
        name = signal.Signals(-status).name
        console.print(f"[yellow]the driver was ended by {name}; {retries - attempt} more attempts[/]")
    raise StageError(
        f"the driver was killed {retries + 1} times, the last time by {name}; look at `dmesg` for the reason"
    )
