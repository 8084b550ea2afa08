"""Parquet files with a kind and a schema version.

Every Parquet file carries ``imagen_ray.kind`` (a key of `KINDS`) and ``imagen_ray.version`` in its schema metadata, so
that a reader can refuse what it does not know.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.io.errors import UserError
from dataprep.io.failure_reasons import FORGOTTEN, NOT_FETCHED
from dataprep.io.storage import filesystem, local_copy


class _PandasHidden(MetaPathFinder):
    """Makes the import of pandas fail."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not imported here", name=name)


def _keep_pandas_unloaded() -> None:
    """Keeps pyarrow from importing pandas, which takes 0.4 CPU-seconds, when it converts its first Python list.

    pyarrow looks once whether it may meet objects of pandas. We pass it none; `to_pandas` looks again.
    """
    hidden = _PandasHidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(hidden)


_keep_pandas_unloaded()


@dataclass(frozen=True)
class FileKind:
    """A kind of Parquet file: its schema version, and what `dataprep.io.redact` does with a forgotten sample.

    ``redaction``: "blank" keeps the row, so that row-aligned files stay aligned, and empties it: ``key`` stays, columns
    of ``blank`` get its values, all others become null. "remove" removes the row. "none": no row is a listed sample.
    """

    version: int
    redaction: Literal["blank", "remove", "none"]
    blank: Mapping[str, Any] | None = None


KINDS = {
    # url, caption, then the source's other columns
    "listing": FileKind(1, "blank", {"url": "", "caption": ""}),
    # row-aligned with listing: key, url, caption, status, reason, error_message, sizes, sha256
    "download": FileKind(
        1,
        "blank",
        {"url": "", "caption": "", "status": NOT_FETCHED, "reason": FORGOTTEN, "error_message": FORGOTTEN},
    ),
    # row-aligned with download: sizes, perceptual hash, caption statistics, language
    "annotations": FileKind(1, "blank", {"ok": False, "caption": ""}),
    # row-aligned with download: clip_similarity (null without an image), heads, clip_embedding
    "scores": FileKind(1, "blank", {}),
    # row-aligned with listing: key, and what a stage without a kind of its own computes of each row
    "columns": FileKind(1, "blank", {}),
    # row-aligned with download: keep, reason, split, duplicate_of
    "selection": FileKind(2, "blank", {"keep": False, "reason": f"{FORGOTTEN}: taken out on request"}),
    # kept rows: key, caption, captions, split, original_side, one binary column `pixels_<size>` per resolution
    "pack": FileKind(2, "remove"),
    # row-aligned with pack: key, caption, length, dim, codec, embedding, scale
    "embeddings": FileKind(1, "remove"),
    # of evaluated images: id, set, size, caption digest, text, one column `image_<model>` per model; a cache that
    # `forget` deletes file by file
    "features": FileKind(1, "none"),
    # row groups of pack and embedding shards, with counts of their rows: while a training runs, holds no sample
    "shard_index": FileKind(1, "none"),
    # generated images: prompt, seed, size, png, clip_score
    "samples": FileKind(1, "none"),
}
KIND_KEY, VERSION_KEY = b"imagen_ray.kind", b"imagen_ray.version"
ROOT_KEY = b"imagen_ray.root"  # of a listing: the folder that its URLs are relative to


def write_table(
    table: pa.Table, path: str | Path, kind: str, row_groups: Sequence[int] | None = None, **options: Any
) -> None:
    """Writes ``table`` as Parquet to a local ``path``, with its kind and schema version.

    ``row_groups`` are the rows of each row group; None: pyarrow's default. ``options`` go to
    `pyarrow.parquet.ParquetWriter`. The bytes are a pure function of the table, the options and the pyarrow version.
    """
    known = {KIND_KEY: kind.encode(), VERSION_KEY: str(KINDS[kind].version).encode()}
    table = table.replace_schema_metadata(dict(table.schema.metadata or {}) | known)
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
    """Reads a Parquet file of a known kind from any fsspec URL.

    Raises FileNotFoundError; UserError for another kind or version and for a damaged file.
    """
    with local_copy(str(path)) as local:
        try:
            with pq.ParquetFile(local) as file:
                check_kind(file.schema_arrow, str(path), kind)
                return file.read(columns=columns)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _describe_damage(path, error) from error


def read_schema(path: str | Path, kind: str) -> pa.Schema:
    """Reads the schema of a Parquet file of a known kind from its footer. Raises as `read_table` does."""
    fs, inner = filesystem(str(path))
    try:
        with fs.open(inner, "rb") as handle:
            schema = pq.read_schema(handle)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _describe_damage(path, error) from error
    check_kind(schema, str(path), kind)
    return schema


def _describe_damage(path: str | Path, error: Exception) -> UserError:
    """Returns a one-line UserError: pyarrow's message depends on where the damage is and may have many lines."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path}: not a readable Parquet file ({reason}); delete it and run again")


def check_kind(schema: pa.Schema, path: str, kind: str) -> None:
    """Raises UserError unless ``schema`` is of ``kind``, in the version that this code reads."""
    metadata = schema.metadata or {}
    found = metadata.get(KIND_KEY, b"").decode(errors="replace") or "a Parquet file that imagen-ray did not write"
    version, known = metadata.get(VERSION_KEY, b"0").decode(errors="replace"), str(KINDS[kind].version)
    if found != kind:
        raise UserError(f"{path}: expected a file of kind {kind!r}, found {found!r}")
    if version != known:
        raise UserError(f"{path}: {kind} schema version {version}, this imagen-ray reads {known}")
