"""Reads tables of URLs and captions (CSV, TSV, JSON lines, Parquet) in batches, from any fsspec URL.

Text formats give string columns only: a type inferred from the first rows could change, or fail, with later ones.
"""

from __future__ import annotations

import csv
import json
import lzma
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from dataprep.io.errors import UserError

BATCH_ROWS = 10_000
CSV_BLOCK_BYTES = 4 << 20
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def table_extension(path: str) -> str | None:
    """Returns which of `EXTENSIONS` a file name ends with, ignoring compression; None for another kind of file."""
    name = path.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((extension for extension in EXTENSIONS if name.endswith(extension)), None)


def read_batches(path: str) -> Iterator[pa.Table]:
    """Yields the rows of one file in order, in tables of bounded size; nothing for a file without rows.

    Raises UserError, naming the file, if it cannot be read.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl}
    extension = table_extension(path)
    try:
        if extension == ".parquet":
            yield from _read_parquet(path)
        elif extension in readers:
            yield from readers[extension](path)
        else:
            raise UserError(f"listing.path {path}: unknown kind of file; give one of {' '.join(EXTENSIONS)}")
    except UserError:
        raise
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"listing.path {path}: not readable as {extension} ({reason}); check the file") from error


def _read_parquet(path: str) -> Iterator[pa.Table]:
    with fsspec.open(path, "rb") as handle, pq.ParquetFile(handle) as file:
        _check_names(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            batch.validate(full=True)  # otherwise invalid UTF-8 would fail only where it is used
            if batch.num_rows:
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def _check_names(path: str, names: list[str]) -> None:
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"listing.path {path}: column {duplicates[0]!r} occurs twice in the header; rename one")


def _read_first_record(path: str, delimiter: str) -> list[str]:
    """Returns the cells of the first line of a CSV file."""
    with fsspec.open(path, "rt", compression="infer", encoding="utf-8-sig", newline="") as handle:
        return next(csv.reader(handle, delimiter=delimiter), [])


def _read_csv(path: str) -> Iterator[pa.Table]:
    """Reads CSV and TSV with a header line, or in CC3M's form: no header, two columns, one of them a URL."""
    tab = table_extension(path) == ".tsv"
    delimiter = "\t" if tab else ","
    names = _read_first_record(path, delimiter)
    if not names:
        return
    has_url = [cell.strip().lower().startswith(("http://", "https://")) for cell in names]
    headerless = any(has_url)
    if headerless:
        if len(names) != 2:
            raise UserError(f"listing.path {path}: no header line above {len(names)} columns; add one that names them")
        names = ["url" if is_url else "caption" for is_url in has_url]
    _check_names(path, names)
    with fsspec.open(path, "rb", compression="infer") as handle:
        reader = pa_csv.open_csv(
            handle,
            read_options=pa_csv.ReadOptions(
                column_names=names, skip_rows=0 if headerless else 1, block_size=CSV_BLOCK_BYTES, use_threads=False
            ),
            # Headerless TSV comes from tools that do not quote: a quotation mark is text.
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter, quote_char=False if tab and headerless else '"', newlines_in_values=not headerless
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=[""]
            ),
        )
        for batch in reader:
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def _read_jsonl(path: str) -> Iterator[pa.Table]:
    with fsspec.open(path, "rt", compression="infer", encoding="utf-8-sig") as handle:
        lines = ((number, line) for number, line in enumerate(handle, 1) if line.strip())
        while batch := list(islice(lines, BATCH_ROWS)):
            records = [_parse_json_record(path, number, line) for number, line in batch]
            names = list(dict.fromkeys(name for record in records for name in record))
            columns = {
                name: pa.array([convert_to_text(record.get(name)) for record in records], pa.string()) for name in names
            }
            yield pa.table(columns)


def _parse_json_record(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also for a number of 5,000 digits and for 100,000 brackets
        raise UserError(
            f"listing.path {path}: line {number} is not JSON ({error}); give one object per line"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"listing.path {path}: line {number} is not a JSON object; give one object per line")
    return {_replace_surrogates(name): value for name, value in record.items()}


def convert_to_text(value: Any) -> str | None:
    """Returns a JSON value as text: strings unchanged, other values as JSON, None for null."""
    if value is None:
        return None
    return _replace_surrogates(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _replace_surrogates(text: str) -> str:
    """Replaces lone surrogates, which JSON can express and UTF-8 cannot, by question marks."""
    return text.encode("utf-8", "replace").decode()
