"""Signals a driver's shutdown to workers on other machines.

Imports almost nothing, so that the actor's process starts fast.
"""

from __future__ import annotations


class ShutdownFlag:
    """A Ray actor that holds one flag."""

    def __init__(self) -> None:
        self.value = False

    def set(self) -> None:
        """Marks the driver as shutting down."""
        self.value = True

    def is_set(self) -> bool:
        """Returns whether the driver is shutting down."""
        return self.value
