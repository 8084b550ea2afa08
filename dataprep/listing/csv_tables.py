"""Readers of CSV and TSV, with a header line or in the form of CC3M and CC12M, and of plain lists of URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from dataprep.images.formats import IMAGE_EXTENSIONS
from dataprep.io.errors import UserError
from dataprep.listing.column_names import CAPTION_NAMES, FILE_NAMES, URL_NAMES, fold_name
from dataprep.listing.csv_records import Lines, RecordReader, Records, StrayMarkError, split_line
from dataprep.listing.read_options import BATCH_CHARACTERS, BATCH_ROWS, Batch, ReadOptions, open_table
from dataprep.listing.text_decoding import read_blocks, read_lines

DELIMITERS = (",", "\t", ";", "|")
KNOWN = frozenset((*URL_NAMES, *CAPTION_NAMES, *FILE_NAMES))
IMAGE_NAME = re.compile(r"\S.*\.(?:" + "|".join(IMAGE_EXTENSIONS) + ")", re.IGNORECASE)


class Dialect(NamedTuple):
    """The delimiter of a file, its column names, and whether its first line is a record and not a header."""

    delimiter: str
    names: list[str]
    headerless: bool
    skips_blanks: bool


def read_csv(path: str, extension: str, options: ReadOptions) -> Iterator[Batch]:
    """Yields the records of a CSV or TSV file. Raises UserError with the line for one of another number of cells."""
    with open_table(path) as file:
        lines = Lines(read_blocks(path, file, options.encoding, options.account))
        first = next((line for line in lines if line.text.strip()), None)
        preferred = "\t" if extension == ".tsv" else ","
        if first is not None and first.text.lower().startswith("sep=") and len(first.text) == 5:  # as Excel writes
            preferred, first = first.text[4], next(lines, None)
        if first is None:
            return
        dialect = find_dialect(path, first.text, preferred, options.columns)
        # Headerless TSV comes from tools that do not quote: a quotation mark is text.
        quotes = "text" if dialect.headerless and dialect.delimiter == "\t" else options.quotes
        account, names = options.account, dialect.names
        reader = RecordReader(path, dialect.delimiter, len(names), quotes, account, dialect.skips_blanks)
        if dialect.headerless:
            lines.put_back(first)
        yield from _batch_records(reader.read_many(lines), names)


def _batch_records(records: Iterator[Records], names: Sequence[str]) -> Iterator[Batch]:
    """Yields batches of `BATCH_ROWS` rows; one ends earlier with the row that exceeds `BATCH_CHARACTERS`."""
    batch: list[str] = []
    rows, size, width = 0, 0, len(names)
    for cells, texts in records:
        sizes, start = list(map(len, texts)), 0
        while start < len(texts):
            taken = min(len(texts) - start, BATCH_ROWS - rows)
            if size + sum(sizes[start : start + taken]) > BATCH_CHARACTERS:
                taken = 1
            batch += cells[start * width : (start + taken) * width]
            size += sum(sizes[start : start + taken])
            rows, start = rows + taken, start + taken
            if rows == BATCH_ROWS or size > BATCH_CHARACTERS:
                yield _build_batch(batch, names)
                batch, rows, size = [], 0, 0
    if rows:
        yield _build_batch(batch, names)


def _build_batch(cells: Sequence[str], names: Sequence[str]) -> Batch:
    """Returns a table of ``cells``, given row by row; empty ones are null."""
    columns = [cells[at :: len(names)] for at in range(len(names))]
    texts = [pa.array([cell or None for cell in column], pa.string()) for column in columns]
    return Batch(pa.table(dict(zip(names, texts, strict=True))))


def find_dialect(path: str, line: str, preferred: str, columns: Sequence[str] = ()) -> Dialect:
    """Finds how a file is written from its first line.

    The delimiter is the ``preferred`` one, unless another gives more names of ``columns`` or of the usual ones, or
    splits a line that the preferred one leaves whole. Raises UserError for a file without usable header.
    """
    split = {delimiter: _split_header(line, delimiter) for delimiter in dict.fromkeys((preferred, *DELIMITERS))}
    known = KNOWN | {fold_name(name) for name in columns}

    def fit(delimiter: str) -> tuple[int, bool, bool]:
        cells = split[delimiter]
        # A URL may hold any delimiter but a tab.
        several = len(cells) > 1 and (not _has_url(cells) or delimiter in (preferred, "\t") or _has_blank(cells))
        return sum(fold_name(cell) in known for cell in cells), several, delimiter == preferred

    delimiter = max(split, key=fit)
    cells = split[delimiter]
    skips = len(cells) > 1 and all(cell.startswith(" ") for cell in cells[1:])
    cells = [cell.strip() for cell in cells]
    if not _has_url(cells):
        files = [IMAGE_NAME.fullmatch(cell) is not None for cell in cells]
        if sum(files) == 1 and len(cells) == 2 and not fit(delimiter)[0]:
            return Dialect(delimiter, ["file_name" if is_file else "caption" for is_file in files], True, skips)
        return Dialect(delimiter, _name_columns(path, cells), False, skips)
    if len(cells) == 1:
        return Dialect("\n", ["url"], True, skips)  # one URL a line, which may hold any delimiter
    if len(cells) != 2:
        raise UserError(f"listing.path {path}: no header line above {len(cells)} columns; add one that names them")
    return Dialect(delimiter, ["url" if _is_url(cell) else "caption" for cell in cells], True, skips)


def _split_header(line: str, delimiter: str) -> list[str]:
    try:
        cells, inside = split_line(line, delimiter, set(), skips_blanks='"' in line)
    except StrayMarkError:
        return line.split(delimiter)
    return cells if inside is None else line.split(delimiter)


def _is_url(cell: str) -> bool:
    return cell.strip().lower().startswith(("http://", "https://"))


def _has_url(cells: Sequence[str]) -> bool:
    return any(map(_is_url, cells))


def _has_blank(cells: Sequence[str]) -> bool:
    """Returns whether a cell beside the URL has several words, as only a caption does."""
    return any(" " in cell.strip() for cell in cells if not _is_url(cell))


def _name_columns(path: str, cells: Sequence[str]) -> list[str]:
    """Returns the names of a header; columns without one are called by their number."""
    names = [cell or f"column_{number}" for number, cell in enumerate(cells, 1)]
    check_names(path, names)
    return names


def check_names(path: str, names: Sequence[str]) -> None:
    """Raises UserError if two columns have the same name."""
    if duplicates := sorted({name for name in names if list(names).count(name) > 1}):
        raise UserError(f"listing.path {path}: column {duplicates[0]!r} occurs twice in the header; rename one")


def read_urls(path: str, extension: str, options: ReadOptions) -> Iterator[Batch]:
    """Yields the lines of a list of URLs; what follows a tab is the caption."""
    with open_table(path) as file:
        cells: list[str] = []
        for line in read_lines(path, file, options.encoding, options.account):
            if not line.text.strip():
                options.account.count("blank_lines")
                continue
            url, _, caption = line.text.strip().partition("\t")
            options.account.records += 1
            cells += [url.strip(), caption.strip()]
            if len(cells) == 2 * BATCH_ROWS:
                yield _build_batch(cells, ("url", "caption"))
                cells = []
        if cells:
            yield _build_batch(cells, ("url", "caption"))
