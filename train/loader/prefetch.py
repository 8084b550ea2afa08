"""Prefetches batches in background threads, in order; a stalled loader is an error."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from train.config import TrainConfig
from train.errors import StalledLoaderError
from train.loader.config import MOST_THREADS
from train.loader.feed import DeviceFeed, FedBatch
from train.loader.loader import Batch, Stream
from train.loader.sampler import SampleRandom

Result = TypeVar("Result")
SENT_AHEAD = 1  # batches on the device before the one that computes waits for one more


@contextmanager
def prefetch_batches(
    loader: Stream, config: TrainConfig, start: int, rank: int, world: int, feed: DeviceFeed
) -> Iterator[Iterator[tuple[Batch, SampleRandom]]]:
    """Yields an iterator over this rank's micro-batches from update ``start`` on, in order, on the device of ``feed``.

    With each come its random numbers. Raises StalledLoaderError if one takes longer than ``config.stall_seconds``. With
    ``workers`` 0, which loads in the training thread, the watchdog ends the process instead.
    """

    def order() -> Iterator[tuple[int, int]]:
        return ((step, micro) for step in range(start, config.steps) for micro in range(config.accumulation))

    def load(at: tuple[int, int]) -> Batch:
        return loader.stored_batch(at[0], rank, world, at[1], config.accumulation)

    threads = count_threads(config.workers, feed.device)
    if threads == 0:
        yield (feed.receive(feed.send(load(at), at[0])) for at in order())
        return
    loading = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    sending = ThreadPoolExecutor(1, thread_name_prefix="feed")
    loaded = _map_ahead(loading, load, order(), threads + 1, config.stall_seconds)

    def send(at: tuple[int, int]) -> FedBatch:
        return feed.send(next(loaded), at[0])  # one thread: in order

    try:
        yield map(feed.receive, _map_ahead(sending, send, order(), SENT_AHEAD, None))
    finally:
        for pool in (sending, loading):
            pool.shutdown(wait=False, cancel_futures=True)  # do not wait for a stalled thread


def count_threads(workers: int | None, device: torch.device) -> int:
    """Returns the threads that prefetch: ``workers``; None: 1, and for a GPU the CPUs of this rank but one, up to 16.

    A rank's CPUs are torch's threads, which Ray limits to them. A CPU that trains leaves none to more threads.
    """
    if workers is not None:
        return workers
    return 1 if device.type == "cpu" else max(1, min(MOST_THREADS, torch.get_num_threads() - 1))


def _map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[tuple[int, int]], Result],
    order: Iterable[tuple[int, int]],
    depth: int,
    seconds: float | None,
) -> Iterator[Result]:
    """Yields ``map(function, order)`` in order, with ``depth`` calls in flight."""
    waiting: deque[tuple[tuple[int, int], Future[Result]]] = deque()
    for at in order:
        waiting.append((at, pool.submit(function, at)))
        if len(waiting) > depth:
            yield _wait_for_batch(*waiting.popleft(), seconds)
    while waiting:
        yield _wait_for_batch(*waiting.popleft(), seconds)


def _wait_for_batch(at: tuple[int, int], future: Future[Result], seconds: float | None) -> Result:
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done():  # the loader's own timeout, not ours
            raise
        raise StalledLoaderError(
            f"step {at[0]}: no batch within {seconds:g} s; check the storage, raise workers or stall_seconds, then "
            "run again to resume from the last checkpoint"
        ) from error
