"""Index of pack shards and their embedding shards: their row groups, and how many rows of each split these have.

It is made once per training, from footers, and read by every rank in place of the shards: a rank opens a shard only to
read a row group. Loads no torch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.pack_format import BUCKET_COLUMN, ORIGINAL_SIDE, SQUARE
from dataprep.io.parquet import check_kind, write_table
from dataprep.io.source_column import SOURCE_COLUMN
from train.loader.pack_files import (
    EMBEDDING_COLUMNS,
    StoredPixels,
    open_parquet,
    read_pixel_encoding,
    read_vector_width,
)

REMOTE_SHARDS = 32  # shards of object storage that are indexed at a time: a matter of latency
META_KEY = b"imagen_ray.index"  # schema metadata of the file
KIND = "shard_index"
# A row per pack shard. The lists have an entry per row group and split in it, in the order of the row groups.
SCHEMA = pa.schema(
    {
        "pack": pa.string(),
        "embed": pa.string(),  # null where there are no embeddings
        "group": pa.list_(pa.int32()),  # number of the row group in the shard
        "rows": pa.list_(pa.int32()),  # of the row group
        "bucket": pa.list_(pa.string()),  # its aspect bucket
        "source": pa.list_(pa.string()),  # the source of its rows
        "bytes": pa.list_(pa.int64()),  # uncompressed, of the columns that training reads; in the group's first entry
        "split": pa.list_(pa.string()),
        "kept": pa.list_(pa.int32()),  # rows of the split
        "large": pa.list_(pa.int32()),  # of these, rows with an original of at least `min_original`
    }
)
LISTS = tuple(field.name for field in SCHEMA if pa.types.is_list(field.type))


@dataclass(frozen=True)
class ShardIndex:
    """Row groups of shards, for training on some pixel columns.

    ``shards`` has the schema `SCHEMA`, ``text_dim`` is the width of the embeddings (None where there are none),
    ``vectors`` the width of each vector column, and ``large`` counts the rows whose original had a shorter side of at
    least ``min_original`` pixels.
    """

    shards: pa.Table
    pixels: dict[str, StoredPixels]
    text_dim: int | None
    min_original: int
    vectors: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.shards.num_rows)

    def pack_path(self, shard: int) -> str:
        """Returns the path of a pack shard by its number."""
        return str(self.shards["pack"][shard].as_py())

    def embed_path(self, shard: int) -> str | None:
        """Returns the path of the embeddings of a pack shard; None without any."""
        path: str | None = self.shards["embed"][shard].as_py()
        return path

    def entries(self, name: str) -> np.ndarray:
        """Returns the values of a list column, one per row group and split, through all shards."""
        values: np.ndarray = self._flatten(name).to_numpy(zero_copy_only=False)
        return values

    def encode(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Returns numbers (one per row group and split) and the sorted names that they stand for, of a list column."""
        values = self._flatten(name)
        names = sorted(str(value) for value in pc.unique(values).to_pylist())
        numbers: np.ndarray = pc.index_in(values, pa.array(names, pa.string())).to_numpy(zero_copy_only=False)
        return numbers, names

    def shard_of_entries(self) -> np.ndarray:
        """Returns the number of the shard of each entry, int32."""
        lengths = pc.list_value_length(self.shards["group"]).to_numpy()
        return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)

    def group_starts(self) -> np.ndarray:
        """Returns the number of the first entry of each row group, int64; its other entries follow."""
        shards, groups = self.shard_of_entries(), self.entries("group")
        return np.flatnonzero((np.diff(shards, prepend=-1) != 0) | (np.diff(groups, prepend=-1) != 0))

    def _flatten(self, name: str) -> pa.Array:
        chunks = self.shards[name].combine_chunks()
        array = chunks if isinstance(chunks, pa.Array) else pa.concat_arrays(chunks.chunks)
        return array.flatten()

    def write(self, path: str, source: str = "") -> None:
        """Writes the index to any fsspec URL, atomically; ``source`` identifies what it was made from."""
        about = {"source": source, "pixels": self.pixels, "text_dim": self.text_dim, "min_original": self.min_original}
        table = self.shards.replace_schema_metadata({META_KEY: json.dumps({**about, "vectors": self.vectors}).encode()})
        with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
            local = Path(scratch) / "index"
            write_table(table, local, KIND)
            storage.publish(local, path)

    @classmethod
    def read(cls, path: str) -> ShardIndex:
        """Reads an index from any fsspec URL, in one request."""
        with pq.ParquetFile(pa.BufferReader(storage.read_bytes(path))) as file:
            check_kind(file.schema_arrow, path, KIND)
            about = json.loads(file.schema_arrow.metadata[META_KEY])
            pixels = {name: _to_pixels(*stored) for name, stored in about["pixels"].items()}
            return cls(file.read(), pixels, about["text_dim"], about["min_original"], about["vectors"])


def read_source(path: str) -> str | None:
    """Returns what the index at ``path`` was made from; None if there is none."""
    data = storage.read_or_none(path)
    if data is None:
        return None
    metadata = pq.read_schema(pa.BufferReader(data)).metadata or {}
    return str(json.loads(metadata[META_KEY])["source"]) if META_KEY in metadata else None


def index_shards(
    pack_paths: Sequence[str],
    embed_paths: Sequence[str] | None,
    columns: Sequence[str],
    min_original: int = 0,
    vectors: Sequence[str] = (),
) -> ShardIndex:
    """Indexes pack shards for training on pixel ``columns`` and ``vectors``; ``embed_paths`` are their embeddings.

    These are row-aligned, with k rows per image of k captions. Paths are local or any fsspec URL. Reads footers, and
    columns that select rows only where the footer's statistics do not tell. Raises UserError for files that are
    missing, of another kind, or not aligned.
    """
    if not pack_paths:
        raise UserError("training data: there are no pack shards; run the pack stage first")
    if embed_paths is not None and len(embed_paths) != len(pack_paths):
        raise UserError(f"{len(pack_paths)} pack and {len(embed_paths)} embedding shards; run embed again")
    pairs = [(path, embed_paths[at] if embed_paths else None) for at, path in enumerate(pack_paths)]
    with ThreadPoolExecutor(1 if storage.is_local(pack_paths[0]) else REMOTE_SHARDS) as pool:
        wanted = tuple(columns), tuple(vectors)
        found = list(pool.map(lambda pair: _index_shard(pair[0], pair[1], *wanted, min_original), pairs))
    return join_indexes(found)


def join_indexes(parts: Iterable[ShardIndex]) -> ShardIndex:
    """Returns the index of all shards of ``parts``; raises UserError if they do not store pixels alike."""
    parts = list(parts)
    first = parts[0]
    for part in parts:
        if (part.pixels, part.vectors) != (first.pixels, first.vectors):
            one, other = first.shards["pack"][0], part.shards["pack"][0]
            raise UserError(f"{other}: stores its pixels or vectors in another way than {one}; run pack again")
    text_dim = next((part.text_dim for part in parts if part.text_dim is not None), None)
    table = pa.concat_tables([part.shards for part in parts]).combine_chunks()
    return ShardIndex(table, first.pixels, text_dim, first.min_original, first.vectors)


def _index_shard(
    pack: str, embed: str | None, columns: tuple[str, ...], vectors: tuple[str, ...], min_original: int
) -> ShardIndex:
    """Indexes a pack shard and its embedding shard; raises as `index_shards` does."""
    text_dim = None
    try:
        with open_parquet(pack) as file:
            check_kind(file.schema_arrow, pack, "pack")
            pixels = {name: read_pixel_encoding(pack, file.schema_arrow, name) for name in columns}
            widths = {name: read_vector_width(pack, file.schema_arrow, name) for name in vectors}
            rows, size = _measure_groups(file.metadata, {"key", "captions.list.element", *columns, *vectors})
            counts = list(_count_rows(file, pack, min_original))
        if embed is not None:
            with open_parquet(embed) as file:
                check_kind(file.schema_arrow, embed, "embeddings")
                embedded, more = _measure_groups(file.metadata, set(EMBEDDING_COLUMNS))
                text_dim = _read_width(file)
            per_row = int(embedded.sum()) // max(1, int(rows.sum()))
            if not np.array_equal(embedded[embedded > 0], rows[rows > 0] * per_row):
                raise UserError(f"{embed}: not the same rows in the same order as {pack}; run embed again")
            size[rows > 0] += more[embedded > 0]
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{pack}: it or its embedding shard is not a readable Parquet file ({error}); run its stage again"
        ) from error
    entries = [
        (group, rows[group], bucket, source, 0 if nth else size[group], split, kept, large)
        for group, (bucket, source, splits) in enumerate(counts)
        for nth, (split, kept, large) in enumerate(splits)
    ]
    lists = zip(*entries, strict=True) if entries else [()] * len(LISTS)
    row = {"pack": pack, "embed": embed} | dict(zip(LISTS, map(list, lists), strict=True))
    return ShardIndex(pa.Table.from_pylist([row], schema=SCHEMA), pixels, text_dim, min_original, widths)


class GroupCounts(NamedTuple):
    """A row group: its bucket and source, and its splits: name, rows, and how many of these are large enough."""

    bucket: str
    source: str
    splits: list[tuple[str, int, int]]


def _count_rows(file: pq.ParquetFile, path: str, min_original: int) -> Iterator[GroupCounts]:
    """Yields the counts of each row group."""
    names = _selecting_columns(file, path, min_original)
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    ranges = [_read_ranges(group, names, min_original) for group in groups]
    unclear = [index for index, group in enumerate(groups) if ranges[index] is None and group.num_rows]
    read, start = file.read_row_groups(unclear, columns=names) if unclear else None, 0
    for index, (group, clear) in enumerate(zip(groups, ranges, strict=True)):
        if not group.num_rows:
            yield GroupCounts(SQUARE, "", [])
        elif clear is not None:
            large = group.num_rows if clear.get(ORIGINAL_SIDE, 0) >= min_original else 0
            kinds = clear.get(BUCKET_COLUMN, SQUARE), clear.get(SOURCE_COLUMN, "")
            yield GroupCounts(*kinds, [(clear["split"], group.num_rows, large)])
        else:
            assert read is not None
            part, start = read.slice(start, group.num_rows), start + group.num_rows
            yield _count_values(part, f"{path}: row group {index}", min_original)


def _selecting_columns(file: pq.ParquetFile, path: str, min_original: int) -> list[str]:
    """Returns the columns of a pack that decide which rows are read, and in which batches."""
    present = file.schema_arrow.names
    if min_original and ORIGINAL_SIDE not in present:
        raise UserError(f"{path}: no column {ORIGINAL_SIDE}, which min_original={min_original} needs; run pack again")
    kinds = [name for name in (BUCKET_COLUMN, SOURCE_COLUMN) if name in present]
    return ["split", *kinds, *([ORIGINAL_SIDE] if min_original else [])]


def _read_ranges(group: pq.RowGroupMetaData, names: Sequence[str], min_original: int) -> dict[str, Any] | None:
    """Returns the least value of columns of a row group, if the statistics say that all its rows count alike."""
    least: dict[str, Any] = {}
    for column in map(group.column, range(group.num_columns)):
        stats = column.statistics if column.path_in_schema in names else None
        if stats is None or not stats.has_min_max or stats.null_count != 0:
            continue
        low, high = stats.min, stats.max
        if low == high or (column.path_in_schema == ORIGINAL_SIDE and (low >= min_original or high < min_original)):
            least[column.path_in_schema] = low
    return least if least.keys() == set(names) else None


def _count_values(part: pa.Table, name: str, min_original: int) -> GroupCounts:
    """Counts the rows of a row group by their values."""
    kinds = {BUCKET_COLUMN: SQUARE, SOURCE_COLUMN: ""}
    for column, called in ((BUCKET_COLUMN, "buckets"), (SOURCE_COLUMN, "sources")):
        if column in part.column_names:
            values = pc.unique(part[column]).to_pylist()
            if len(values) > 1:
                raise UserError(f"{name} has images of several {called}; run pack again")
            kinds[column] = str(values[0])
    large = select_rows(part, None, min_original)
    splits = pc.unique(part["split"]).to_pylist()
    own = {str(split): select_rows(part, str(split), 0) for split in splits}
    counts = [(split, int(rows.sum()), int((rows & large).sum())) for split, rows in own.items()]
    return GroupCounts(kinds[BUCKET_COLUMN], kinds[SOURCE_COLUMN], counts)


def select_rows(part: pa.Table, split: str | None, min_original: int) -> np.ndarray:
    """Returns which rows of a pack table are of ``split`` (None: of any) and large enough, bool (rows,)."""
    selected = np.ones(part.num_rows, dtype=bool)
    if split is not None:
        selected &= pc.equal(pc.fill_null(part["split"], str(None)), split).to_numpy()
    if min_original:
        selected &= pc.fill_null(pc.greater_equal(part[ORIGINAL_SIDE], min_original), False).to_numpy()
    return selected


def _read_width(file: pq.ParquetFile) -> int | None:
    """Returns the width of the embeddings; None for a shard without rows."""
    if not file.metadata.num_rows:
        return None
    first = next(index for index in range(file.metadata.num_row_groups) if file.metadata.row_group(index).num_rows)
    group = file.metadata.row_group(first)
    for column in map(group.column, range(group.num_columns)):
        if column.path_in_schema == "dim" and column.statistics is not None and column.statistics.has_min_max:
            return int(column.statistics.max)
    return int(file.read_row_group(first, columns=["dim"])["dim"][0].as_py())


def _measure_groups(metadata: pq.FileMetaData, columns: set[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns, per row group, its rows and the uncompressed bytes of ``columns``, both int64."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    size = np.zeros(len(groups), dtype=np.int64)
    for index, group in enumerate(groups):
        chunks = map(group.column, range(group.num_columns))
        size[index] = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
    return np.array([group.num_rows for group in groups], dtype=np.int64), size


def _to_pixels(encoding: str, size: int, shapes: dict[str, list[int]]) -> StoredPixels:
    return StoredPixels(encoding, size, {bucket: (height, width) for bucket, (height, width) in shapes.items()})
