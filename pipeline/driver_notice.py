"""The actor that carries a driver's notice to its workers; it imports nothing, so that its process starts at once."""

from __future__ import annotations


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
