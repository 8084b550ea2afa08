"""Removes samples from data files: the record of what is forgotten, and the rewriting of files without it.

The record (`Forgotten`) holds hashes, never a URL or caption. `dataprep.io.parquet.KINDS` says what happens to a row of
each kind of Parquet file; members of a tar are removed.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from dataprep.io import storage
from dataprep.io.config import Config
from dataprep.io.keys import split_key
from dataprep.io.parquet import KIND_KEY, KINDS

FORGOTTEN_FILE = "forgotten.json"


@dataclass(frozen=True)
class Forgotten:
    """Content of RUN/forgotten.json."""

    urls: frozenset[str] = frozenset()  # sha256 of each URL
    images: frozenset[str] = frozenset()  # sha256 of each stored image
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)  # "download/<fingerprint>" -> keys
    trained: Sequence[Mapping[str, str]] = ()  # models trained on them: weights cannot be redacted

    @classmethod
    def read(cls, path: str) -> Forgotten:
        """Reads the record at ``path``; an empty one if there is none."""
        if not storage.exists(path):
            return cls()
        value = storage.read_json(path)
        return cls(frozenset(value["urls"]), frozenset(value["images"]), value["rows"], value["trained"])

    def write(self, path: str) -> None:
        """Writes the record atomically; the bytes are a pure function of its content."""
        rows = {name: sorted(self.rows[name]) for name in sorted(self.rows)}
        plain = asdict(self) | {"urls": sorted(self.urls), "images": sorted(self.images), "rows": rows}
        storage.write_json(path, plain | {"trained": [dict(item) for item in self.trained]})


class ForgottenList(Config):
    """The path of the record, for shard workers.

    Excluded from a shard's fingerprint: finished shards are redacted when the record is written, so they equal shards
    made anew, and forgetting one sample must not repeat the download of all others.
    """

    path: str = Field(exclude=True, description="RUN/forgotten.json; may not exist")


def hash_url(url: str) -> str:
    """Returns the sha256 of a URL's UTF-8 bytes, in hex."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def blank_rows(table: pa.Table, kind: str, rows_N: np.ndarray) -> pa.Table:
    """Returns ``table`` with the rows blanked where the bool array ``rows_N`` is true, see `FileKind.blank`."""
    blank = KINDS[kind].blank or {}
    kept_N = pa.array(np.arange(table.num_rows), mask=rows_N)  # a null index takes a null of any type
    mask_N = pa.array(rows_N)
    for index, column in enumerate(table.schema):
        if column.name == "key":
            continue
        values = table[column.name].take(kept_N)
        if column.name in blank:
            values = pa.compute.if_else(mask_N, pa.scalar(blank[column.name], column.type), values)
        table = table.set_column(index, column.with_nullable(True), values)
    return table


def redact_parquet(source: str | Path, target: str | Path, shard: int, keys: Collection[str]) -> int:
    """Rewrites the local Parquet file ``source`` to ``target`` without the samples in ``keys``.

    Keeps row groups and compression and computes new statistics. Writes nothing if ``source`` has nothing of them.

    Returns:
        The number of rows blanked or removed.

    Raises:
        ValueError: an unknown kind of file.
    """
    with pq.ParquetFile(source) as file:  # of any schema version: old artifacts are redacted too
        metadata, kind = file.metadata, (file.schema_arrow.metadata or {}).get(KIND_KEY, b"").decode()
        if kind not in KINDS:
            raise ValueError(f"{source}: a file of kind {kind!r} cannot be redacted; add it to dataprep/io/parquet.py")
        if KINDS[kind].redaction == "none":
            return 0
        before = file.read()
    removes = KINDS[kind].redaction == "remove"
    if "key" in before.column_names:
        rows_N = pa.compute.is_in(before["key"], pa.array(sorted(keys), pa.string())).to_numpy()
    else:
        rows_N = np.zeros(before.num_rows, dtype=bool)
        rows_N[[row for key_shard, row in map(split_key, keys) if key_shard == shard]] = True
    rows_N = rows_N.astype(bool)
    after = before.filter(pa.array(~rows_N)) if removes else blank_rows(before, kind, rows_N)
    if after.equals(before):
        return 0
    with pq.ParquetWriter(target, after.schema, **_read_writer_options(metadata, removes)) as writer:
        for start, count in _split_row_groups(metadata, rows_N if removes else np.zeros_like(rows_N)):
            writer.write_table(after.slice(start, count).combine_chunks(), row_group_size=count)
    return int(rows_N.sum())


def _split_row_groups(metadata: pq.FileMetaData, gone_N: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields (first row, rows) of each row group after the removal; an empty group is left out.

    Aligned files thus stay aligned by row group.
    """
    start = left = 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        count = rows - int(gone_N[start : start + rows].sum())
        if count:
            yield left, count
        start, left = start + rows, left + count


def _read_writer_options(metadata: pq.FileMetaData, checksum: bool) -> dict[str, Any]:
    """Recovers the options of `pyarrow.parquet.ParquetWriter` from a file's metadata.

    Page checksums do not show there: files that training reads have them, others do not.
    """
    if not metadata.num_row_groups:
        return {}
    first = metadata.row_group(0)
    columns = {column.path_in_schema: column for column in map(first.column, range(first.num_columns))}
    return {
        "compression": {name: c.compression.replace("UNCOMPRESSED", "NONE") for name, c in columns.items()},
        "use_dictionary": [n for n, c in columns.items() if any("DICTIONARY" in item for item in c.encodings)],
        "write_statistics": [name for name, column in columns.items() if column.is_stats_set],
        "write_page_index": any(column.has_offset_index for column in columns.values()),
        "write_page_checksum": checksum,
    }


def redact_tar(source: str | Path, target: str | Path, keys: Collection[str]) -> int:
    """Rewrites the local tar ``source`` to ``target`` without the files of the samples in ``keys``.

    Returns the number of samples removed; writes nothing if there is none.
    """
    wanted = set(keys)
    with tarfile.open(source) as archive:
        gone = {name for member in archive if (name := _sample_of(member.name)) in wanted}
        if not gone:
            return 0
        with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as kept:
            for member in archive:
                if _sample_of(member.name) not in gone:
                    kept.addfile(member, archive.extractfile(member))
    return len(gone)


def _sample_of(name: str) -> str:
    return Path(name).name.partition(".")[0]
