"""Batches as a pure function of (seed, step): the same samples for any number of ranks, with or without accumulation.

Step s takes positions s*G to (s+1)*G of the endless stream that `train.order` describes, for a global batch of G. Ranks
deal them out by row group, so that each reads few of a window's: which samples an update sees does not change by that.
Nothing is remembered between calls, so a resume needs only the step.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataprep.schema import Shape, UserError
from train.buckets import BucketOrder
from train.order import WHOLE, Order, SampleRandom, Share, sample_seed
from train.parts import Part, decode_pixels
from train.reader import CorruptDataError, LoaderConfig, Reader
from train.windows import Windows

__all__ = ["Batch", "CaptionLoader", "Loader", "SampleRandom", "Stream", "decode_pixels", "sample_seed", "to_device"]

log = logging.getLogger(__name__)
Batch = dict[str, Any]
TRAIN = "train"  # the split that is learned from


class Stream(ABC):
    """The endless shuffled stream over ``rows`` rows, cut into global batches. Subclasses turn rows into tensors.

    ``order`` says which row stands where; without one an epoch is a uniform permutation.
    """

    def __init__(self, rows: int, seed: int, global_batch: int, order: Order | BucketOrder | None = None) -> None:
        if rows < 1:
            raise UserError("training data: 0 rows are left to train on; loosen the filters or give more data")
        if global_batch < 1:
            raise UserError(f"batch_size={global_batch}: give 1 or more")
        self.rows, self.seed, self.global_batch = rows, seed, global_batch
        self.order: Order | BucketOrder = order or Order([rows], 1, seed)
        self.share = WHOLE  # of each window that this rank reads
        self._deals: dict[tuple[int, bool], np.ndarray] = {}

    def __len__(self) -> int:
        return self.rows

    def positions(self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1) -> np.ndarray:
        """Stream positions, int64 (G / (world * accumulation),), of one micro-batch of one rank at ``step``."""
        parts = world * accumulation
        if self.global_batch % parts:
            raise UserError(
                f"batch_size={self.global_batch}: not divisible by {world} ranks x accumulation {accumulation}; "
                f"take a multiple of {parts}"
            )
        size = self.global_batch // parts
        start = (rank * accumulation + micro) * size
        return self._dealt(step, self._dealt_by_group(world))[start : start + size]

    def _dealt_by_group(self, world: int) -> bool:
        """Whether ranks get rows of few row groups each. A set of one window stays in memory anyway."""
        return world > 1 and self.order.windows > 1

    def _dealt(self, step: int, by_group: bool) -> np.ndarray:
        """The positions of a global batch, in the order in which ranks take them."""
        positions = self._deals.get((step, by_group))
        if positions is None:
            positions = np.arange(step * self.global_batch, (step + 1) * self.global_batch, dtype=np.int64)
            if by_group:
                positions = positions[np.argsort(self.order.depths(positions), kind="stable")]
            # A new dict each time: several threads may look while one adds.
            self._deals = dict(list(self._deals.items())[1 - Order.KEPT :]) | {(step, by_group): positions}
        return positions

    def batch(self, step: int, rank: int = 0, world: int = 1, micro: int = 0, accumulation: int = 1) -> Batch:
        """One micro-batch: what `gather` gives, and ``index``, the int64 stream positions (B,)."""
        positions = self.positions(step, rank, world, micro, accumulation)
        if self._dealt_by_group(world):
            # A batch is a sample of its window: the row groups that a rank gets vary, by a deviation or two.
            margin = 1 / math.sqrt(self.global_batch)
            self.share = Share(rank / world - margin, (rank + 1) / world + margin)
        return self.gather(self.order.row_ids(positions), positions) | {"index": torch.from_numpy(positions)}

    def first(self, count: int) -> Batch:
        """As `batch`, of the first ``count`` samples of the stream at most, without the rest of their batch."""
        positions = np.arange(min(count, self.global_batch), dtype=np.int64)
        return self.gather(self.order.row_ids(positions), positions) | {"index": torch.from_numpy(positions)}

    @abstractmethod
    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        """The columns of these rows; ``positions`` seed what is random in them. Several threads may call it."""


class CaptionLoader(Stream):
    """Batches of captions alone: ``{"key": list[str], "caption": list[str], "index": int64 (B,)}``."""

    def __init__(self, captions: Sequence[str], seed: int, global_batch: int) -> None:
        self.captions = list(captions)
        super().__init__(len(self.captions), seed, global_batch)

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        return {"key": [str(row) for row in rows], "caption": [self.captions[row] for row in rows]}


class Loader(Stream):
    """Batches from pack shards, and from the embedding shards that are row-aligned with them.

    A batch holds ``key`` and ``caption`` (lists of str), ``index`` int64 (B,), each pixel column as uint8 (B, H, W, C)
    of one shape (where pictures are in aspect buckets, a batch is of one bucket: `train.buckets`),
    and with embeddings ``text_BLD`` float32, zero-padded to the longest of the batch, and ``text_mask_BL`` bool.
    Where images have several captions, one is drawn for each image and epoch.

    ``split`` keeps the rows of that split (None: all), ``min_original`` those of originals with so many pixels a side.
    ``crop`` cuts the same random window from every pixel column: ``crop`` pixels of the largest, fewer in proportion of
    smaller ones. Row groups are read in the background, a window ahead; about two windows are in memory, of several
    ranks on each a part of them.
    Raises UserError for missing columns, shards that are not aligned, an empty split, or an impossible crop; a batch
    raises CorruptDataError where ``config`` says so.
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
    ) -> None:
        self.reader = Reader(pack_paths, embed_paths, columns, split, config, min_original)
        self.columns, self.crop, self.with_text = tuple(columns), crop, embed_paths is not None
        self.sizes = {name: stored.size for name, stored in self.reader.shards[0].pixels.items()}
        self._check_crop()
        order = self._order(seed, global_batch, split)
        super().__init__(order.rows, seed, global_batch, order)
        self.parts, self.skip = Windows(self.reader, order), config.on_corrupt == "skip"
        self.corrupt: dict[str, str] = {}  # what was passed over so far: row group, or key of a row -> why

    def _order(self, seed: int, global_batch: int, split: str | None) -> Order | BucketOrder:
        rows, window, bucket_of = self.reader.rows, self.reader.window_groups(), self.reader.bucket_of
        held, needed = window * float(rows.mean()), 2 * global_batch * len(self.reader.buckets)
        if split == TRAIN and window < len(rows) and held < needed:
            log.warning(
                "data.window_mb=%d holds some %d rows that count, fewer than two batches of batch_size=%d (of each "
                "bucket): training may wait for the storage, since the next window is read from the middle of this one "
                "on; set data.window_mb to %d or more",
                *(self.reader.config.window_mb, held, global_batch),
                math.ceil(self.reader.config.window_mb * needed / held),
            )
        # Crops are of one shape, whatever the pictures': they need no batches of their own.
        if self.crop is not None or len(self.reader.buckets) == 1 or global_batch < 1:
            return Order(rows, window, seed)
        order = BucketOrder(rows, bucket_of, window, seed, global_batch)
        for name, size in zip(self.reader.buckets, order.sizes.tolist(), strict=True):
            if size < global_batch:
                log.warning(
                    "bucket %s has %d rows of split %s, fewer than batch_size=%d, so its batches show them more than "
                    "once; leave it out of pack.aspects, and its pictures go to the next one",
                    *(name, size, split, global_batch),
                )
        return order

    def _check_crop(self) -> None:
        if self.crop is None:
            return
        largest, smallest = max(self.sizes.values()), min(self.sizes.values())
        name = max(self.sizes, key=lambda column: self.sizes[column])
        shapes = [self.reader.shapes(group)[name] for group in self.reader.first_of_buckets()]
        shortest = min(min(shape) for shape in shapes)
        if not 0 < self.crop <= shortest or largest % smallest or self.crop % (largest // smallest):
            raise UserError(
                f"crop={self.crop}: give a multiple of {largest // smallest} up to {shortest}, the shortest side in "
                "the largest pixel column"
            )

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        groups = self.order.group_of(rows)
        shapes = self._shapes(int(groups[0]))
        batch: Batch = {name: np.empty((len(rows), *shapes[name], 3), dtype=np.uint8) for name in self.columns}
        # What is read ahead follows the global batch: a rank's own part of it may lie anywhere in there.
        first = int(positions[0]) // self.global_batch * self.global_batch
        batch_ends = np.array([first, first + self.global_batch - 1])
        futures = self.parts.enter(np.unique(groups), batch_ends, self.share)
        found: list[tuple[Part, int]] = []
        for at, (row, group) in enumerate(zip(rows.tolist(), groups.tolist(), strict=True)):
            try:
                part = futures[group].result()
                index = int(part.kept[row - self.order.first[group]])
                self._put_pixels(batch, at, part, index, int(positions[at]))
            except CorruptDataError as error:
                part, index = self._another(error, batch, at, int(positions[at]))
            found.append((part, index))
        for name in self.columns:
            batch[name] = torch.from_numpy(batch[name])
        drawn = [self._draw(part, int(position)) for (part, _), position in zip(found, positions, strict=True)]
        batch["key"] = [part.keys[index] for part, index in found]
        batch["caption"] = [part.captions[index][n] for (part, index), n in zip(found, drawn, strict=True)]
        if self.with_text:
            texts = [(part, index * part.times + n) for (part, index), n in zip(found, drawn, strict=True)]
            batch["text_BLD"], batch["text_mask_BL"] = padded_text(texts)
        return batch

    def _shapes(self, group: int) -> dict[str, Shape]:
        """The shape of each pixel column in a batch that has rows of a row group."""
        if self.crop is None:
            return self.reader.shapes(group)
        largest = max(self.sizes.values())
        return {name: (self.crop * size // largest,) * 2 for name, size in self.sizes.items()}

    def _put_pixels(self, batch: Batch, at: int, part: Part, index: int, position: int) -> None:
        """Row ``index`` of ``part`` into place ``at`` of every pixel column."""
        top, left = self._corner(part, position)
        smallest = min(self.sizes.values(), default=1)
        for name in self.columns:
            target, times = batch[name][at], self.sizes[name] // smallest
            try:
                image = part.pixels[name].image(index)
            except ValueError as error:
                raise CorruptDataError(f"{part.name}, key {part.keys[index]}, {name}", error) from error
            if self.crop is not None:
                y, x = top * times, left * times
                image = image[y : y + target.shape[0], x : x + target.shape[1]]
            target[...] = image

    def _corner(self, part: Part, position: int) -> tuple[int, int]:
        """Top and left of the crop, in pixels of the smallest pixel column."""
        if self.crop is None:
            return 0, 0
        name, smallest = min(self.sizes.items(), key=lambda item: item[1])
        side = self.crop * smallest // max(self.sizes.values())
        rng = np.random.default_rng(sample_seed(self.seed, 0, position, "crop"))
        top, left = (rng.integers(0, whole - side + 1) for whole in part.pixels[name].shape)
        return int(top), int(left)

    def _another(self, error: CorruptDataError, batch: Batch, at: int, position: int) -> tuple[Part, int]:
        """Another row of the window, from a row group nearby, in place ``at``; ``error`` where the config says so."""
        rows = self.order.others(position)
        own = self.order.group_of(self.order.row_ids(np.array([position])))
        # Nearby, since this rank holds those: it has but its share of the window.
        for row in rows[np.argsort(np.abs(self.order.group_of(rows) - own), kind="stable")]:
            if not self.skip:
                raise error
            if error.name not in self.corrupt:
                self.corrupt[error.name] = str(error)
                log.warning("passed over: %s", error)
            number = int(self.order.group_of(row))
            try:
                part = self.parts.get(number)
                index = int(part.kept[row - self.order.first[number]])
                self._put_pixels(batch, at, part, index, position)
                return part, index
            except CorruptDataError as next_error:
                error = next_error
        raise error

    def _draw(self, part: Part, position: int) -> int:
        """Which of its captions the row at a position has there."""
        return sample_seed(self.seed, 0, position, "caption") % part.times if part.times > 1 else 0


def padded_text(rows: Sequence[tuple[Part, int]]) -> tuple[Tensor, Tensor]:
    """``text_BLD`` float32, zero-padded to the longest (at least 1 token), and ``text_mask_BL`` bool.

    ``rows`` are parts that have a text, and the numbers of rows in it.
    """
    texts = [(part.text, row) for part, row in rows if part.text is not None]
    lengths = [int(text.starts[row + 1] - text.starts[row]) for text, row in texts]
    longest = max(1, *lengths)
    text_BLD = np.empty((len(rows), longest, texts[0][0].values_TD.shape[1]), dtype=np.float32)
    for text_LD, (text, row), length in zip(text_BLD, texts, lengths, strict=True):
        text.copy(row, text_LD[:length])
        text_LD[length:] = 0
    mask_BL = np.arange(longest) < np.array(lengths)[:, None]
    return torch.from_numpy(text_BLD), torch.from_numpy(mask_BL)


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
