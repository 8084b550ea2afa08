"""Decodes the text of lists and caption files.

Text is UTF-8, or what its byte order mark says, or UTF-16 without a mark if every other byte of it is zero. Anything
else is read as Windows-1252 if it looks like a language that is written in it, and refused if it does not: a wrong
guess would be trained on.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from itertools import count
from typing import IO, NamedTuple

from dataprep.io.errors import UserError
from dataprep.listing.account import Account

# The marks of UTF-32 begin with those of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HEAD = 4096  # bytes by which an encoding is recognised
BLOCK = 1 << 20  # bytes decoded at a time
MAX_LINE = 64 << 20  # bytes of a line: a file without line ends is no list
# Windows-1252 without the bytes that have no character, or one that its languages hardly use.
LATIN = re.compile(rb"[\t\n\r\x20-\x7e\x80\x84\x85\x8c\x91-\x97\x99\x9c\xa0-\xff]*")
LETTERS = rb"\x8c\x9c\xc0-\xd6\xd8-\xf6\xf8-\xff"
CAPITALS = rb"\x8c\xc0-\xd6\xd8-\xde"
SIGNS = rb"\xa2-\xa9\xac\xae-\xb3\xb5\xb6\xb8-\xba\xbc-\xbe\xd7\xf7"  # without punctuation
# What the bytes of other encodings look like.
FOREIGN = re.compile(
    b"|".join(
        (
            rb"(?<![A-Za-z%(l)s])[%(l)s]{2,}(?![A-Za-z%(l)s])|[%(l)s]{3}",  # a word of nothing but such letters
            rb"[A-Za-z%(l)s][%(s)s][a-z%(l)s]|[%(l)s][%(s)s]|[%(s)s][%(l)s]",  # a sign inside a word or beside a letter
            rb"[a-z][%(c)s]",  # a capital inside a word
            rb"[A-Za-z]\x84|\x94[a-z]|[a-z]\xa1[a-z]",  # an opening mark at the end of a word, and the reverse
        )
    )
    % {b"l": LETTERS, b"s": SIGNS, b"c": CAPITALS}
)


class DecodingError(ValueError):
    """Bytes whose encoding cannot be told."""


class Line(NamedTuple):
    """A line of a file, without its end; ``number`` counts from 1."""

    number: int
    text: str


def find_encoding(head: bytes) -> str | None:
    """Returns the encoding that the first bytes of a text show, or None: UTF-8 or one byte per character."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    quarter = len(head) // 4
    if quarter and head[1::2].count(0) > 2 * quarter * 0.7:
        return "utf-32-le" if head[2::4].count(0) > quarter * 0.7 else "utf-16-le"
    if quarter and head[::2].count(0) > 2 * quarter * 0.7:
        return "utf-32-be" if head[1::4].count(0) > quarter * 0.7 else "utf-16-be"
    return None


def decode_text(data: bytes, encoding: str | None = None) -> tuple[str, bool]:
    """Returns the text of a whole file, and whether Windows-1252 was guessed.

    ``encoding`` None: recognised. Raises DecodingError.
    """
    known = encoding or find_encoding(data[:HEAD])
    try:
        text, guessed = (data.decode(known), False) if known else _decode_bytes(data)
    except UnicodeError as error:
        raise DecodingError(f"not valid {known}") from error
    if "\0" in text:
        raise DecodingError("zero bytes")
    return text.removeprefix("\ufeff"), guessed


def _decode_bytes(data: bytes) -> tuple[str, bool]:
    """Decodes UTF-8, else Windows-1252. Raises DecodingError."""
    try:
        return data.decode(), False
    except UnicodeDecodeError:
        pass
    if LATIN.fullmatch(data) is None or FOREIGN.search(data) or _has_utf8(data):
        raise DecodingError("neither UTF-8 nor Windows-1252")
    return data.decode("cp1252"), True


def _has_utf8(data: bytes) -> bool:
    """Returns whether ``data``, which is not UTF-8, has characters of three or more bytes: it is damaged UTF-8."""
    return any(ord(character) > 0x7FF for character in data.decode(errors="ignore"))


class LineBlock(NamedTuple):
    """Lines of a file that follow each other, without their ends; ``number`` is that of the first."""

    number: int
    lines: list[str]


def read_lines(path: str, file: IO[bytes], encoding: str | None, account: Account) -> Iterator[Line]:
    """Yields the lines of a text file one by one, see `read_blocks`."""
    for block in read_blocks(path, file, encoding, account):
        yield from map(Line, count(block.number), block.lines)


def read_blocks(path: str, file: IO[bytes], encoding: str | None, account: Account) -> Iterator[LineBlock]:
    """Yields the lines of a text file, which end with LF or CR LF, or with CR in a file without any LF.

    Raises UserError with the line's number if it cannot be decoded.
    """
    handle = io.BufferedReader(file, 1 << 20)  # type: ignore[type-var]  # files of fsspec are raw enough
    head = handle.peek(HEAD)
    known = encoding or find_encoding(head[:HEAD])
    if known == "utf-8-sig":
        handle.read(len(codecs.BOM_UTF8))
        known = None
    wide = known is not None and known.startswith(("utf-16", "utf-32"))
    zeroless = head.replace(b"\0", b"")
    ending = "\r" if b"\n" not in zeroless and b"\r" in zeroless else "\n"
    if not wide and ending == "\n":
        yield from _read_byte_blocks(path, handle, known, account)
        return
    number = 0
    try:
        with io.TextIOWrapper(handle, known or "utf-8", newline=ending) as text:
            for number, line in enumerate(text, 1):
                yield LineBlock(number, [line.removeprefix("\ufeff").rstrip("\r\n")])
    except (UnicodeError, LookupError) as error:
        raise _describe_line(path, number + 1, str(known or "UTF-8"), encoding) from error


def _read_byte_blocks(path: str, handle: IO[bytes], encoding: str | None, account: Account) -> Iterator[LineBlock]:
    number, rest = 1, b""
    while block := handle.read(BLOCK):
        rest += block
        end = rest.rfind(b"\n") + 1
        if end:
            lines = _decode_lines(path, rest[: end - 1], number, encoding, account)
            yield LineBlock(number, lines)
            number, rest = number + len(lines), rest[end:]
        elif len(rest) > MAX_LINE:
            raise UserError(f"listing.path {path}: line {number} is longer than {MAX_LINE >> 20} MiB; is it a list?")
    if rest:
        yield LineBlock(number, _decode_lines(path, rest, number, encoding, account))


def _decode_lines(path: str, data: bytes, first: int, encoding: str | None, account: Account) -> list[str]:
    """Returns the lines of a block; ``first`` is the number of its first line."""
    try:
        text = data.decode(encoding or "utf-8")
        return [line.rstrip("\r") for line in text.split("\n")] if "\r" in text else text.split("\n")
    except (UnicodeError, LookupError):
        pass
    lines = []
    for number, raw in enumerate(data.split(b"\n"), first):
        try:
            text, guessed = (raw.decode(encoding), False) if encoding else _decode_bytes(raw)
        except (UnicodeError, LookupError, DecodingError) as error:
            raise _describe_line(path, number, encoding or "UTF-8 or Windows-1252", encoding) from error
        if guessed:
            account.name("windows_1252", f"{path} line {number}")
        lines.append(text.rstrip("\r"))
    return lines


def _describe_line(path: str, number: int, tried: str, encoding: str | None) -> UserError:
    remedy = "correct listing.encoding" if encoding else "set listing.encoding to the file's own, such as gb18030"
    return UserError(f"listing.path {path}: line {number} is not readable as {tried}; {remedy}")
