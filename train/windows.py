"""Which row groups are in memory: those of the window in use, and the next one's, read ahead in the background."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from train.buckets import BucketOrder
from train.order import Order, Share
from train.parts import Part
from train.reader import Reader


class Windows:
    """The parts that batches need, by the number of their row group. Batches may come from several threads."""

    def __init__(self, reader: Reader, order: Order | BucketOrder) -> None:
        self.reader, self.order = reader, order
        self.pool = ThreadPoolExecutor(reader.threads, "row-groups")
        self.lock = threading.Lock()
        self.futures: dict[int, Future[Part]] = {}

    def enter(self, groups: np.ndarray, positions: np.ndarray, share: Share) -> dict[int, Future[Part]]:
        """Sees to it that ``groups``, of a batch at ``positions``, are being read before anything else is.

        Then come the others that the order wants of its windows' ``share``. Returns the futures of ``groups``.
        """
        wanted, spare = self.order.around(positions, share)
        wanted = [*groups.tolist(), *wanted]
        with self.lock:
            for group in wanted:
                if group not in self.futures:
                    self.futures[group] = self.pool.submit(self.reader.read, group)
            for group in self.futures.keys() - set(wanted) - set(spare):
                del self.futures[group]
            return {group: self.futures[group] for group in groups.tolist()}

    def get(self, group: int) -> Part:
        """The part of a row group of the window in use."""
        with self.lock:
            future = self.futures.get(group)
            if future is None:
                future = self.futures[group] = self.pool.submit(self.reader.read, group)
        return future.result()
