"""What a line of a text is."""

from __future__ import annotations

import re

LINE_END = re.compile("\r\n|\r|\n")


def split_lines(text: str) -> list[str]:
    """Splits at line feeds and carriage returns alone.

    `str.splitlines` also splits at U+0085, U+2028, U+2029, vertical tabs, form feeds and separators, which a prompt,
    a caption or a JSON string may hold.
    """
    return LINE_END.split(text)
