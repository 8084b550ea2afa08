"""The order of rows where each batch is of one aspect bucket, with the same properties as `train.order`.

Every bucket has an endless stream of its own, shuffled as `Order` does, of which it takes a global batch at a time. A
round of the schedule is one epoch: of a bucket of n rows, after r rounds floor(r n / G) batches of G have been taken.
So its r-th epoch is used up in the r-th round, but for fewer than G rows that begin the next round; no row is left
out, none comes twice in an epoch of its bucket. The batches of a round are shuffled among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.order import WHOLE, Order, Share, sample_seed


class Place(NamedTuple):
    """Whose batch a step takes, and how many batches each bucket has had before it."""

    bucket: int
    taken: np.ndarray  # int64 (buckets,)


class BucketOrder:
    """As `Order`, for row groups of which ``bucket_of`` says the bucket, in global batches of ``global_batch``.

    Positions of a call belong to one global batch. A window's groups are shared out among the buckets by their rows.
    """

    KEPT = 4

    def __init__(
        self,
        group_rows: Sequence[int] | np.ndarray,
        bucket_of: Sequence[int] | np.ndarray,
        window_groups: int,
        seed: int,
        global_batch: int,
    ) -> None:
        self.group_rows, self.bucket_of = np.asarray(group_rows, np.int64), np.asarray(bucket_of)
        self.first = np.concatenate([[0], np.cumsum(self.group_rows)])
        self.rows, self.seed, self.global_batch = int(self.first[-1]), seed, global_batch
        self.members = [np.flatnonzero(self.bucket_of == bucket) for bucket in np.unique(self.bucket_of)]
        self.orders = []
        for number, groups in enumerate(self.members):
            rows = self.group_rows[groups]
            share = round(window_groups * int(rows.sum()) / max(1, self.rows))
            self.orders.append(Order(rows, max(1, share), sample_seed(seed, number, 0, "bucket")))
        self.windows = max(order.windows for order in self.orders)
        self.sizes = np.array([order.rows for order in self.orders], np.int64)
        self._rounds: dict[int, np.ndarray] = {}

    def taken(self, rounds: int) -> np.ndarray:
        """How many batches each bucket has had after so many rounds, int64 (buckets,)."""
        return rounds * self.sizes // self.global_batch

    def place(self, step: int) -> Place:
        """Whose turn it is at a step."""
        low, high = 0, (step + len(self.sizes)) * self.global_batch // self.rows + 1  # rounds begun before the step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.taken(middle).sum() <= step else (low, middle)
        before, turns = self.taken(low), self._turns(low)
        at = step - int(before.sum())
        return Place(int(turns[at]), before + np.bincount(turns[:at], minlength=len(self.sizes)))

    def _turns(self, number: int) -> np.ndarray:
        """The bucket of each batch of a round."""
        turns = self._rounds.get(number)
        if turns is None:
            counts = self.taken(number + 1) - self.taken(number)
            rng = np.random.default_rng(sample_seed(self.seed, number, 0, "turns"))
            turns = rng.permutation(np.repeat(np.arange(len(counts)), counts))
            # A new dict each time: several threads may look while one adds.
            self._rounds = dict(list(self._rounds.items())[1 - self.KEPT :]) | {number: turns}
        return turns

    def row_ids(self, positions: np.ndarray) -> np.ndarray:
        """The row at each stream position: int64, of the same shape (n,)."""
        bucket, inner = self._inner(positions)
        return self._outer(bucket, self.orders[bucket].row_ids(inner))

    def depths(self, positions: np.ndarray) -> np.ndarray:
        """As `Order.depths`, in the bucket."""
        bucket, inner = self._inner(positions)
        return self.orders[bucket].depths(inner)

    def group_of(self, rows: np.ndarray) -> np.ndarray:
        """The row group of each row."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def others(self, position: int) -> np.ndarray:
        """The rows of the position's window in its bucket that come after it, then those before it."""
        bucket, inner = self._inner(np.array([position]))
        return self._outer(bucket, self.orders[bucket].others(int(inner[0])))

    def around(self, positions: np.ndarray, share: Share = WHOLE) -> tuple[list[int], list[int]]:
        """As `Order.around`, in every bucket: which of them the next batch is of is soon another one."""
        place = self.place(int(positions[0]) // self.global_batch)
        bucket, inner = self._inner(positions)
        wanted: list[int] = []
        spare: list[int] = []
        for number, (order, groups) in enumerate(zip(self.orders, self.members, strict=True)):
            at = inner if number == bucket else place.taken[number : number + 1] * self.global_batch
            for found, target in zip(order.around(at, share), (wanted, spare), strict=True):
                target += groups[found].tolist() if found else []
        return wanted, spare

    def _inner(self, positions: np.ndarray) -> tuple[int, np.ndarray]:
        """The bucket of a batch, and the positions in that bucket's stream."""
        step = int(positions[0]) // self.global_batch
        place = self.place(step)
        return place.bucket, positions - (step - int(place.taken[place.bucket])) * self.global_batch

    def _outer(self, bucket: int, rows: np.ndarray) -> np.ndarray:
        """Rows of a bucket's own order as rows of all."""
        order, groups = self.orders[bucket], self.members[bucket]
        inner = order.group_of(rows)
        return self.first[groups[inner]] + rows - order.first[inner]
