"""Readers of JSON lines, and of JSON as a whole: an array of objects, of URLs, or an object of columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from dataprep.io.errors import UserError
from dataprep.listing.captions import replace_surrogates
from dataprep.listing.read_options import BATCH_ROWS, Batch, ReadOptions, open_table
from dataprep.listing.text_decoding import DecodingError, decode_text, read_lines

FORMS = "an array of objects, an array of URLs, an object of columns, or one object per line"


def read_jsonl(path: str, extension: str, options: ReadOptions) -> Iterator[Batch]:
    """Yields the objects of a file that has one on each line."""
    with open_table(path) as file:
        lines = read_lines(path, file, options.encoding, options.account)

        def records() -> Iterator[dict[str, Any]]:
            for line in lines:
                if line.text.strip():
                    yield _parse_record(path, line.number, line.text)
                else:
                    options.account.count("blank_lines")

        yield from _batch_records(records(), options)


def read_json(path: str, extension: str, options: ReadOptions) -> Iterator[Batch]:
    """Yields the rows of a whole JSON document, which is held in memory, or those of JSON lines under its name."""
    with open_table(path) as file:
        data = file.read()
    try:
        text, guessed = decode_text(data, options.encoding)
        value = json.loads(text)
    except (DecodingError, LookupError) as error:
        raise UserError(f"listing.path {path}: not readable as text ({error}); set listing.encoding") from error
    except (ValueError, RecursionError) as error:
        if _looks_like_lines(text):
            yield from read_jsonl(path, extension, options)
            return
        raise UserError(f"listing.path {path}: not JSON ({error}); give {FORMS}") from error
    if guessed:
        options.account.name("windows_1252", path)
    yield from _batch_records(iter(_find_rows(path, value)), options)


def _looks_like_lines(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _find_rows(path: str, value: Any) -> list[dict[str, Any]]:
    """Returns the rows of a document of one of the `FORMS`. Raises UserError for another."""
    only = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    if isinstance(only, list) and only and isinstance(only[0], dict):  # such as {"data": [...]}
        value = only
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [{"url": item} for item in value]
    if isinstance(value, list):
        for number, item in enumerate(value, 1):
            if not isinstance(item, dict):
                raise UserError(f"listing.path {path}: entry {number} is not a JSON object; give {FORMS}")
        return value
    if isinstance(value, dict) and value:
        columns = {name: list(cells.values()) if isinstance(cells, dict) else cells for name, cells in value.items()}
        if all(isinstance(cells, list) for cells in columns.values()) and len({len(c) for c in columns.values()}) == 1:
            return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        if all(not isinstance(cells, list | dict) for cells in value.values()):
            return [value]  # JSON lines of one line
        raise UserError(
            f"listing.path {path}: a JSON object of {', '.join(list(value)[:8])}, which are not columns of one length; "
            f"give {FORMS}"
        )
    return [] if value in ([], {}) else _refuse(path, value)


def _refuse(path: str, value: Any) -> list[dict[str, Any]]:
    raise UserError(f"listing.path {path}: a JSON {type(value).__name__}, not a list; give {FORMS}")


def _batch_records(records: Iterator[dict[str, Any]], options: ReadOptions) -> Iterator[Batch]:
    while batch := list(islice(records, BATCH_ROWS)):
        options.account.records += len(batch)
        yield build_json_batch([{replace_surrogates(str(n)): v for n, v in record.items()} for record in batch])


def build_json_batch(records: Sequence[dict[str, Any]]) -> Batch:
    """Returns objects as a table of text columns, with the values of columns that are not text alone."""
    names = list(dict.fromkeys(name for record in records for name in record))
    columns, values = {}, {}
    for name in names:
        cells = [record.get(name) for record in records]
        columns[name] = pa.array([convert_to_text(cell) for cell in cells], pa.string())
        if any(cell is not None and not isinstance(cell, str) for cell in cells):
            values[name] = cells
    return Batch(pa.table(columns), values)


def _parse_record(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also for a number of 5,000 digits and for 100,000 brackets
        raise UserError(
            f"listing.path {path}: line {number} is not JSON ({error}); give one object per line"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"listing.path {path}: line {number} is not a JSON object; give one object per line")
    return record


def convert_to_text(value: Any) -> str | None:
    """Returns a JSON value as text: strings unchanged, other values as JSON, None for null and NaN."""
    if value is None or value != value:
        return None
    return replace_surrogates(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
