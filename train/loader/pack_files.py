"""Pack and embedding files of training: opened at any URL, and how a pixel column stores its images. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.pack_format import ENCODING_KEY, ImageShape, pixels_column, stored_shapes

RAW = "raw"  # encoding of uncompressed pixels
EMBEDDING_COLUMNS = ["key", "length", "dim", "codec", "embedding", "scale"]


class StoredPixels(NamedTuple):
    """How a pixel column stores its images."""

    encoding: str  # raw, or a compressed format that OpenCV decodes
    size: int  # the resolution
    shapes: dict[str, ImageShape]  # bucket -> (height, width)


@contextmanager
def open_parquet(path: str, verify: bool = False) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file at a local path or any fsspec URL; fetches only the requested ranges of a remote file."""
    if storage.is_local(path):
        with pq.ParquetFile(path, page_checksum_verification=verify) as file:
            yield file
        return
    fs, inner = storage.filesystem(path)
    # `pre_buffer` fetches the columns of a row group in few requests, so fsspec needs no cache.
    with (
        fs.open(inner, "rb", cache_type="none") as remote,
        pq.ParquetFile(remote, pre_buffer=True, page_checksum_verification=verify) as file,
    ):
        yield file


def read_pixel_encoding(path: str, schema: pa.Schema, name: str) -> StoredPixels:
    """Returns how pixel column ``name`` stores its images; raises UserError if there is no such column."""
    digits = name.rpartition("_")[2]
    if not digits.isdigit() or name != pixels_column(int(digits)):
        raise UserError(f"pixel column {name!r}: the name must end in its resolution, such as {pixels_column(64)}")
    if name not in schema.names:
        columns = ", ".join(column for column in schema.names if column.startswith("pixels_")) or "none"
        raise UserError(f"{path}: no column {name} (pixel columns: {columns}); add its size to pack.resolutions")
    field = schema.field(name)
    encoding = (field.metadata or {}).get(ENCODING_KEY, RAW.encode()).decode()
    return StoredPixels(encoding, int(digits), stored_shapes(field, int(digits)))


def read_vector_width(path: str, schema: pa.Schema, name: str) -> int:
    """Returns how many float16 numbers vector column ``name`` holds; raises UserError if there is no such column."""
    if name not in schema.names:
        raise UserError(f"{path}: no column {name}; add it to pack.features, and run pack again")
    return int(schema.field(name).type.byte_width // 2)
