"""Order of rows where each batch is of one aspect bucket, with the same properties as `train.loader.sampler`.

Every bucket has its own endless stream, shuffled as in `SampleOrder`, which yields one global batch at a time. A round
of the schedule is one epoch: a bucket of n rows has yielded floor(r n / G) batches of G after r rounds. So its r-th
epoch ends in the r-th round, except for fewer than G rows that start the next round; no row is left out, and none
comes twice in an epoch of its bucket. The batches of a round are shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.loader.mixed_sampler import MixedOrder, SourceMix
from train.loader.sampler import WHOLE, SampleOrder, Share, sample_seed


class BucketPosition(NamedTuple):
    """Bucket of a step's batch, and the number of batches that each bucket has yielded before it."""

    bucket: int
    taken: np.ndarray  # int64 (buckets,)


class BucketOrder:
    """As `SampleOrder`, for row groups with buckets ``bucket_of`` and global batches of ``global_batch``.

    The positions of a call belong to one global batch. The groups of a window are split among buckets by rows. With
    ``mix`` the stream of each bucket is a `MixedOrder`, and a bucket has as much of an epoch as its rows weigh.
    """

    CACHED = 4

    def __init__(
        self,
        group_rows: Sequence[int] | np.ndarray,
        bucket_of: Sequence[int] | np.ndarray,
        window_groups: int,
        seed: int,
        global_batch: int,
        mix: SourceMix | None = None,
    ) -> None:
        self.group_rows, self.bucket_of = np.asarray(group_rows, np.int64), np.asarray(bucket_of)
        self.first = np.concatenate([[0], np.cumsum(self.group_rows)])
        self.seed, self.global_batch = seed, global_batch
        self.members = [np.flatnonzero(self.bucket_of == bucket) for bucket in np.unique(self.bucket_of)]
        self.orders: list[SampleOrder | MixedOrder] = []
        for number, groups in enumerate(self.members):
            rows, own_seed = self.group_rows[groups], sample_seed(seed, number, 0, "bucket")
            window = max(1, round(window_groups * int(rows.sum()) / max(1, int(self.first[-1]))))
            if mix is None:
                self.orders.append(SampleOrder(rows, window, own_seed))
            else:
                part, size = mix.select(groups, self.group_rows)
                self.orders.append(MixedOrder(rows, part, window, own_seed, size))
        self.windows = max(order.windows for order in self.orders)
        self.sizes = np.array([order.rows for order in self.orders], np.int64)
        self.rows = int(self.sizes.sum())
        self._rounds: dict[int, np.ndarray] = {}

    def taken(self, rounds: int) -> np.ndarray:
        """Returns the number of batches that each bucket has yielded after ``rounds`` rounds, int64 (buckets,)."""
        return rounds * self.sizes // self.global_batch

    def position_of_step(self, step: int) -> BucketPosition:
        """Returns the bucket of a step."""
        low, high = 0, (step + len(self.sizes)) * self.global_batch // self.rows + 1  # rounds begun before the step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.taken(middle).sum() <= step else (low, middle)
        before, turns = self.taken(low), self._shuffle_turns(low)
        at = step - int(before.sum())
        return BucketPosition(int(turns[at]), before + np.bincount(turns[:at], minlength=len(self.sizes)))

    def _shuffle_turns(self, number: int) -> np.ndarray:
        """Returns the bucket of each batch of a round."""
        turns = self._rounds.get(number)
        if turns is None:
            counts = self.taken(number + 1) - self.taken(number)
            rng = np.random.default_rng(sample_seed(self.seed, number, 0, "turns"))
            turns = rng.permutation(np.repeat(np.arange(len(counts)), counts))
            # A new dict each time: other threads may be reading it.
            self._rounds = dict(list(self._rounds.items())[1 - self.CACHED :]) | {number: turns}
        return turns

    def row_ids(self, positions: np.ndarray) -> np.ndarray:
        """Returns the row at each stream position, int64 (n,)."""
        bucket, inner = self._to_bucket_positions(positions)
        return self._to_global_rows(bucket, self.orders[bucket].row_ids(inner))

    def window_fractions(self, positions: np.ndarray) -> np.ndarray:
        """As `SampleOrder.window_fractions`, within the bucket."""
        bucket, inner = self._to_bucket_positions(positions)
        return self.orders[bucket].window_fractions(inner)

    def group_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the row group of each row."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def other_rows(self, position: int) -> np.ndarray:
        """Returns the rows of the position's window in its bucket after it, then those before it."""
        bucket, inner = self._to_bucket_positions(np.array([position]))
        return self._to_global_rows(bucket, self.orders[bucket].other_rows(int(inner[0])))

    def windows_around(self, positions: np.ndarray, share: Share = WHOLE) -> tuple[list[int], list[int]]:
        """As `SampleOrder.windows_around`, for every bucket, since the next batch may be of any."""
        place = self.position_of_step(int(positions[0]) // self.global_batch)
        bucket, inner = self._to_bucket_positions(positions)
        to_load: list[int] = []
        to_keep: list[int] = []
        for number, (order, groups) in enumerate(zip(self.orders, self.members, strict=True)):
            at = inner if number == bucket else place.taken[number : number + 1] * self.global_batch
            for found, target in zip(order.windows_around(at, share), (to_load, to_keep), strict=True):
                target += groups[found].tolist() if found else []
        return to_load, to_keep

    def _to_bucket_positions(self, positions: np.ndarray) -> tuple[int, np.ndarray]:
        """Returns the bucket of a batch, and the positions in that bucket's stream."""
        step = int(positions[0]) // self.global_batch
        place = self.position_of_step(step)
        return place.bucket, positions - (step - int(place.taken[place.bucket])) * self.global_batch

    def _to_global_rows(self, bucket: int, rows: np.ndarray) -> np.ndarray:
        """Converts rows of a bucket's order to global rows."""
        order, groups = self.orders[bucket], self.members[bucket]
        inner = order.group_of(rows)
        return self.first[groups[inner]] + rows - order.first[inner]
