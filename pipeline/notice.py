"""The notice that this driver is asked to leave: SIGTERM, seen from every thread, and told to workers elsewhere.

Imports next to nothing, so that the process of the actor that carries it starts at once.
"""

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


class DriverNotice:
    """Tells the workers, wherever they are, that the driver was asked to leave."""

    def __init__(self) -> None:
        self.told = False

    def tell(self) -> None:
        """The driver was asked."""
        self.told = True

    def asked(self) -> bool:
        """Whether it was."""
        return self.told
