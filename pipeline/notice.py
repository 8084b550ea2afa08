"""The notice that this driver is asked to leave: SIGTERM, seen from every thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LEAVE = threading.Event()


@contextmanager
def on_sigterm() -> Iterator[None]:
    """Sets `LEAVE` on SIGTERM while inside, instead of ending the process; for the main thread."""
    before = signal.signal(signal.SIGTERM, lambda *_: LEAVE.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        LEAVE.clear()
