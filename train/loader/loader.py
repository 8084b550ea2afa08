"""Batches as a pure function of (seed, step): the same samples for any number of ranks and any accumulation.

Step s takes positions s*G to (s+1)*G of the endless stream of `train.loader.sampler`, for a global batch of G. Ranks
split them by row group, so that each reads few row groups per window; which samples an update gets does not change.
The loader has no state between calls, so a resume needs only the step.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dataprep.io.errors import UserError
from dataprep.io.pack_format import ImageShape
from train.loader.bucket_sampler import BucketOrder
from train.loader.config import LoaderConfig
from train.loader.host_memory import empty_host
from train.loader.mix_config import DataMix
from train.loader.mixed_sampler import MixedOrder
from train.loader.reader import CorruptDataError, Reader
from train.loader.row_group import RowGroup
from train.loader.sampler import WHOLE, SampleOrder, Share, sample_seed
from train.loader.shard_index import index_shards
from train.loader.stored_text import gather_text, unpack_text
from train.loader.window_cache import WindowCache

log = logging.getLogger(__name__)
Batch = dict[str, Any]
RowOrder = SampleOrder | BucketOrder | MixedOrder
PIXEL = np.dtype(np.uint8)
TRAIN, VALIDATION = "train", "validation"  # splits of a pack


class Stream(ABC):
    """An endless shuffled stream over ``rows`` rows, split into global batches. Subclasses turn rows into tensors.

    ``order`` maps positions to rows; by default an epoch is a uniform permutation.
    """

    def __init__(self, rows: int, seed: int, global_batch: int, order: RowOrder | None = None) -> None:
        if rows < 1:
            raise UserError("training data: 0 rows are left to train on; loosen the filters or give more data")
        if global_batch < 1:
            raise UserError(f"batch_size={global_batch}: give 1 or more")
        self.rows, self.seed, self.global_batch = rows, seed, global_batch
        self.order: RowOrder = order or SampleOrder([rows], 1, seed)
        self.share = WHOLE  # part of each window that this rank reads
        self._positions: dict[tuple[int, bool], np.ndarray] = {}

    def __len__(self) -> int:
        return self.rows

    def positions(self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1) -> np.ndarray:
        """Returns the stream positions, int64 (G / (world * accumulation),), of a rank's micro-batch at ``step``."""
        parts = world * accumulation
        if self.global_batch % parts:
            raise UserError(
                f"batch_size={self.global_batch}: not divisible by {world} ranks x accumulation {accumulation}; "
                f"take a multiple of {parts}"
            )
        size = self.global_batch // parts
        start = (rank * accumulation + micro) * size
        return self._batch_positions(step, self._splits_by_group(world))[start : start + size]

    def _splits_by_group(self, world: int) -> bool:
        """Returns whether ranks get rows of few row groups each; data of one window stays in memory anyway."""
        return world > 1 and self.order.windows > 1

    def _batch_positions(self, step: int, by_group: bool) -> np.ndarray:
        """Returns the positions of a global batch, in the order in which ranks take them."""
        positions = self._positions.get((step, by_group))
        if positions is None:
            positions = np.arange(step * self.global_batch, (step + 1) * self.global_batch, dtype=np.int64)
            if by_group:
                positions = positions[np.argsort(self.order.window_fractions(positions), kind="stable")]
            # A new dict each time: other threads may be reading it.
            self._positions = dict(list(self._positions.items())[1 - SampleOrder.CACHED :]) | {
                (step, by_group): positions
            }
        return positions

    def batch(self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1) -> Batch:
        """Returns a micro-batch: the columns of `gather`, and ``index``, the stream positions, int64 (B,).

        Captions are unpacked: ``text_BLD`` float32, zero-padded to the longest, and ``text_mask_BL`` bool.
        """
        return unpack_batch(self.stored_batch(step, rank, world, micro, accumulation))

    def stored_batch(self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1) -> Batch:
        """As `batch`, with captions as stored in place of unpacked ones: ``text``, a `StoredText`."""
        positions = self.positions(step, rank, world, micro, accumulation)
        if self._splits_by_group(world):
            # A batch is a random sample of its window, so a rank's row groups vary by some deviations.
            margin = 1 / math.sqrt(self.global_batch)
            self.share = Share(rank / world - margin, (rank + 1) / world + margin)
        return self.gather(self.order.row_ids(positions), positions) | {"index": torch.from_numpy(positions)}

    def first(self, count: int) -> Batch:
        """As `batch`, for the first ``count`` samples of the stream, at most one global batch."""
        positions = np.arange(min(count, self.global_batch), dtype=np.int64)
        batch = self.gather(self.order.row_ids(positions), positions) | {"index": torch.from_numpy(positions)}
        return unpack_batch(batch)

    @abstractmethod
    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        """Returns the columns of these rows; ``positions`` seed crops and the like. Thread-safe."""


class CaptionLoader(Stream):
    """Batches of captions alone: ``{"key": list[str], "caption": list[str], "index": int64 (B,)}``."""

    def __init__(self, captions: Sequence[str], seed: int, global_batch: int) -> None:
        self.captions = list(captions)
        super().__init__(len(self.captions), seed, global_batch)

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        return {"key": [str(row) for row in rows], "caption": [self.captions[row] for row in rows]}


class Loader(Stream):
    """Batches from pack shards and their row-aligned embedding shards.

    A batch holds ``key`` and ``caption`` (lists of str), ``index`` int64 (B,), each pixel column as uint8 (B, H, W, C)
    of one shape (with aspect buckets, a batch is of one bucket: `train.loader.bucket_sampler`), and with embeddings
    the captions, in `batch` as ``text_BLD`` float32, zero-padded to the longest, and ``text_mask_BL`` bool. Of several
    captions per image, one is chosen at random per image and epoch, by the weights of `DataMix.captions`. Vector
    columns of the index are float16 (B, D).

    ``split`` selects the rows of a split (None: all); ``min_original`` those whose original had at least this shorter
    side, in pixels. ``crop`` cuts the same random crop from every pixel column: ``crop`` pixels of the largest,
    proportionally fewer of smaller ones. Row groups are prefetched one window ahead: about two windows are in memory,
    split among the ranks. ``mix``: how sources, of the split "train", and captions are mixed.

    Raises UserError for missing columns, shards that are not aligned, an empty split, or an invalid crop; a batch
    raises CorruptDataError unless ``config.on_corrupt`` is skip.
    """

    def __init__(
        self,
        pack_paths: Sequence[str],
        embed_paths: Sequence[str] | None,
        columns: Sequence[str],
        split: str | None,
        seed: int,
        global_batch: int,
        crop: int | None = None,
        config: LoaderConfig = LoaderConfig(),  # noqa: B008 (frozen)
        min_original: int = 0,
        mix: DataMix = DataMix(),  # noqa: B008 (frozen)
    ) -> None:
        index = index_shards(pack_paths, embed_paths, columns, min_original)
        self._open(Reader(index, config, mix), split, seed, global_batch, crop, min_original)

    @classmethod
    def from_reader(
        cls,
        data: Reader,
        split: str | None,
        seed: int,
        global_batch: int,
        crop: int | None = None,
        min_original: int = 0,
    ) -> Loader:
        """Returns a loader of the shards that ``data`` reads, which loaders of other splits may share."""
        loader = cls.__new__(cls)
        loader._open(data, split, seed, global_batch, crop, min_original)
        return loader

    def _open(
        self, data: Reader, split: str | None, seed: int, global_batch: int, crop: int | None, min_original: int
    ) -> None:
        self.reader = data.select(split, min_original)
        self.columns, self.vectors, self.crop, self.with_text = data.columns, data.index.vectors, crop, data.with_text
        self.sizes = {name: stored.size for name, stored in data.pixels.items()}
        # Pixels of each column per pixel of the smallest.
        self.scales = {name: size // min(self.sizes.values()) for name, size in self.sizes.items()}
        self._check_crop()
        order = self._order(seed, global_batch, split)
        super().__init__(order.rows, seed, global_batch, order)
        self.window, self.skip = WindowCache(self.reader, order), data.config.on_corrupt == "skip"
        self.corrupt: dict[str, str] = {}  # skipped so far: row group, or key of a row -> reason

    def _order(self, seed: int, global_batch: int, split: str | None) -> RowOrder:
        rows, window, bucket_of = self.reader.rows, self.reader.groups_per_window(), self.reader.bucket_of
        held, needed = window * float(rows.mean()), 2 * global_batch * len(self.reader.buckets)
        if split == TRAIN and window < len(rows) and held < needed:
            log.warning(
                "data.window_mb=%d holds about %d selected rows, fewer than two batches of batch_size=%d (per bucket): "
                "training may wait for the storage, since prefetching the next window starts in the middle of the "
                "current one; set data.window_mb to %d or more",
                *(self.reader.config.window_mb, held, global_batch),
                math.ceil(self.reader.config.window_mb * needed / held),
            )
        mix = self.reader.mix_sources() if split == TRAIN else None
        # Crops have one shape whatever the shape of the image: no bucket batches are needed.
        if self.crop is not None or len(self.reader.buckets) == 1 or global_batch < 1:
            return SampleOrder(rows, window, seed) if mix is None else MixedOrder(rows, mix, window, seed)
        order = BucketOrder(rows, bucket_of, window, seed, global_batch, mix)
        for name, size in zip(self.reader.buckets, order.sizes.tolist(), strict=True):
            if size < global_batch:
                log.warning(
                    "bucket %s has %d rows of split %s, fewer than batch_size=%d, so its batches repeat them; leave it "
                    "out of pack.aspects to move its images to the nearest bucket",
                    *(name, size, split, global_batch),
                )
        return order

    def _check_crop(self) -> None:
        if self.crop is None:
            return
        largest, smallest = max(self.sizes.values()), min(self.sizes.values())
        name = max(self.sizes, key=lambda column: self.sizes[column])
        shapes = [self.reader.shapes(group)[name] for group in self.reader.group_of_each_bucket()]
        shortest = min(min(shape) for shape in shapes)
        if not 0 < self.crop <= shortest or largest % smallest or self.crop % (largest // smallest):
            raise UserError(
                f"crop={self.crop}: give a multiple of {largest // smallest} up to {shortest}, the shortest side in "
                "the largest pixel column"
            )

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        groups = self.order.group_of(rows)
        shapes = self._shapes(int(groups[0]))
        batch: Batch = {name: empty_host((len(rows), *shapes[name], 3), PIXEL) for name in self.columns}
        pixels = {name: batch[name].numpy() for name in self.columns}
        # Prefetch by the global batch: this rank's rows may lie anywhere in it.
        first = int(positions[0]) // self.global_batch * self.global_batch
        batch_ends = np.array([first, first + self.global_batch - 1])
        futures = self.window.prefetch(np.unique(groups), batch_ends, self.share)
        sources: list[tuple[RowGroup, int]] = []
        within = rows - self.order.first[groups]
        for at, (row, group) in enumerate(zip(within.tolist(), groups.tolist(), strict=True)):
            try:
                part = futures[group].result()
                index = int(part.kept[row])
                self._put_pixels(pixels, at, part, index, int(positions[at]))
            except CorruptDataError as error:
                part, index = self._replace_corrupt(error, pixels, at, int(positions[at]))
            sources.append((part, index))
        numbers = [self._choose_caption(part, at) for (part, _), at in zip(sources, positions.tolist(), strict=True)]
        batch["key"] = [part.keys[index] for part, index in sources]
        batch["caption"] = [part.captions[index][n] for (part, index), n in zip(sources, numbers, strict=True)]
        for name, width in self.vectors.items():
            batch[name] = empty_host((len(rows), width), np.dtype(np.float16))
            for vector, (part, index) in zip(batch[name].numpy(), sources, strict=True):
                vector[...] = part.vectors[name][index]
        if self.with_text:
            texts = [
                (part.text, index * part.captions_per_row + n)
                for (part, index), n in zip(sources, numbers, strict=True)
                if part.text is not None
            ]
            batch["text"] = gather_text(texts)
        return batch

    def _shapes(self, group: int) -> dict[str, ImageShape]:
        """Returns the shape of each pixel column in a batch with rows of a row group."""
        if self.crop is None:
            return self.reader.shapes(group)
        largest = max(self.sizes.values())
        return {name: (self.crop * size // largest,) * 2 for name, size in self.sizes.items()}

    def _put_pixels(self, pixels: dict[str, np.ndarray], at: int, part: RowGroup, index: int, position: int) -> None:
        """Writes the pixels of row ``index`` of ``part`` to row ``at`` of each array."""
        top, left = self._crop_corner(part, position) if self.crop is not None else (0, 0)
        for name, times in self.scales.items():
            try:
                part.pixels[name].read(index, pixels[name][at], top * times, left * times)
            except ValueError as error:
                raise CorruptDataError(f"{part.name}, key {part.keys[index]}, {name}", error) from error

    def _crop_corner(self, part: RowGroup, position: int) -> tuple[int, int]:
        """Returns top and left of the crop, in pixels of the smallest pixel column."""
        assert self.crop is not None
        name, smallest = min(self.sizes.items(), key=lambda item: item[1])
        side = self.crop * smallest // max(self.sizes.values())
        rng = np.random.default_rng(sample_seed(self.seed, 0, position, "crop"))
        top, left = (rng.integers(0, whole - side + 1) for whole in part.pixels[name].shape)
        return int(top), int(left)

    def _replace_corrupt(
        self, error: CorruptDataError, pixels: dict[str, np.ndarray], at: int, position: int
    ) -> tuple[RowGroup, int]:
        """Puts another row of the window, from a nearby row group, at row ``at``; raises ``error`` unless skipping."""
        rows = self.order.other_rows(position)
        own = self.order.group_of(self.order.row_ids(np.array([position])))
        # Nearby, since this rank holds only its share of the window.
        for row in rows[np.argsort(np.abs(self.order.group_of(rows) - own), kind="stable")]:
            if not self.skip:
                raise error
            if error.name not in self.corrupt:
                self.corrupt[error.name] = str(error)
                log.warning("skipped: %s", error)
            number = int(self.order.group_of(row))
            try:
                part = self.window.get(number)
                index = int(part.kept[row - self.order.first[number]])
                self._put_pixels(pixels, at, part, index, position)
                return part, index
            except CorruptDataError as next_error:
                error = next_error
        raise error

    def _choose_caption(self, part: RowGroup, position: int) -> int:
        """Returns which of its captions the row at a position gets."""
        if part.captions_per_row == 1:
            return 0
        drawn = sample_seed(self.seed, 0, position, "caption") / 2**63
        return min(int(np.searchsorted(part.caption_ends, drawn, side="right")), part.captions_per_row - 1)


def unpack_batch(batch: Batch, few_lengths: bool = False) -> Batch:
    """Returns the batch with its stored captions, if it has any, unpacked where they lie (`unpack_text`)."""
    if "text" not in batch:
        return batch
    text_BLD, text_mask_BL = unpack_text(batch["text"], few_lengths)
    rest = {name: value for name, value in batch.items() if name != "text"}
    return rest | {"text_BLD": text_BLD, "text_mask_BL": text_mask_BL}
