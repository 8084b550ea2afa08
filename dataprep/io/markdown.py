"""Markdown tables whose cells show foreign text as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

MARKUP = re.compile(r"([\\`*_\[\]#|~@])")


def format_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Returns the lines of a table; a head that starts with ``#`` right-aligns its column. Cells are escaped."""
    names = [escape_cell(name.lstrip("#")) for name in head]
    lines = [_join(names), "|" + "".join("---:|" if name.startswith("#") else "---|" for name in head)]
    return [*lines, *(_join([escape_cell(value) for value in row]) for row in rows)]


def escape_cell(value: Any) -> str:
    """Returns one line: an integer with thousands separators, text without markup, tags, links and cell ends."""
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKUP.sub(r"\\\1", text)


def _join(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def read_front_matter(text: str) -> dict[str, Any]:
    """Returns the YAML between the two ``---`` lines that a card begins with; empty where there is none."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.S)
    try:
        value = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}
