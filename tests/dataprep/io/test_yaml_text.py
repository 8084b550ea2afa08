"""Plain scalars of YAML are those of YAML 1.2."""

from __future__ import annotations

from typing import Any

import pytest

from dataprep.io.yaml_text import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1e5", -100000.0),
        ("1.5e3", 1500.0),
        ("4:3", "4:3"),
        ("0x10", 16),
        ("1_000", 1000),
        ("010", "010"),
        *(
            (word, word)
            for word in ("yes", "no", "on", "off", "y", "N", "2024-01-01", "12:30:45", "1:1.5", "=", "1e", ".")
        ),
        ("true", True),
        ("False", False),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("-1.5E+3", -1500.0),
        ("1_000.5", 1000.5),
        (".inf", float("inf")),
        ("null", None),
        ("~", None),
        ("{a: &x {b: 1}, c: {<<: *x, d: 2}}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)
def test_scalars_and_merge_keys(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "text")
    assert parsed == value and type(parsed) is type(value)
