"""Row groups of pack shards and their embedding shards, read on demand as an index says where they are."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.pack_format import ORIGINAL_SIDE, ImageShape
from train.loader.config import LoaderConfig
from train.loader.disk_cache import RowGroupCache
from train.loader.mix_config import DataMix
from train.loader.mixed_sampler import SourceMix
from train.loader.pack_files import EMBEDDING_COLUMNS, open_parquet
from train.loader.row_group import RowGroup, make_row_group
from train.loader.shard_index import ShardIndex, select_rows

REMOTE_READS = 8  # concurrent reads of object storage, which are bound by latency
ATTEMPTS, BACKOFF = 3, 1.0  # of a remote read; seconds before the second attempt, doubling
SAMPLED_SHARDS = 8  # shards that estimate the size of row groups


class CorruptDataError(RuntimeError):
    """Unreadable data: file, row group, reason and remedy."""

    def __init__(self, name: str, error: Exception) -> None:
        self.name, reason = name, " ".join(str(error).split())
        super().__init__(
            f"{name}: cannot be read ({reason}); delete the file and run its stage again, or set data.on_corrupt=skip"
        )


class Reader:
    """Row groups of indexed shards. One serves every split of a training: `select` gives the row groups of one.

    ``mix`` says how often each caption is chosen, and how sources are mixed in the split that is trained on. The
    constructor reads nothing.
    """

    def __init__(self, index: ShardIndex, config: LoaderConfig, mix: DataMix = DataMix()) -> None:  # noqa: B008 (frozen)
        self.index, self.config, self.mix, self.pixels = index, config, mix, index.pixels
        self.vectors = tuple(index.vectors)
        self.columns, self.with_text = tuple(index.pixels), index.text_dim is not None
        local = storage.is_local(index.pack_path(0))
        self.threads = 1 if local else REMOTE_READS
        self.cache = RowGroupCache(config.cache_mb << 20) if config.cache_mb and not local else None
        self.versions: dict[str, str] = {}  # of remote files, to tell apart two versions in the cache

    def select(self, split: str | None, min_original: int = 0) -> SplitReader:
        """Returns the row groups with rows of ``split`` (None: of any); raises UserError if there are none.

        ``min_original``: of those whose original had at least this shorter side, in pixels; 0 or that of the index.
        """
        return SplitReader(self, split, min_original)

    def groups_per_window(self) -> int:
        """Returns the number of row groups, of any split, in a window of the config's size."""
        index = self.index
        first = index.group_starts()
        shard_of, size = index.shard_of_entries()[first], index.entries("bytes")[first]
        sampled = shard_of % max(1, len(index) // SAMPLED_SHARDS) == 0
        mean = float(size[sampled].mean()) if sampled.any() else float(size.mean()) if len(size) else 0.0
        return max(1, int((self.config.window_mb << 20) / max(1.0, mean)))

    def read_columns(self, path: str, group: int, columns: list[str], verify: bool) -> pa.Table:
        """Reads columns of a row group, from the cache where it is remote."""

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


class SplitReader:
    """The row groups of a split, numbered from 0, see `Reader.select`.

    ``rows`` are the selected rows of each, int64 (groups,), ``bucket_of`` the number of its bucket in ``buckets``, and
    ``source_of`` that of its source in ``sources``.
    """

    def __init__(self, reader: Reader, split: str | None, min_original: int) -> None:
        index = reader.index
        assert min_original in (0, index.min_original), "the index does not count these rows"
        self.reader, self.split, self.min_original = reader, split, min_original
        self.config, self.threads = reader.config, reader.threads
        numbers, splits = index.encode("split")
        kept = index.entries("large" if min_original else "kept").astype(np.int64)
        if split is not None:
            kept = kept * (numbers == splits.index(split)) if split in splits else np.zeros_like(kept)
        shard_of, group_of = index.shard_of_entries(), index.entries("group")
        begins = index.group_starts()
        rows = np.add.reduceat(kept, begins) if len(kept) else kept
        at = begins[rows > 0]
        if not len(at):
            found = ", ".join(splits) or "no rows at all"
            large = f" from an original of min_original={min_original} pixels" if min_original else ""
            raise UserError(f"training data: no row of split {split!r}{large} (splits: {found}); loosen the filters")
        self.rows, self.shard, self.group = rows[rows > 0], shard_of[at], group_of[at]
        self.stored_rows = index.entries("rows")[at]  # of the row groups, selected or not
        self.buckets, self.bucket_of = self._number_values("bucket", at)
        self.sources, self.source_of = self._number_values("source", at)
        self.verified = np.zeros(len(at), dtype=bool)

    def _number_values(self, column: str, at: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Returns the values of an index column in the entries ``at``, and the number of each entry's value."""
        numbers, names = self.reader.index.encode(column)
        used, value_of = np.unique(numbers[at], return_inverse=True)
        return [names[number] for number in used], value_of

    def __len__(self) -> int:
        return len(self.rows)

    def groups_per_window(self) -> int:
        """Returns `Reader.groups_per_window`."""
        return self.reader.groups_per_window()

    def mix_sources(self) -> SourceMix | None:
        """Returns how `Reader.mix` mixes the sources of the row groups; None if it does not.

        Raises UserError for a source of which no row is left.
        """
        weights = self.reader.mix.sources
        if not weights:
            return None
        if missing := sorted(set(weights) - set(self.sources)):
            raise UserError(
                f"listing.sources.{missing[0]}.weight={weights[missing[0]]:g}: no row of split {self.split!r} is of "
                "this source; loosen the filters, or leave the source out"
            )
        return SourceMix(self.source_of, np.array([weights[name] for name in self.sources]))

    def group_of_each_bucket(self) -> list[int]:
        """Returns the number of one row group of each bucket."""
        return [int(number) for number in np.unique(self.bucket_of, return_index=True)[1]]

    def shapes(self, number: int) -> dict[str, ImageShape]:
        """Returns the image shape of each pixel column in row group ``number``."""
        bucket = self.buckets[self.bucket_of[number]]
        return {name: stored.shapes[bucket] for name, stored in self.reader.pixels.items()}

    def read(self, number: int) -> RowGroup:
        """Reads row group ``number``; raises CorruptDataError if it is unreadable."""
        reader, shard, group = self.reader, int(self.shard[number]), int(self.group[number])
        pack_path, embed_path = reader.index.pack_path(shard), reader.index.embed_path(shard)
        name = f"{pack_path} row group {group}"
        verify = reader.config.verify and not self.verified[number]
        columns = ["key", "captions", *reader.columns, *reader.vectors, *self._selecting_columns(number)]
        try:
            pack = reader.read_columns(pack_path, group, columns, verify)
            embed = reader.read_columns(embed_path, group, EMBEDDING_COLUMNS, verify) if embed_path else None
            stored = {column: (reader.pixels[column].encoding, shape) for column, shape in self.shapes(number).items()}
            weights = reader.mix.captions.get(self.sources[self.source_of[number]])
            rows = self._selected_rows(number, pack)
            part = make_row_group(name, rows, pack, embed, stored, weights, reader.vectors)
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptDataError(name, error) from error
        self.verified[number] = True
        return part

    def _selecting_columns(self, number: int) -> Sequence[str]:
        """Returns the columns that tell which rows of a row group are selected; none if all are."""
        if self.rows[number] == self.stored_rows[number]:
            return ()
        return [*(["split"] if self.split is not None else []), *([ORIGINAL_SIDE] if self.min_original else [])]

    def _selected_rows(self, number: int, pack: pa.Table) -> np.ndarray:
        """Returns the selected rows of a row group, int64, numbered within the group."""
        selected = np.arange(pack.num_rows)
        if self._selecting_columns(number):
            selected = np.flatnonzero(select_rows(pack, self.split, self.min_original))
        if (pack.num_rows, len(selected)) != (self.stored_rows[number], self.rows[number]):
            raise ValueError(
                f"{len(selected)} of {pack.num_rows} rows are selected, where the index of the training has "
                f"{self.rows[number]} of {self.stored_rows[number]}"
            )
        return selected
