"""Row groups in memory: those of the current window, and of the next one, prefetched in the background."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from train.loader.bucket_sampler import BucketOrder
from train.loader.mixed_sampler import MixedOrder
from train.loader.reader import SplitReader
from train.loader.row_group import RowGroup
from train.loader.sampler import SampleOrder, Share


class WindowCache:
    """Futures of row groups by their number. Thread-safe."""

    def __init__(self, reader: SplitReader, order: SampleOrder | BucketOrder | MixedOrder) -> None:
        self.reader, self.order = reader, order
        self.pool = ThreadPoolExecutor(reader.threads, "row-groups")
        self.lock = threading.Lock()
        self.futures: dict[int, Future[RowGroup]] = {}

    def prefetch(self, groups: np.ndarray, positions: np.ndarray, share: Share) -> dict[int, Future[RowGroup]]:
        """Starts reading ``groups`` of a batch at ``positions`` first, then the rest of ``share`` of its windows.

        Evicts row groups of other windows. Returns the futures of ``groups``.
        """
        to_load, to_keep = self.order.windows_around(positions, share)
        to_load = [*groups.tolist(), *to_load]
        with self.lock:
            for group in to_load:
                if group not in self.futures:
                    self.futures[group] = self.pool.submit(self.reader.read, group)
            for group in self.futures.keys() - set(to_load) - set(to_keep):
                del self.futures[group]
            return {group: self.futures[group] for group in groups.tolist()}

    def get(self, group: int) -> RowGroup:
        """Returns a row group of the current window, reading it if necessary."""
        with self.lock:
            future = self.futures.get(group)
            if future is None:
                future = self.futures[group] = self.pool.submit(self.reader.read, group)
        return future.result()
