"""What the packages hand to each other: the strict config base, column names and Parquet files with a schema version.

Every Parquet file that imagen-ray writes carries ``imagen_ray.kind`` (which of `KINDS` it is) and
``imagen_ray.version`` in its schema metadata, so that a reader can refuse what it does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from dataprep.storage import local_copy

# kind -> the newest schema version that this code reads and writes.
KINDS = {
    "listing": 1,  # url, caption and whatever other columns the source had
    "download": 1,  # one row a listing row: key, url, caption, status, error_message, sizes, sha256
    "annotations": 1,  # row-aligned with download: sizes, perceptual hash, caption statistics, language
    "scores": 1,  # row-aligned with download: clip_similarity (null where there is no image)
    "selection": 1,  # row-aligned with download: keep, reason, split
    "pack": 1,  # kept rows only: key, caption, split, one binary column `pixels_<size>` a resolution
    "embeddings": 1,  # row-aligned with pack: key, caption, length, dim, codec, embedding, scale
    "features": 1,  # of judged pictures: id, set, size, digest of the caption, text, one column `image_<model>` a model
    "samples": 1,  # generated images: prompt, seed, size, png, clip_score
}
KIND_KEY, VERSION_KEY = b"imagen_ray.kind", b"imagen_ray.version"


class UserError(ValueError):
    """A mistake of the user's (config, arguments, input): one line with the key, the value and the remedy; exit 2."""


class Config(BaseModel):
    """Base of every config class: frozen, no unknown keys, no silent type coercion (an int is taken for a float)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def write_table(table: pa.Table, path: str | Path, kind: str, **options: Any) -> None:
    """Writes ``table`` as Parquet to a local ``path``, stamped with its kind and schema version.

    The bytes are a pure function of the table and the pyarrow version. ``options`` go to `pyarrow.parquet.write_table`.
    """
    metadata = dict(table.schema.metadata or {}) | {KIND_KEY: kind.encode(), VERSION_KEY: str(KINDS[kind]).encode()}
    options = {"compression": "zstd"} | options
    pq.write_table(table.replace_schema_metadata(metadata), str(path), **options)


def read_table(path: str | Path, kind: str, columns: list[str] | None = None) -> pa.Table:
    """Reads a Parquet file of a known kind from any fsspec URL; UserError for another kind, version or a bad file."""
    with local_copy(str(path)) as local:
        try:
            with pq.ParquetFile(local) as file:
                check_kind(file.schema_arrow, str(path), kind)
                return file.read(columns=columns)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: not a readable Parquet file ({error}); delete it and run again") from error


def check_kind(schema: pa.Schema, path: str, kind: str) -> None:
    """Raises UserError unless ``schema`` says that the file at ``path`` is of ``kind`` at a version known here."""
    metadata = schema.metadata or {}
    found = metadata.get(KIND_KEY, b"").decode() or "a Parquet file that imagen-ray did not write"
    version = int(metadata.get(VERSION_KEY, b"0"))
    if found != kind:
        raise UserError(f"{path}: expected a file of kind {kind!r}, found {found!r}")
    if version != KINDS[kind]:
        raise UserError(f"{path}: {kind} schema version {version}, this imagen-ray reads {KINDS[kind]}")
