"""The Jinja environment of every page: report, comparison and blind test."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dataprep.io.wording import count_of
from pipeline.units import format_bytes, format_decimal, format_duration, format_percent

TEMPLATES = Path(__file__).parent  # page, macros, style sheet and script


def create_environment(*folders: Path) -> Environment:
    """Returns an environment that loads templates from ``folders`` and this one, escapes, and raises on typos."""
    environment = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count_of": count_of,
        "decimal": format_decimal,
        "duration": format_duration,
        "integer": format_integer,
        "percent": format_percent,
        "zip": zip,
    }
    return environment


def read_style_sheet() -> str:
    """Returns the style sheet that all pages share."""
    return (TEMPLATES / "page.css").read_text(encoding="utf-8")


def format_integer(value: int) -> str:
    """Returns an integer with thousands separators."""
    return f"{value:,}"
