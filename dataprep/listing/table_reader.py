"""Reads tables (CSV, TSV, JSON, JSON lines, Parquet, Arrow, lists of URLs) in batches, from any fsspec URL.

Text formats give string columns only: a type inferred from the first rows could change, or fail, with later ones.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator

import pyarrow as pa

from dataprep.io.errors import UserError
from dataprep.listing.csv_tables import read_csv, read_urls
from dataprep.listing.json_tables import read_json, read_jsonl
from dataprep.listing.parquet_tables import read_arrow, read_parquet
from dataprep.listing.read_options import COMPRESSIONS, Batch, ReadOptions

READERS: dict[str, Callable[[str, str, ReadOptions], Iterator[Batch]]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".txt": read_urls,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
EXTENSIONS = tuple(READERS)


def table_extension(path: str) -> str | None:
    """Returns which of `EXTENSIONS` a file name ends with, ignoring compression; None for another kind of file."""
    name = path.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((extension for extension in EXTENSIONS if name.endswith(extension)), None)


def read_batches(path: str, options: ReadOptions, extension: str | None = None) -> Iterator[Batch]:
    """Yields the rows of one file in order, in batches of bounded size; nothing for a file without rows.

    ``extension`` None: that of the name. Raises UserError, naming the file, if it cannot be read.
    """
    extension = extension or table_extension(path)
    if extension not in READERS:
        raise UserError(f"listing.path {path}: unknown kind of file; give one of {' '.join(EXTENSIONS)}")
    try:
        yield from READERS[extension](path, extension, options)
    except UserError:
        raise
    except (pa.ArrowException, UnicodeDecodeError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"listing.path {path}: not readable as {extension} ({reason}); check the file") from error
