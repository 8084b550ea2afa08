"""Errors at run time."""

from __future__ import annotations


class StageError(RuntimeError):
    """A failure at run time (exit status 1); names the stage, the shard or step, and the command that resumes."""


class InputFailedError(RuntimeError):
    """A stage that began before its input had finished must stop, since the input failed."""
