"""Splits the lines of CSV and TSV into records, so that no line is lost.

A cell is quoted if its first character is a quotation mark, and then ends at a mark that stands before a delimiter or
the end of the line; two marks are one. A mark that opens a cell and finds no such end, on its line or on later ones, is
text. Readers that take it as open until the end of the file turn thousands of rows into one caption.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from dataprep.images.formats import IMAGE_EXTENSIONS
from dataprep.io.errors import UserError
from dataprep.listing.account import Account
from dataprep.listing.text_decoding import Line, LineBlock

BODY = re.compile(r'[^"]*+(?:""[^"]*+)*+')  # of a quoted cell
MAX_CELL_LINES = 1000  # of a quoted cell: a longer one was never closed
MAX_CELL = 1 << 20  # characters of the same
PIECE = 256  # lines that are split together if all are plain
PLACE = re.compile(
    r"\s*\"?(?:[a-z][a-z0-9+.-]*://\S+|\S+\.(?:" + "|".join(IMAGE_EXTENSIONS) + r"))\"?\s*", re.IGNORECASE
)


class Records(NamedTuple):
    """Records that follow each other: the cells of all, record by record, and the line that each begins on."""

    cells: list[str]
    texts: list[str]


class Lines:
    """The lines of a file one by one, or several without a quotation mark at once."""

    def __init__(self, blocks: Iterable[LineBlock]) -> None:
        self.pieces = _cut_blocks(blocks)
        self.piece, self.next = LineBlock(1, []), 0
        self.marked: list[int] = []  # lines of the piece that have a mark, descending

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        while self.next == len(self.piece.lines):
            self._start_piece(next(self.pieces))
        self.next += 1
        return Line(self.piece.number + self.next - 1, self.piece.lines[self.next - 1])

    def put_back(self, line: Line) -> None:
        """Makes the last line that was returned the next one."""
        self.next -= 1
        assert self.piece.lines[self.next] == line.text

    def list_plain(self, marks_are_text: bool) -> list[str]:
        """Returns the next lines of a piece up to one with a mark, for `skip` to take; none at the end of the file."""
        if self.next == len(self.piece.lines):
            self._start_piece(next(self.pieces, LineBlock(self.piece.number, [])))
        while self.marked and self.marked[-1] < self.next:
            self.marked.pop()
        end = self.marked[-1] if self.marked and not marks_are_text else len(self.piece.lines)
        return self.piece.lines[self.next : end]

    def skip(self, count: int) -> None:
        """Takes so many lines of the piece."""
        self.next += count

    def _start_piece(self, piece: LineBlock) -> None:
        self.piece, self.next, self.marked = piece, 0, []
        if '"' in "".join(piece.lines):
            self.marked = [at for at, text in enumerate(piece.lines) if '"' in text][::-1]


def _cut_blocks(blocks: Iterable[LineBlock]) -> Iterator[LineBlock]:
    """Yields pieces of `PIECE` lines: if one of them is odd, all of them are read one by one."""
    for number, lines in blocks:
        for start in range(0, len(lines), PIECE):
            yield LineBlock(number + start, lines[start : start + PIECE])


class StrayMarkError(ValueError):
    """The quotation mark that opens the cell number ``args[0]`` closes nowhere."""


class RecordReader:
    """Reads the records of one file; ``width`` is the number of its columns.

    Args:
        quotes: auto: as above, and a quoted cell whose further lines look like records of their own is refused;
            standard: such a cell is one cell; text: a quotation mark is always text.
        skips_blanks: blanks after a delimiter do not count.
    """

    def __init__(
        self, path: str, delimiter: str, width: int, quotes: str, account: Account, skips_blanks: bool = False
    ) -> None:
        self.path, self.delimiter, self.width, self.quotes = path, delimiter, width, quotes
        self.account, self.skips_blanks = account, skips_blanks
        escaped = re.escape(delimiter)
        cell = rf'(?:"([^"]*+(?:""[^"]*+)*+)"|((?!")[^{escaped}]*+))'
        self.well_formed = re.compile(escaped.join([cell] * width))

    def read(self, lines: Iterator[Line]) -> Iterator[tuple[Line, list[str]]]:
        """Yields each record with its first line. Raises UserError for one with another number of cells."""
        ahead: deque[Line] = deque()
        while (record := self._read_one(lines, ahead)) is not None:
            yield record

    def read_many(self, lines: Lines) -> Iterator[Records]:
        """Yields the same records, those of plain lines together. Raises UserError as `read` does."""
        ahead: deque[Line] = deque()
        together = not self.skips_blanks and self.delimiter != " "  # then a blank line is one that has no cells
        singly = 0  # lines that are to be read one by one
        while True:
            plain = lines.list_plain(self.quotes == "text") if together and not ahead and not singly else []
            if plain and not self._has_odd(plain):
                lines.skip(len(plain))
                self.account.records += len(plain)
                # In one call, without a list per line.
                yield Records(self.delimiter.join(plain).split(self.delimiter), plain)
                continue
            singly = max(len(plain), singly) - 1 if plain or singly else 0
            if (record := self._read_one(lines, ahead)) is None:
                return
            yield Records(record[1], [record[0].text])

    def _has_odd(self, plain: list[str]) -> bool:
        """Returns whether a line is blank or has another number of cells than the header."""
        if any(text.count(self.delimiter) != self.width - 1 for text in plain):
            return True
        return self.width == 1 and not all(map(_has_text, plain))

    def _read_one(self, lines: Iterator[Line], ahead: deque[Line]) -> tuple[Line, list[str]] | None:
        """Returns the next record with its first line; None at the end."""
        while (line := _next_line(lines, ahead)) is not None:
            if not _has_text(line.text):
                self.account.count("blank_lines")
                continue
            cells, stray = self._split(line, lines, ahead)
            if len(cells) != self.width:
                self._refuse_width(line, cells, stray)
            if stray:
                self.account.name("stray_quotes", f"{self.path} line {line.number}")
            self.account.records += 1
            return line, cells
        return None

    def _split(self, line: Line, lines: Iterator[Line], ahead: deque[Line]) -> tuple[list[str], bool]:
        """Returns the cells of a record that begins on ``line``, and whether it has a stray mark."""
        if '"' not in line.text or self.quotes == "text":
            cells = line.text.split(self.delimiter)
            return ([cell.strip(" ") for cell in cells] if self.skips_blanks else cells), False
        if (whole := self._split_well_formed(line.text)) is not None:
            return whole, False
        cells, stray = self._split_quoted(line, lines, ahead)
        if len(cells) != self.width and (spaced := self._split_spaced(line)) is not None:
            return spaced, False
        return cells, stray

    def _split_well_formed(self, text: str) -> list[str] | None:
        """Returns the cells of a line that is a record by itself, as nearly all are; None for any other line."""
        match = None if self.skips_blanks else self.well_formed.fullmatch(text)
        if match is None:
            return None
        groups = match.groups()
        pairs = zip(groups[::2], groups[1::2], strict=True)
        return [bare if quoted is None else quoted.replace('""', '"') for quoted, bare in pairs]

    def _split_quoted(self, line: Line, lines: Iterator[Line], ahead: deque[Line]) -> tuple[list[str], bool]:
        """Returns the cells of a record that begins on ``line``, and whether it has a stray mark."""
        literal: set[int] = set()
        while True:
            try:
                cells, inside = split_line(line.text, self.delimiter, literal, self.skips_blanks)
                if inside is not None:
                    cells = self._close_cell(line, cells, inside, lines, ahead)
                return cells, bool(literal)
            except StrayMarkError as error:
                literal.add(error.args[0])

    def _split_spaced(self, line: Line) -> list[str] | None:
        """Returns the cells of a line that has blanks before its quotation marks, None if that is not why it does not
        fit."""
        try:
            cells, inside = split_line(line.text, self.delimiter, set(), skips_blanks=True)
        except StrayMarkError:
            return None
        return cells if inside is None and len(cells) == self.width else None

    def _close_cell(
        self, first: Line, cells: list[str], inside: str, lines: Iterator[Line], ahead: deque[Line]
    ) -> list[str]:
        """Reads on until the open cell ``inside`` and the record are complete. Raises StrayMarkError and puts the
        lines back if that fails."""
        opened, taken, size = len(cells), list[Line](), 0
        try:
            while len(taken) < MAX_CELL_LINES and size < MAX_CELL:
                line = _next_line(lines, ahead)
                if line is None:
                    break
                taken.append(line)
                size += len(line.text)
                more, still = split_line(line.text, self.delimiter, set(), self.skips_blanks, inside + "\n")
                cells = cells + more
                if still is None:
                    self._check_inner_lines(first, taken)
                    self.account.count("lines_in_cells", len(taken))
                    return cells
                inside = still
            raise StrayMarkError(opened)
        except StrayMarkError:
            ahead.extendleft(reversed(taken))
            raise StrayMarkError(opened) from None

    def _check_inner_lines(self, first: Line, taken: Sequence[Line]) -> None:
        if self.quotes == "standard":
            return
        for line in taken:
            cells = line.text.split(self.delimiter)
            if len(cells) == self.width and any(PLACE.fullmatch(cell) for cell in cells):
                raise UserError(
                    f"listing.path {self.path}: line {first.number} opens a quotation mark that closes on line "
                    f"{taken[-1].number}, and line {line.number} between them looks like a row of its own; set "
                    "listing.quotes to standard if it is one cell, or to text if quotation marks are plain text"
                )

    def _refuse_width(self, line: Line, cells: Sequence[str], stray: bool) -> None:
        why = " and a quotation mark that is never closed" if stray else ""
        raise UserError(
            f"listing.path {self.path}: not readable, line {line.number} has {len(cells)} cells{why}, the header "
            f"has {self.width}; correct the line"
        )


def _has_text(text: str) -> bool:
    return bool(text.strip(" "))


def _next_line(lines: Iterator[Line], ahead: deque[Line]) -> Line | None:
    return ahead.popleft() if ahead else next(lines, None)


def split_line(
    text: str, delimiter: str, literal: set[int], skips_blanks: bool = False, inside: str | None = None
) -> tuple[list[str], str | None]:
    """Splits a line; ``inside`` is the beginning of a quoted cell that goes on in it.

    Returns:
        The complete cells, and the beginning of a last one whose quotation mark is still open, or None.

    Raises:
        StrayMarkError: a mark inside a quoted cell stands before something else than a delimiter or the end. Marks
            that open the cells numbered in ``literal`` are text.
    """
    cells: list[str] = []
    place = 0
    while True:
        if skips_blanks and inside is None:
            while text.startswith(" ", place):
                place += 1
        if inside is not None or (text.startswith('"', place) and len(cells) not in literal):
            start = place if inside is not None else place + 1
            body = BODY.match(text, start)
            assert body is not None
            cell, end = (inside or "") + body[0].replace('""', '"'), body.end()
            inside = None
            if end == len(text):
                return cells, cell
            place = end + 1
            while text.startswith(" ", place):
                place += 1
            if place < len(text) and not text.startswith(delimiter, place):
                raise StrayMarkError(len(cells))
        else:
            end = text.find(delimiter, place)
            end = len(text) if end < 0 else end
            cell, place = text[place:end].rstrip(" ") if skips_blanks else text[place:end], end
        cells.append(cell)
        if place >= len(text):
            return cells, None
        place += len(delimiter)
