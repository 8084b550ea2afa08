"""What the readers of tables share: their options, a batch of rows, and opening a file that may be compressed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa

from dataprep.io import storage
from dataprep.listing.account import Account

BATCH_ROWS = 10_000
BATCH_CHARACTERS = 64 << 20  # of text lines; long ones make smaller batches
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


class Batch(NamedTuple):
    """Rows of a table. ``values`` has the cells of JSON columns that hold anything but text, as they were read."""

    table: pa.Table
    values: Mapping[str, list[Any]] = {}


@dataclass(frozen=True)
class ReadOptions:
    """How tables are read.

    Attributes:
        encoding: of text files; None: recognised.
        quotes: see `dataprep.listing.csv_records.RecordReader`.
        columns: names by which a header is recognised, beside the usual ones.
        account: counts records and what is odd.
        as_text: Parquet columns to read as text, since files disagree on their type.
    """

    encoding: str | None = None
    quotes: str = "auto"
    columns: tuple[str, ...] = ()
    account: Account = field(default_factory=Account)
    as_text: frozenset[str] = frozenset()


@contextmanager
def open_table(path: str) -> Iterator[IO[bytes]]:
    """Opens a file for reading, decompressed by its extension."""
    fs, inner = storage.filesystem(path)
    if path.lower().endswith(".zst"):  # fsspec needs one more package for it, pyarrow none
        with fs.open(inner, "rb") as raw, pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd") as handle:
            yield handle
    else:
        with fsspec.core.OpenFile(fs, inner, "rb", compression=fsspec.utils.infer_compression(inner.lower())) as handle:
            yield handle
