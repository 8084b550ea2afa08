"""Numbers as a person reads them: on the terminal, in plans, in reports.

`None`, a value that was not measured, formats as an empty text.
"""

from __future__ import annotations

import math

HOUR = 3600.0  # seconds
DAY, YEAR = 24 * HOUR, 8766 * HOUR


def format_count(value: float | None) -> str:
    """Returns a number of things with three significant digits: 862M."""
    return _format_scaled(value, ("", "k", "M", "G", "T"), "")


def format_bytes(value: float | None) -> str:
    """Returns a size with three significant digits and a decimal unit (1 kB = 1000 bytes): 1.13 PB."""
    return _format_scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"), " ")


def format_flops(value: float | None) -> str:
    """Returns a number of floating-point operations: 12.3 TFLOP, from 1e21 on 5.12e+23 FLOP."""
    if value is not None and value >= 1e21:
        return f"{value:.2e} FLOP"
    return _format_scaled(value, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"), " ")


def format_duration(seconds: float | None) -> str:
    """Returns a time in the largest unit of which there are at least two: 30.0 min; an infinite one is ``never``."""
    if seconds is None:
        return ""
    if not math.isfinite(seconds):
        return "never"
    for unit, length in (("years", YEAR), ("days", DAY), ("h", HOUR), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def format_percent(share: float | None, digits: int = 1) -> str:
    """Returns a share of 1 in percent, with ``digits`` after the point: 12.5%."""
    return "" if share is None else f"{100 * share:.{digits}f}%"


def format_decimal(value: float | None, digits: int = 3) -> str:
    """Returns a number with ``digits`` after the point and commas between thousands: 1,234.500."""
    return "" if value is None else f"{value:,.{digits}f}"


def format_money(dollars: float | None) -> str:
    """Returns an amount in dollars, below $100 with cents: $1,234."""
    if dollars is None:
        return ""
    return f"${dollars:,.0f}" if dollars >= 100 else f"${dollars:,.2f}"


def _format_scaled(value: float | None, units: tuple[str, ...], separator: str) -> str:
    if value is None:
        return ""
    place = 0
    while abs(value) >= 999.5 and place < len(units) - 1:
        value, place = value / 1000, place + 1
    digits = f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return f"{digits}{separator}{units[place]}"
