"""What the packages hand to each other: the strict config base, column names and Parquet files with a schema version.

Every Parquet file that imagen-ray writes carries ``imagen_ray.kind`` (which of `KINDS` it is) and
``imagen_ray.version`` in its schema metadata, so that a reader can refuse what it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from dataprep.storage import filesystem, local_copy

# kind -> the newest schema version that this code reads and writes.
KINDS = {
    "listing": 1,  # url, caption and whatever other columns the source had
    "download": 1,  # one row a listing row: key, url, caption, status, reason, error_message, sizes, sha256
    "annotations": 1,  # row-aligned with download: sizes, perceptual hash, caption statistics, language
    "scores": 1,  # row-aligned with download: clip_similarity (null where there is no image), heads, clip_embedding
    "selection": 1,  # row-aligned with download: keep, reason, split
    "pack": 1,  # kept rows only: key, caption, split, original_side, one binary column `pixels_<size>` a resolution
    "embeddings": 1,  # row-aligned with pack: key, caption, length, dim, codec, embedding, scale
    "features": 1,  # of judged pictures: id, set, size, digest of the caption, text, one column `image_<model>` a model
    "samples": 1,  # generated images: prompt, seed, size, png, clip_score
}
KIND_KEY, VERSION_KEY = b"imagen_ray.kind", b"imagen_ray.version"
ORIGINAL_SIDE = "original_side"  # pack: the shorter side of the picture as it was fetched, in pixels
# Pack: the column with the aspect bucket of a row, and where a pixel field says the {bucket: [height, width]}.
BUCKET_COLUMN, SHAPES_KEY = "bucket", b"shapes"
SHARD_DIGITS, SAMPLE_DIGITS = 5, 4  # of a key: the shard's number, or more from shard 100,000 on; the row in it
SQUARE = ""  # the one bucket of a pack whose pictures are squares
Shape = tuple[int, int]  # height and width in pixels


class UserError(ValueError):
    """A mistake of the user's (config, arguments, input): one line with the key, the value and the remedy; exit 2."""


class Config(BaseModel):
    """Base of every config class: frozen, no unknown keys, no silent type coercion (an int is taken for a float)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def sample_key(shard: int, row: int) -> str:
    """The key of a sample: the digits of its shard, then those of its row in the shard."""
    return f"{shard:0{SHARD_DIGITS}d}{row:0{SAMPLE_DIGITS}d}"


def split_key(key: str) -> tuple[int, int]:
    """The shard and the row of a `sample_key`."""
    return int(key[:-SAMPLE_DIGITS]), int(key[-SAMPLE_DIGITS:])


def write_table(
    table: pa.Table, path: str | Path, kind: str, row_groups: Sequence[int] | None = None, **options: Any
) -> None:
    """Writes ``table`` as Parquet to a local ``path``, stamped with its kind and schema version.

    ``row_groups`` are the rows of each row group, where that is not left to pyarrow. The bytes are a pure function of
    the table and the pyarrow version. ``options`` go to `pyarrow.parquet.ParquetWriter`.
    """
    metadata = dict(table.schema.metadata or {}) | {KIND_KEY: kind.encode(), VERSION_KEY: str(KINDS[kind]).encode()}
    table = table.replace_schema_metadata(metadata)
    options = {"compression": "zstd"} | options
    if row_groups is None:
        pq.write_table(table, str(path), **options)
        return
    if sum(row_groups) != table.num_rows:
        raise ValueError(f"{path}: row groups of {sum(row_groups)} rows for a table of {table.num_rows}")
    with pq.ParquetWriter(str(path), table.schema, **options) as writer:
        start = 0
        for rows in row_groups:
            writer.write_table(table.slice(start, rows), row_group_size=rows)
            start += rows


def read_table(path: str | Path, kind: str, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file of a known kind from any fsspec URL; UserError for another kind, version or a bad file."""
    with local_copy(str(path)) as local:
        try:
            with pq.ParquetFile(local) as file:
                check_kind(file.schema_arrow, str(path), kind)
                return file.read(columns=columns)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from error


def read_schema(path: str | Path, kind: str) -> pa.Schema:
    """The columns of a Parquet file of a known kind; reads its footer alone. UserError as `read_table`."""
    fs, inner = filesystem(str(path))
    try:
        with fs.open(inner, "rb") as handle:
            schema = pq.read_schema(handle)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    check_kind(schema, str(path), kind)
    return schema


def _unreadable(path: str | Path, error: Exception) -> UserError:
    """What the Parquet reader makes of damage depends on where it is: a line of it will do."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path}: not a readable Parquet file ({reason}); delete it and run again")


def check_kind(schema: pa.Schema, path: str, kind: str) -> None:
    """Raises UserError unless ``schema`` says that the file at ``path`` is of ``kind`` at a version known here."""
    metadata = schema.metadata or {}
    found = metadata.get(KIND_KEY, b"").decode(errors="replace") or "a Parquet file that imagen-ray did not write"
    version = metadata.get(VERSION_KEY, b"0").decode(errors="replace")
    if found != kind:
        raise UserError(f"{path}: expected a file of kind {kind!r}, found {found!r}")
    if version != str(KINDS[kind]):
        raise UserError(f"{path}: {kind} schema version {version}, this imagen-ray reads {KINDS[kind]}")


def stored_shapes(field: pa.Field, size: int) -> dict[str, Shape]:
    """The shape of each bucket in a stored pixel column of resolution ``size``."""
    known = (field.metadata or {}).get(SHAPES_KEY)
    if known is None:
        return {SQUARE: (size, size)}
    return {name: (height, width) for name, (height, width) in json.loads(known).items()}
