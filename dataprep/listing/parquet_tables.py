"""Reader of Parquet and Arrow tables, whose images may be inside, as the Hugging Face Hub stores them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.io import storage
from dataprep.io.arrow_files import open_arrow
from dataprep.io.errors import UserError
from dataprep.io.parquet_cells import find_image_column
from dataprep.listing.csv_tables import check_names
from dataprep.listing.read_options import BATCH_ROWS, Batch, ReadOptions

ARROW = ".arrow"


def read_schema(path: str) -> pa.Schema:
    """Reads the schema of a Parquet or Arrow file, by its name. Raises UserError if it is none."""
    fs, inner = storage.filesystem(path)
    is_arrow = path.lower().endswith(ARROW)
    try:
        if is_arrow:
            with open_arrow(path) as table:
                return table.schema
        with fs.open(inner, "rb") as handle:
            return pq.read_schema(handle)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        kind = ARROW if is_arrow else ".parquet"
        raise UserError(f"listing.path {path}: not readable as {kind} ({reason}); check the file") from error


def read_parquet(path: str, extension: str, options: ReadOptions) -> Iterator[Batch]:
    """Yields the rows of a Parquet file; of a column of images only their paths, as ``<column>_path``."""
    fs, inner = storage.filesystem(path)
    with fs.open(inner, "rb") as handle, pq.ParquetFile(handle) as file:
        schema = file.schema_arrow
        check_names(path, schema.names)
        images = find_image_column(schema)
        # Reading the images here would read the whole file twice.
        has_path = images is not None and pa.types.is_struct(schema.field(images).type)
        wanted = [name for name in schema.names if name != images]
        leaves = [*wanted, f"{images}.path"] if has_path else wanted
        rows = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=leaves):
            if batch.num_rows:
                yield _convert_batch(batch, images, options)
                rows += batch.num_rows
        if rows != file.metadata.num_rows:
            raise UserError(f"listing.path {path}: {rows} rows read, {file.metadata.num_rows} in the footer")


def read_arrow(path: str, extension: str, options: ReadOptions) -> Iterator[Batch]:
    """As `read_parquet`, for an Arrow file."""
    with open_arrow(path) as table:
        check_names(path, table.schema.names)
        images = find_image_column(table.schema)
        for whole in table.batches:
            for start in range(0, whole.num_rows, BATCH_ROWS):
                yield _convert_batch(whole.slice(start, BATCH_ROWS), images, options)


def _convert_batch(batch: pa.RecordBatch, images: str | None, options: ReadOptions) -> Batch:
    """Returns a batch without its images; of these only their paths, as ``<images>_path``."""
    wanted = [name for name in batch.schema.names if name != images]
    table = pa.Table.from_batches([batch.select(wanted)]).replace_schema_metadata(None)
    if images is not None and images in batch.schema.names and pa.types.is_struct(batch.schema.field(images).type):
        table = table.append_column(f"{images}_path", batch.column(images).field("path"))
    table.validate(full=True)  # otherwise invalid UTF-8 would fail only where it is used
    for name in options.as_text.intersection(table.column_names):
        table = table.set_column(table.column_names.index(name), name, convert_to_text_column(table[name]))
    options.account.records += table.num_rows
    return Batch(table)


def find_conflicting_columns(schemas: Sequence[pa.Schema]) -> frozenset[str]:
    """Returns the columns whose types in several files have no common one."""
    known: dict[str, pa.Field] = {}
    conflicts = set()
    for schema in schemas:
        for item in schema:
            if item.name not in known:
                known[item.name] = item
            elif not known[item.name].type.equals(item.type) and item.name not in conflicts:
                try:
                    both = [pa.schema([known[item.name]]), pa.schema([item])]
                    known[item.name] = pa.unify_schemas(both, promote_options="permissive").field(0)
                except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
                    conflicts.add(item.name)
    return frozenset(conflicts)


def convert_to_text_column(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column as text: bytes as base64, what is nested as JSON."""
    if is_binary(values.type):
        return encode_bytes(values)
    try:
        return values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        texts = [None if value is None else json.dumps(value, default=str) for value in values.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])


def is_binary(kind: pa.DataType) -> bool:
    """Returns whether a type holds bytes."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def holds_bytes(kind: pa.DataType) -> bool:
    """Returns whether a nested type holds bytes at any depth."""
    if is_binary(kind):
        return True
    return any(holds_bytes(kind.field(place).type) for place in range(getattr(kind, "num_fields", 0)))


def encode_bytes(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a column of bytes as base64 text."""
    texts = [None if value is None else base64.b64encode(value).decode() for value in values.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])
