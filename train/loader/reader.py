"""Row groups of pack shards and their embedding shards: indexed from the footers, read on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.pack_format import (
    BUCKET_COLUMN,
    ENCODING_KEY,
    ORIGINAL_SIDE,
    SQUARE,
    ImageShape,
    pixels_column,
    stored_shapes,
)
from dataprep.io.parquet import check_kind
from train.loader.config import LoaderConfig
from train.loader.disk_cache import RowGroupCache
from train.loader.row_group import RAW, RowGroup, make_row_group

EMBEDDING_COLUMNS = ["key", "length", "dim", "codec", "embedding", "scale"]
REMOTE_READS = 8  # concurrent reads of object storage, which are bound by latency
ATTEMPTS, BACKOFF = 3, 1.0  # of a remote read; seconds before the second attempt, doubling
SAMPLED_SHARDS = 8  # shards whose footers estimate the size of row groups


class CorruptDataError(RuntimeError):
    """Unreadable data: file, row group, reason and remedy."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, reason = name, " ".join(str(error).split())
        super().__init__(
            f"{name}: cannot be read ({reason}); delete the file and run its stage again, or set data.on_corrupt=skip"
        )


@dataclass(frozen=True)
class RowGroupPlace:
    """Location of a row group: the number of its pack shard, its number within the shard, and its aspect bucket."""

    shard: int
    index: int
    bucket: str


class StoredPixels(NamedTuple):
    """How a pixel column stores its images."""

    encoding: str  # raw, or a compressed format that OpenCV decodes
    size: int  # the resolution
    shapes: dict[str, ImageShape]  # bucket -> (height, width)


@dataclass(frozen=True)
class ReaderShard:
    """Index of a pack shard and its embedding shard, from their footers."""

    pack: str
    embed: str | None
    starts: np.ndarray  # int64 (groups + 1,): the first row of each row group
    kept: np.ndarray  # one bit per row: selected (split, min_original)
    kept_rows: np.ndarray  # int64 (groups,): selected rows of each row group
    splits: tuple[str, ...]
    buckets: tuple[str, ...]  # the aspect bucket of each row group
    pixels: dict[str, StoredPixels]  # by column
    bytes: int  # uncompressed, of the columns that are read

    def selected_rows(self, group: int) -> np.ndarray:
        """Returns the selected rows of a row group, int64, numbered within the group."""
        bits = np.unpackbits(self.kept, count=int(self.starts[-1]))
        return np.flatnonzero(bits[self.starts[group] : self.starts[group + 1]])


class Reader:
    """Row groups of ``pack_paths`` with rows of ``split`` (None: of any), and their pixel ``columns``.

    ``min_original`` selects the rows whose original had at least this shorter side, in pixels. ``embed_paths`` are
    row-aligned with ``pack_paths``, with k rows per image of k captions. Paths are local or any fsspec URL. The
    constructor reads footers and the columns that select rows. Raises UserError for files that are missing, of another
    kind, or not aligned.
    """

    def __init__(
        self,
        pack_paths: Sequence[str],
        embed_paths: Sequence[str] | None,
        columns: Sequence[str],
        split: str | None,
        config: LoaderConfig,
        min_original: int = 0,
    ) -> None:
        if not pack_paths:
            raise UserError("training data: there are no pack shards; run the pack stage first")
        if embed_paths is not None and len(embed_paths) != len(pack_paths):
            raise UserError(f"{len(pack_paths)} pack and {len(embed_paths)} embedding shards; run embed again")
        self.config, self.columns = config, tuple(columns)
        local = storage.is_local(pack_paths[0])
        self.threads = 1 if local else REMOTE_READS
        self.cache = RowGroupCache(config.cache_mb << 20) if config.cache_mb and not local else None
        self.versions: dict[str, str] = {}  # of remote files, to tell apart two versions in the cache
        with ThreadPoolExecutor(self.threads) as pool:
            pairs = [(path, embed_paths[at] if embed_paths else None) for at, path in enumerate(pack_paths)]
            self.shards = list(
                pool.map(lambda pair: open_shard(pair[0], pair[1], self.columns, split, min_original), pairs)
            )
        self.groups = [
            RowGroupPlace(number, int(index), shard.buckets[index])
            for number, shard in enumerate(self.shards)
            for index in np.flatnonzero(shard.kept_rows)
        ]
        if not self.groups:
            found = ", ".join(sorted({name for shard in self.shards for name in shard.splits})) or "no rows at all"
            large = f" from an original of min_original={min_original} pixels" if min_original else ""
            raise UserError(f"training data: no row of split {split!r}{large} (splits: {found}); loosen the filters")
        self.rows = np.array([self.shards[group.shard].kept_rows[group.index] for group in self.groups])
        self.buckets = sorted({group.bucket for group in self.groups})
        self.bucket_of = np.array([self.buckets.index(group.bucket) for group in self.groups])  # per row group
        self.verified = np.zeros(len(self.groups), dtype=bool)

    def groups_per_window(self) -> int:
        """Returns the number of row groups in a window of the config's size."""
        every = max(1, len(self.shards) // SAMPLED_SHARDS)
        sampled = [shard for shard in self.shards[::every] if len(shard.kept_rows)] or self.shards
        size = sum(shard.bytes for shard in sampled) / max(1, sum(len(shard.kept_rows) for shard in sampled))
        return max(1, int((self.config.window_mb << 20) / max(1.0, size)))

    def group_of_each_bucket(self) -> list[int]:
        """Returns the number of one row group of each bucket."""
        return [int(number) for number in np.unique(self.bucket_of, return_index=True)[1]]

    def shapes(self, number: int) -> dict[str, ImageShape]:
        """Returns the image shape of each pixel column in row group ``number``."""
        group = self.groups[number]
        return {name: stored.shapes[group.bucket] for name, stored in self.shards[group.shard].pixels.items()}

    def read(self, number: int) -> RowGroup:
        """Reads row group ``number``; raises CorruptDataError if it is unreadable."""
        group = self.groups[number]
        shard = self.shards[group.shard]
        name = f"{shard.pack} row group {group.index}"
        verify = self.config.verify and not self.verified[number]
        try:
            pack = self._read_columns(shard.pack, group.index, ["key", "captions", *self.columns], verify)
            embed = self._read_columns(shard.embed, group.index, EMBEDDING_COLUMNS, verify) if shard.embed else None
            stored = {name: (shard.pixels[name].encoding, shape) for name, shape in self.shapes(number).items()}
            part = make_row_group(name, shard.selected_rows(group.index), pack, embed, stored)
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptDataError(name, error) from error
        self.verified[number] = True
        return part

    def _read_columns(self, path: str, group: int, columns: list[str], verify: bool) -> pa.Table:
        def read() -> pa.Table:
            with open_parquet(path, verify) as file:
                return file.read_row_group(group, columns=columns, use_threads=False).combine_chunks()

        if storage.is_local(path):
            return read()
        again = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(BACKOFF),
            retry=retry_if_exception_type(OSError),
            reraise=True,
        )
        if self.cache is None:
            return again(read)
        if path not in self.versions:
            fs, inner = storage.filesystem(path)
            self.versions[path] = fs.ukey(inner)
        return self.cache.get(json.dumps([path, self.versions[path], group, columns]), lambda: again(read))


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


def open_shard(
    pack: str, embed: str | None, columns: tuple[str, ...], split: str | None, min_original: int = 0
) -> ReaderShard:
    """Indexes a pack shard and its embedding shard from footers and selecting columns; raises as `Reader` does."""
    try:
        with open_parquet(pack) as file:
            check_kind(file.schema_arrow, pack, "pack")
            pixels = {name: read_pixel_encoding(pack, file.schema_arrow, name) for name in columns}
            rows, size = _measure_groups(file.metadata, {"key", "captions.list.element", *columns})
            splits = file.read(columns=["split"])["split"]
            large = _read_large(file, pack, min_original)
            starts = np.concatenate([[0], np.cumsum(rows)])
            buckets = _read_buckets(file, pack, starts)
        if embed is not None:
            with open_parquet(embed) as file:
                check_kind(file.schema_arrow, embed, "embeddings")
                embedded, more = _measure_groups(file.metadata, set(EMBEDDING_COLUMNS))
            size += more
            per_row = int(embedded.sum()) // max(1, int(rows.sum()))
            if not np.array_equal(embedded, rows * per_row):
                raise UserError(f"{embed}: not the same rows in the same order as {pack}; run embed again")
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{pack}: it or its embedding shard is not a readable Parquet file ({error}); run its stage again"
        ) from error
    mask = np.ones(len(splits), bool) if split is None else pc.fill_null(pc.equal(splits, split), False).to_numpy()
    mask = mask & large
    kept_rows = np.add.reduceat(mask, starts[:-1], dtype=np.int64) if len(mask) else np.zeros(0, np.int64)
    found = tuple(str(name) for name in pc.unique(splits).to_pylist())
    return ReaderShard(pack, embed, starts, np.packbits(mask), kept_rows, found, buckets, pixels, size)


def _read_large(file: pq.ParquetFile, path: str, least: int) -> np.ndarray:
    """Reads whether the original of each row had a shorter side of at least ``least`` pixels."""
    if not least:
        return np.ones(file.metadata.num_rows, bool)
    if ORIGINAL_SIDE not in file.schema_arrow.names:
        raise UserError(f"{path}: no column {ORIGINAL_SIDE}, which min_original={least} needs; run pack again")
    sides: np.ndarray = file.read(columns=[ORIGINAL_SIDE])[ORIGINAL_SIDE].to_numpy()
    return sides >= least


def _read_buckets(file: pq.ParquetFile, path: str, starts: np.ndarray) -> tuple[str, ...]:
    """Reads the aspect bucket of each row group; their first rows are ``starts``."""
    if BUCKET_COLUMN not in file.schema_arrow.names:
        return (SQUARE,) * (len(starts) - 1)
    names = np.array(file.read(columns=[BUCKET_COLUMN])[BUCKET_COLUMN].to_pylist())
    if mixed := [at for at, (a, b) in enumerate(pairwise(starts.tolist())) if (names[a:b] != names[a]).any()]:
        raise UserError(f"{path}: row group {mixed[0]} has images of several buckets; run pack again")
    return tuple(names[starts[:-1]].tolist())


def _measure_groups(metadata: pq.FileMetaData, columns: set[str]) -> tuple[np.ndarray, int]:
    """Returns the rows of each row group, int64, and the uncompressed bytes of ``columns`` in all of them."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    groups = [group for group in groups if group.num_rows]
    size = 0
    for group in groups:
        chunks = [group.column(at) for at in range(group.num_columns)]
        size += sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
    return np.array([group.num_rows for group in groups], dtype=np.int64), size


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
