"""What is text, and what a line of it."""

from __future__ import annotations

import re

from dataprep.io.errors import UserError

LINE_END = re.compile("\r\n|\r|\n")


def split_lines(text: str) -> list[str]:
    """Splits at line feeds and carriage returns alone.

    `str.splitlines` also splits at U+0085, U+2028, U+2029, vertical tabs, form feeds and separators, which a prompt,
    a caption or a JSON string may hold.
    """
    return LINE_END.split(text)


def check_text(text: str, where: str) -> str:
    """Returns ``text``.

    Raises UserError, naming ``where``, for half a character (bytes that are not UTF-8 on a command line, a lone
    surrogate in JSON) and for NUL, which a text in UTF-16 is full of.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} {text[:40]!a}: not UTF-8 at character {error.start}; write it in UTF-8") from error
    if "\0" in text:
        raise UserError(f"{where} {text[:40]!a}: has a NUL character; is it UTF-16? write it in UTF-8")
    return text
