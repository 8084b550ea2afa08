"""Images inside Parquet and Arrow files, in the form of the Hugging Face Hub: bytes, or ``{bytes, path}``.

The path of such an image is ``file.parquet#column:row``. Rows are read one after the other and a few at a time, since
reading any row of a Parquet file means decoding the pages before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.io.arrow_files import open_arrow
from dataprep.io.storage import filesystem

CELL = re.compile(r"(.+\.(?:parquet|arrow))#(.+):(\d+)")
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "image_data", "picture")
ROWS = 16  # decoded at a time


def find_image_column(schema: pa.Schema) -> str | None:
    """Returns the column that holds encoded images: the usual names first, then any struct of bytes and path."""
    by_name = {name.lower(): name for name in reversed(schema.names)}
    structs = [item.name for item in schema if _is_image_struct(item.type)]
    for name in (by_name[known] for known in IMAGE_NAMES if known in by_name):
        if name in structs or _is_bytes(schema.field(name).type):
            return name
    return structs[0] if structs else None


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image_struct(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    fields = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
    return fields.keys() == {"bytes", "path"} and _is_bytes(fields["bytes"])


def cell_path(file: str, column: str, row: int) -> str:
    """Returns the path of an image."""
    return f"{file}#{column}:{row}"


def is_cell(path: str) -> bool:
    """Returns whether ``path`` is that of an image inside a table."""
    return CELL.fullmatch(path) is not None


class CellReader:
    """Reads images of Parquet and Arrow files; close it after the last one."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._place: tuple[str, str, int] | None = None  # file, column and row of the next value
        self._values: Iterator[Any] = iter(())

    def read(self, path: str) -> bytes:
        """Returns the bytes at a `cell_path`. Raises OSError if there are none."""
        match = CELL.fullmatch(path)
        assert match is not None, path
        file, column, row = match[1], match[2], int(match[3])
        try:
            if self._place is None or self._place[:2] != (file, column) or self._place[2] > row:
                self._start(file, column, row)
            assert self._place is not None
            for number in range(self._place[2], row + 1):
                value = next(self._values, None)
                self._place = (file, column, number + 1)
        except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
            raise OSError(f"{file}: not readable ({error})") from error
        data = value.as_py() if value is not None else None
        if data is None:
            raise OSError(f"{path}: the cell holds no bytes")
        return bytes(data)

    def _start(self, file: str, column: str, row: int) -> None:
        """Begins at ``row`` or before it, at a place from which reading can begin."""
        self.close()
        if file.endswith(".arrow"):
            opened = self._open.enter_context(open_arrow(file))
            nested, first = pa.types.is_struct(opened.schema.field(column).type), 0
            columns = (batch.column(column) for batch in opened.batches)
        else:
            fs, inner = filesystem(file)
            handle = self._open.enter_context(fs.open(inner, "rb"))
            parquet = self._open.enter_context(pq.ParquetFile(handle))
            group = first = 0
            while group + 1 < parquet.num_row_groups and first + parquet.metadata.row_group(group).num_rows <= row:
                first += parquet.metadata.row_group(group).num_rows
                group += 1
            nested = pa.types.is_struct(parquet.schema_arrow.field(column).type)
            wanted = [f"{column}.bytes" if nested else column]
            batches = parquet.iter_batches(ROWS, list(range(group, parquet.num_row_groups)), wanted)
            columns = (batch.column(0) for batch in batches)
        self._values = (value for cells in columns for value in (cells.field("bytes") if nested else cells))
        self._place = (file, column, first)

    def close(self) -> None:
        """Closes the file that is open."""
        self._open.close()
        self._place = None
