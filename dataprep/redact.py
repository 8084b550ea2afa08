"""Taking samples out of data files for good: which are forgotten, and each kind of file written again without them.

Who asked to be forgotten is remembered by hashes alone (`Forgotten`), never by URL or caption. A row of a table that
others are aligned with stays as a row with nothing in it, so that every other row keeps its key; a row of what is
trained on (pack, embeddings) and a file of a tar go altogether.
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

from dataprep import storage
from dataprep.schema import KIND_KEY, Config, split_key

FORGOTTEN, FORGOTTEN_FILE = "forgotten", "forgotten.json"
# What stands in a forgotten row, by kind; `key` is kept, every other column becomes null.
BLANK: dict[str, dict[str, Any]] = {
    "listing": {"url": "", "caption": ""},
    "download": {
        "url": "",
        "caption": "",
        "status": "failed_to_download",
        "reason": FORGOTTEN,
        "error_message": FORGOTTEN,
    },
    "annotations": {"ok": False, "caption": ""},
    "scores": {},
    "selection": {"keep": False, "reason": f"{FORGOTTEN}: taken out on request"},
}
REMOVED = ("pack", "embeddings")
# samples: drawn by the models, from prompts, no row of the list is in them. features: a cache, deleted file by file.
UNTOUCHED = ("samples", "features")


@dataclass(frozen=True)
class Forgotten:
    """What RUN/forgotten.json holds."""

    urls: frozenset[str] = frozenset()  # sha256 of each URL
    images: frozenset[str] = frozenset()  # sha256 of each stored image
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)  # "download/<fingerprint>" -> keys
    trained: Sequence[Mapping[str, str]] = ()  # what had learned from them: weights cannot be redacted

    @classmethod
    def read(cls, path: str) -> Forgotten:
        """The list at ``path``, an empty one where there is none."""
        if not storage.exists(path):
            return cls()
        value = storage.read_json(path)
        return cls(frozenset(value["urls"]), frozenset(value["images"]), value["rows"], value["trained"])

    def write(self, path: str) -> None:
        """Writes the list, atomically; the bytes are a pure function of what it holds."""
        rows = {name: sorted(self.rows[name]) for name in sorted(self.rows)}
        plain = asdict(self) | {"urls": sorted(self.urls), "images": sorted(self.images), "rows": rows}
        storage.write_json(path, plain | {"trained": [dict(item) for item in self.trained]})


class ForgottenList(Config):
    """Where a shard's worker finds the list.

    What stands in it is no part of what a shard is known by: every shard made before was redacted when the list was
    written, so it is the same whether it is taken over or made again; and forgetting one sample must not cost the
    download of all others.
    """

    path: str = Field(exclude=True, description="RUN/forgotten.json; there need not be one")


def url_hash(url: str) -> str:
    """How a URL is remembered: the sha256 of its UTF-8 bytes, in hex."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def blank_rows(table: pa.Table, kind: str, rows_N: np.ndarray) -> pa.Table:
    """``table`` with nothing in the rows where the bool array ``rows_N`` is true, see `BLANK`."""
    kept_N = pa.array(np.arange(table.num_rows), mask=rows_N)  # a null index takes a null, of whatever type
    mask_N = pa.array(rows_N)
    for index, column in enumerate(table.schema):
        if column.name == "key":
            continue
        values = table[column.name].take(kept_N)
        if column.name in BLANK[kind]:
            values = pa.compute.if_else(mask_N, pa.scalar(BLANK[kind][column.name], column.type), values)
        table = table.set_column(index, column.with_nullable(True), values)
    return table


def redact_parquet(source: str | Path, target: str | Path, shard: int, keys: Collection[str]) -> int:
    """Writes the Parquet file ``source`` again to ``target`` without the samples in ``keys``; both are local.

    The layout (row groups, compression) stays, and the statistics in the footer are made anew. Where nothing of
    them is left in ``source``, ``target`` is not written.

    Returns:
        How many rows were blanked or removed.

    Raises:
        ValueError: a kind of file that nobody has said how to redact.
    """
    with pq.ParquetFile(source) as file:  # of whatever schema version: an old artifact is redacted like a new one
        metadata, kind = file.metadata, (file.schema_arrow.metadata or {}).get(KIND_KEY, b"").decode()
        before = file.read() if kind not in UNTOUCHED else None
    if before is None:
        return 0
    if kind not in BLANK and kind not in REMOVED:
        raise ValueError(f"{source}: a file of kind {kind!r} cannot be redacted; say how in dataprep/redact.py")
    if "key" in before.column_names:
        rows_N = pa.compute.is_in(before["key"], pa.array(sorted(keys), pa.string())).to_numpy()
    else:
        rows_N = np.zeros(before.num_rows, dtype=bool)
        rows_N[[row for of, row in map(split_key, keys) if of == shard]] = True
    rows_N = rows_N.astype(bool)
    after = before.filter(pa.array(~rows_N)) if kind in REMOVED else blank_rows(before, kind, rows_N)
    if after.equals(before):
        return 0
    with pq.ParquetWriter(target, after.schema, **_layout(metadata, kind in REMOVED)) as writer:
        for start, count in _groups(metadata, rows_N if kind in REMOVED else np.zeros_like(rows_N)):
            writer.write_table(after.slice(start, count).combine_chunks(), row_group_size=count)
    return int(rows_N.sum())


def _groups(metadata: pq.FileMetaData, gone_N: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each row group without the rows that are gone: files that are aligned stay so, group by
    group. One that has lost all of its rows is no more."""
    start = left = 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        count = rows - int(gone_N[start : start + rows].sum())
        if count:
            yield left, count
        start, left = start + rows, left + count


def _layout(metadata: pq.FileMetaData, checksum: bool) -> dict[str, Any]:
    """The options of `pyarrow.parquet.ParquetWriter` that the file was written with, as far as it shows them.

    Page checksums do not show: what training reads has them, tables that are aligned by row do not.
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
    """Writes the tar ``source`` again to ``target`` without the files of the samples in ``keys``; both are local.

    Returns how many samples went; where none does, ``target`` is not written.
    """
    wanted = set(keys)
    with tarfile.open(source) as archive:
        gone = {name for member in archive if (name := _sample(member.name)) in wanted}
        if not gone:
            return 0
        with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as kept:
            for member in archive:
                if _sample(member.name) not in gone:
                    kept.addfile(member, archive.extractfile(member))
    return len(gone)


def _sample(name: str) -> str:
    return Path(name).name.partition(".")[0]
