"""Splits the lines of CSV and TSV into records, so that no line is lost.

A cell is quoted if its first character is a quotation mark, and then ends at a mark that stands before a delimiter or
the end of the line; two marks are one. A mark that opens a cell and finds no such end, on its line or on later ones, is
text. Readers that take it as open until the end of the file turn thousands of rows into one caption.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence

from dataprep.images.formats import IMAGE_EXTENSIONS
from dataprep.io.errors import UserError
from dataprep.listing.account import Account
from dataprep.listing.text_decoding import Line

BODY = re.compile(r'[^"]*+(?:""[^"]*+)*+')  # of a quoted cell
MAX_CELL_LINES = 1000  # of a quoted cell: a longer one was never closed
MAX_CELL = 1 << 20  # characters of the same
PLACE = re.compile(
    r"\s*\"?(?:[a-z][a-z0-9+.-]*://\S+|\S+\.(?:" + "|".join(IMAGE_EXTENSIONS) + r"))\"?\s*", re.IGNORECASE
)


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
        while (line := _next_line(lines, ahead)) is not None:
            if not line.text.strip(" "):
                self.account.count("blank_lines")
                continue
            cells, stray = self._split(line, lines, ahead)
            if len(cells) != self.width:
                self._refuse_width(line, cells, stray)
            if stray:
                self.account.name("stray_quotes", f"{self.path} line {line.number}")
            self.account.records += 1
            yield line, cells

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
