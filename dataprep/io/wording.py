"""Counts in words."""

from __future__ import annotations


def count_of(number: int, singular: str, plural: str | None = None) -> str:
    """Returns a number with its noun, such as ``1 file`` or ``1,200 files``; ``plural`` is by default an s more."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"
