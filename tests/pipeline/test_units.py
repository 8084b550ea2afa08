"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from pipeline.units import (
    HOUR,
    format_bytes,
    format_count,
    format_decimal,
    format_duration,
    format_flops,
    format_money,
    format_percent,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_count(862_500_000), "862M"),
        (format_count(999.6), "1k"),
        (format_count(7), "7"),
        (format_bytes(1.13e15), "1.13 PB"),
        (format_bytes(0), "0 B"),
        (format_bytes(1500), "1.5 kB"),
        (format_flops(3.2e12), "3.2 TFLOP"),
        (format_flops(5.12e23), "5.12e+23 FLOP"),
        (format_money(1234.5), "$1,234"),
        (format_money(0.5), "$0.50"),
        (format_duration(90), "90.0 s"),
        (format_duration(0.5 * HOUR), "30.0 min"),
        (format_duration(30 * HOUR), "30.0 h"),
        (format_duration(100 * HOUR), "4.2 days"),
        (format_duration(50_000 * HOUR), "5.7 years"),
        (format_duration(math.inf), "never"),
        (format_percent(0.125), "12.5%"),
        (format_percent(0.125, 0), "12%"),
        (format_decimal(1234.5), "1,234.500"),
        (format_decimal(0.5, 4), "0.5000"),
    ],
)
def test_numbers_are_short(text: str, expected: str) -> None:
    assert text == expected


def test_what_was_not_measured_is_empty() -> None:
    formats = (format_bytes, format_count, format_decimal, format_duration, format_flops, format_money, format_percent)
    assert [function(None) for function in formats] == [""] * 7
