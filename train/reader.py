"""Row groups of pack shards and of the embedding shards beside them: found by their footers, read when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from dataprep import storage
from dataprep.schema import BUCKET_COLUMN, ORIGINAL_SIDE, SQUARE, Config, Shape, UserError, check_kind, stored_shapes
from train.cache import RowGroupCache
from train.parts import RAW, Part, make_part

EMBEDDING_COLUMNS = ["key", "length", "dim", "codec", "embedding", "scale"]
REMOTE_READS = 8  # at a time: what costs there is waiting
ATTEMPTS, BACKOFF = 3, 1.0  # of a remote read; seconds before the second, doubling
SAMPLED_SHARDS = 8  # whose footers say how large row groups are: a window is only about as large as asked for


class LoaderConfig(Config):
    """How training data is read."""

    window_mb: int = Field(
        256,
        ge=1,
        description="row groups that are shuffled among themselves; a rank holds its share of two windows",
    )
    cache_mb: int = Field(
        4096, ge=0, description="local disk for row groups from object storage, shared by a machine's ranks; 0: none"
    )
    on_corrupt: Literal["stop", "skip"] = Field(
        "stop", description="data that cannot be read: stop, or take other rows of its window instead and count it"
    )
    verify: bool = Field(True, description="check page checksums when a row group is read for the first time")


class CorruptDataError(RuntimeError):
    """Stored data that cannot be read: which file, which row group, why, and what to do."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, reason = name, " ".join(str(error).split())
        super().__init__(
            f"{name}: cannot be read ({reason}); delete the file and run its stage again, or set data.on_corrupt=skip"
        )


@dataclass(frozen=True)
class Group:
    """Where a row group is: the number of its pack shard, and its own number in there; and its aspect bucket."""

    shard: int
    index: int
    bucket: str


class Stored(NamedTuple):
    """How a pixel column holds its pictures."""

    encoding: str  # raw, or a compressed format that OpenCV reads
    size: int  # the resolution
    shapes: dict[str, Shape]  # bucket -> (height, width)


@dataclass(frozen=True)
class Shard:
    """What is known of a pack shard and the embedding shard beside it once their footers are read."""

    pack: str
    embed: str | None
    starts: np.ndarray  # int64 (groups + 1,): the first row of each row group
    kept: np.ndarray  # bit a row: whether it counts (split, min_original)
    kept_rows: np.ndarray  # int64 (groups,)
    splits: tuple[str, ...]
    buckets: tuple[str, ...]  # the aspect bucket of each row group
    pixels: dict[str, Stored]  # what the pixel columns hold
    listed: bool  # whether a row has several captions
    bytes: int  # stored in the columns that are read, uncompressed

    def kept_of(self, group: int) -> np.ndarray:
        """The rows of a row group that count, int64, numbered within the group."""
        bits = np.unpackbits(self.kept, count=int(self.starts[-1]))
        return np.flatnonzero(bits[self.starts[group] : self.starts[group + 1]])


class Reader:
    """The row groups of ``pack_paths`` that have rows of ``split`` (None: of any), with ``columns`` of pixels.

    With ``min_original`` those alone whose original's shorter side has as many pixels.
    ``embed_paths`` are row-aligned with ``pack_paths``: k rows for each of theirs where an image has k captions.
    Paths are local or any fsspec URL. At first only footers and the columns that tell which rows count are read.
    Raises UserError for what is missing, of another kind, or not aligned.
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
        self.versions: dict[str, str] = {}  # of remote files, so that the cache does not mix two of one name
        with ThreadPoolExecutor(self.threads) as pool:
            pairs = [(path, embed_paths[at] if embed_paths else None) for at, path in enumerate(pack_paths)]
            self.shards = list(
                pool.map(lambda pair: open_shard(pair[0], pair[1], self.columns, split, min_original), pairs)
            )
        self.groups = [
            Group(number, int(index), shard.buckets[index])
            for number, shard in enumerate(self.shards)
            for index in np.flatnonzero(shard.kept_rows)
        ]
        if not self.groups:
            found = ", ".join(sorted({name for shard in self.shards for name in shard.splits})) or "no rows at all"
            large = f" from an original of min_original={min_original} pixels" if min_original else ""
            raise UserError(f"training data: no row of split {split!r}{large} (there are: {found}); loosen the filters")
        self.rows = np.array([self.shards[group.shard].kept_rows[group.index] for group in self.groups])
        self.buckets = sorted({group.bucket for group in self.groups})
        self.bucket_of = np.array([self.buckets.index(group.bucket) for group in self.groups])  # of each row group
        self.verified = np.zeros(len(self.groups), dtype=bool)

    def window_groups(self) -> int:
        """How many row groups make a window of the config's size."""
        every = max(1, len(self.shards) // SAMPLED_SHARDS)
        sampled = [shard for shard in self.shards[::every] if len(shard.kept_rows)] or self.shards
        size = sum(shard.bytes for shard in sampled) / max(1, sum(len(shard.kept_rows) for shard in sampled))
        return max(1, int((self.config.window_mb << 20) / max(1.0, size)))

    def first_of_buckets(self) -> list[int]:
        """The number of a row group of each bucket."""
        return [int(number) for number in np.unique(self.bucket_of, return_index=True)[1]]

    def shapes(self, number: int) -> dict[str, Shape]:
        """The shape of each pixel column's pictures in the row group of that number."""
        group = self.groups[number]
        return {name: stored.shapes[group.bucket] for name, stored in self.shards[group.shard].pixels.items()}

    def read(self, number: int) -> Part:
        """The row group of that number; CorruptDataError where it cannot be read."""
        group = self.groups[number]
        shard = self.shards[group.shard]
        name = f"{shard.pack} row group {group.index}"
        verify = self.config.verify and not self.verified[number]
        captions = "captions" if shard.listed else "caption"
        try:
            pack = self._table(shard.pack, group.index, ["key", captions, *self.columns], verify)
            embed = self._table(shard.embed, group.index, EMBEDDING_COLUMNS, verify) if shard.embed else None
            stored = {name: (shard.pixels[name].encoding, shape) for name, shape in self.shapes(number).items()}
            part = make_part(name, shard.kept_of(group.index), pack, embed, stored)
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptDataError(name, error) from error
        self.verified[number] = True
        return part

    def _table(self, path: str, group: int, columns: list[str], verify: bool) -> pa.Table:
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
    """The Parquet file at ``path``, local or any fsspec URL; of a remote one only what is asked for is fetched."""
    if storage.is_local(path):
        with pq.ParquetFile(path, page_checksum_verification=verify) as file:
            yield file
        return
    fs, inner = storage.filesystem(path)
    # Parquet knows which bytes it wants: `pre_buffer` asks for a row group's columns in few requests.
    with (
        fs.open(inner, "rb", cache_type="none") as remote,
        pq.ParquetFile(remote, pre_buffer=True, page_checksum_verification=verify) as file,
    ):
        yield file


def open_shard(
    pack: str, embed: str | None, columns: tuple[str, ...], split: str | None, min_original: int = 0
) -> Shard:
    """Reads the footers and what tells the rows that count of a pack shard and its embedding shard; raises what
    `Reader` does."""
    try:
        with open_parquet(pack) as file:
            check_kind(file.schema_arrow, pack, "pack")
            pixels = {name: stored_pixels(pack, file.schema_arrow, name) for name in columns}
            listed = "captions" in file.schema_arrow.names
            rows, size = _groups(file.metadata, {"key", "caption", "captions.list.element", *columns})
            splits = file.read(columns=["split"])["split"]
            large = _large(file, pack, min_original)
            starts = np.concatenate([[0], np.cumsum(rows)])
            buckets = _buckets(file, pack, starts)
        if embed is not None:
            with open_parquet(embed) as file:
                check_kind(file.schema_arrow, embed, "embeddings")
                embedded, more = _groups(file.metadata, set(EMBEDDING_COLUMNS))
            size += more
            times = int(embedded.sum()) // max(1, int(rows.sum()))
            if not np.array_equal(embedded, rows * times):
                raise UserError(f"{embed}: not the same rows in the same order as {pack}; run embed again")
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{pack}: it or its embeddings are no readable Parquet file ({error}); run its stage again"
        ) from error
    mask = np.ones(len(splits), bool) if split is None else pc.fill_null(pc.equal(splits, split), False).to_numpy()
    mask = mask & large
    kept_rows = np.add.reduceat(mask, starts[:-1], dtype=np.int64) if len(mask) else np.zeros(0, np.int64)
    found = tuple(str(name) for name in pc.unique(splits).to_pylist())
    return Shard(pack, embed, starts, np.packbits(mask), kept_rows, found, buckets, pixels, listed, size)


def _large(file: pq.ParquetFile, path: str, least: int) -> np.ndarray:
    """Whether the original of each row had a shorter side of ``least`` pixels."""
    if not least:
        return np.ones(file.metadata.num_rows, bool)
    if ORIGINAL_SIDE not in file.schema_arrow.names:
        raise UserError(f"{path}: no column {ORIGINAL_SIDE}, which min_original={least} asks for; run pack again")
    sides: np.ndarray = file.read(columns=[ORIGINAL_SIDE])[ORIGINAL_SIDE].to_numpy()
    return sides >= least


def _buckets(file: pq.ParquetFile, path: str, starts: np.ndarray) -> tuple[str, ...]:
    """The aspect bucket of each row group, whose first rows are ``starts``."""
    if BUCKET_COLUMN not in file.schema_arrow.names:
        return (SQUARE,) * (len(starts) - 1)
    names = np.array(file.read(columns=[BUCKET_COLUMN])[BUCKET_COLUMN].to_pylist())
    if mixed := [at for at, (a, b) in enumerate(pairwise(starts.tolist())) if (names[a:b] != names[a]).any()]:
        raise UserError(f"{path}: row group {mixed[0]} has pictures of several buckets; run pack again")
    return tuple(names[starts[:-1]].tolist())


def _groups(metadata: pq.FileMetaData, columns: set[str]) -> tuple[np.ndarray, int]:
    """The rows of each row group, int64, and the uncompressed bytes of ``columns`` in all of them."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    groups = [group for group in groups if group.num_rows]
    size = 0
    for group in groups:
        chunks = [group.column(at) for at in range(group.num_columns)]
        size += sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
    return np.array([group.num_rows for group in groups], dtype=np.int64), size


def stored_pixels(path: str, schema: pa.Schema, name: str) -> Stored:
    """How a pixel column stores its images."""
    digits = name.rpartition("_")[2]
    if not digits.isdigit():
        raise UserError(f"pixel column {name!r}: the name must end in its resolution, such as pixels_64")
    if name not in schema.names:
        have = ", ".join(found for found in schema.names if found.startswith("pixels_")) or "none"
        raise UserError(f"{path}: no column {name} (pixel columns: {have}); add its size to pack.resolutions")
    field = schema.field(name)
    encoding = (field.metadata or {}).get(b"encoding", RAW.encode()).decode()
    return Stored(encoding, int(digits), stored_shapes(field, int(digits)))
