"""Figures of a plan as one reads them."""

from __future__ import annotations

import math

HOUR = 3600.0  # seconds


def count(value: float) -> str:
    """A number of things, short."""
    return short(value, 1000, ("", "k", "M", "G", "T"), "")


def size(value: float) -> str:
    """Bytes."""
    return short(value, 1000, ("B", "kB", "MB", "GB", "TB", "PB"), " ")


def flops(value: float) -> str:
    """Operations."""
    if value >= 1e21:
        return f"{value:.2e} FLOP"
    return short(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"), " ")


def money(value: float) -> str:
    """Dollars."""
    return f"${value:,.0f}" if value >= 100 else f"${value:,.2f}"


def short(value: float, base: int, units: tuple[str, ...], between: str) -> str:
    """Three digits and a unit."""
    place = 0
    while abs(value) >= base * 0.9995 and place < len(units) - 1:
        value, place = value / base, place + 1
    digits = f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return f"{digits}{between}{units[place]}"


def years(hours: float) -> str:
    """Hours in the unit that one thinks in."""
    if not math.isfinite(hours):
        return "never"
    for unit, size in (("years", 8766.0), ("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:.1f} {unit}"
    return f"{hours * 3600:.1f} s"
