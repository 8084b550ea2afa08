"""How a training ends early. Imports nothing heavy: the driver reads these too."""

from __future__ import annotations

from typing import Any


class NonFiniteError(RuntimeError):
    """Too many consecutive updates had a non-finite loss or gradient."""


class StalledLoaderError(RuntimeError):
    """The loader did not return a batch in time."""


class Preempted(RuntimeError):  # noqa: N818, not an error: the run can be resumed
    """The run was shut down on request, saved at `step`, and can be resumed."""

    def __init__(self, step: int, path: str) -> None:
        super().__init__(f"shut down on request at step {step}, saved as {path}")
        self.step, self.path = step, path

    def __reduce__(self) -> Any:
        return Preempted, (self.step, self.path)
