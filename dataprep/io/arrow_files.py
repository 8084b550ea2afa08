"""Arrow tables of other programs, such as `datasets.Dataset.save_to_disk` writes: a stream, or Arrow's file format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from dataprep.io.storage import filesystem, is_local

FILE_MAGIC = b"ARROW1"  # a stream has none


class ArrowTable(NamedTuple):
    """The schema of a table, and its batches in order, which are read as they are asked for."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@contextmanager
def open_arrow(path: str) -> Iterator[ArrowTable]:
    """Opens an Arrow file at a local path, which is mapped into memory, or at any fsspec URL.

    Raises pyarrow.ArrowInvalid for another file.
    """
    fs, inner = filesystem(path)
    with pa.memory_map(inner) if is_local(path) else pa.PythonFile(fs.open(inner, "rb"), "r") as source:
        magic = source.read(len(FILE_MAGIC))
        source.seek(0)
        if magic == FILE_MAGIC:
            with pa.ipc.open_file(source) as file:
                yield ArrowTable(file.schema, (file.get_batch(index) for index in range(file.num_record_batches)))
        else:
            with pa.ipc.open_stream(source) as stream:
                yield ArrowTable(stream.schema, iter(stream))
