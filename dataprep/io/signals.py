"""Graceful shutdown: SIGTERM sets one flag per process, which drivers, shard maps and training loops look at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHUTDOWN = (
    threading.Event()
)  # also set by whoever learns of a shutdown otherwise, such as a cluster's preemption notice


@contextmanager
def shutdown_on_sigterm() -> Iterator[None]:
    """Sets `SHUTDOWN` on SIGTERM inside the block, instead of ending the process, and clears it afterwards.

    Outside the main thread it only shares the flag: stages that run side by side must all see one request.
    """
    with handle_sigterm(SHUTDOWN.set):
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                SHUTDOWN.clear()


@contextmanager
def handle_sigterm(action: Callable[[], object]) -> Iterator[None]:
    """Calls ``action`` on SIGTERM inside the block. Does nothing outside the main thread: Python allows no handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
