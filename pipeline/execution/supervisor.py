"""Restarts a driver that was killed, from a process of its own: a killed process cannot restart itself."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence

from dataprep.io.signals import handle_sigterm
from pipeline.runtime.errors import StageError
from pipeline.runtime.own_code import python_command
from pipeline.terminal import console


def supervise_driver(words: Sequence[str], retries: int) -> int:
    """Runs ``imagen-ray WORDS`` as a child process, restarts it if a signal kills it, and returns its exit status.

    An exit that is not by a signal is final, also a failed one: the driver has done its own retries by then. SIGTERM
    is passed on, so that the driver can save its work and exit.

    Raises:
        StageError: the driver was killed ``retries`` + 1 times.
    """
    stopping = False

    def pass_on() -> None:
        nonlocal stopping
        stopping = True
        driver.send_signal(signal.SIGTERM)

    for attempt in range(retries + 1):
        driver = subprocess.Popen(python_command(*words))
        with handle_sigterm(pass_on):
            status = driver.wait()
        if status >= 0 or stopping:
            return abs(status)
        name = signal.Signals(-status).name
        console.print(f"[yellow]the driver was killed by {name}; {retries - attempt} retries left[/]")
    raise StageError(f"the driver was killed {retries + 1} times, last by {name}; `dmesg` may show why")
