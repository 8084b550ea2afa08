"""Batches prepared ahead of the loop, in order, by a few threads; a loader that stalls is an error."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from train.config import TrainConfig
from train.data import Batch, Stream
from train.guards import StalledLoaderError


@contextmanager
def batches(loader: Stream, config: TrainConfig, start: int, rank: int, world: int) -> Iterator[Iterator[Batch]]:
    """This rank's micro-batches from update ``start`` on, in order.

    Raises StalledLoaderError where one takes longer than ``config.stall_seconds`` (with ``workers`` 0, which prepares
    it in the loop's own thread, the watchdog ends the process instead).
    """
    order = ((step, micro) for step in range(start, config.steps) for micro in range(config.accumulation))

    def one(at: tuple[int, int]) -> Batch:
        return loader.batch(at[0], rank, world, at[1], config.accumulation)

    if config.workers == 0:
        yield map(one, order)
        return
    pool = ThreadPoolExecutor(config.workers, thread_name_prefix="batches")
    try:
        yield _ahead(pool, one, order, config.workers + 1, config.stall_seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a stalled thread would be waited for


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[tuple[int, int]], Batch],
    order: Iterable[tuple[int, int]],
    depth: int,
    seconds: float,
) -> Iterator[Batch]:
    """``map(function, order)`` with ``depth`` calls under way at a time; results in order."""
    waiting: deque[tuple[tuple[int, int], Future[Batch]]] = deque()
    for at in order:
        waiting.append((at, pool.submit(function, at)))
        if len(waiting) > depth:
            yield _result(*waiting.popleft(), seconds)
    while waiting:
        yield _result(*waiting.popleft(), seconds)


def _result(at: tuple[int, int], future: Future[Batch], seconds: float) -> Batch:
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done():  # the loader's own time-out, not ours
            raise
        raise StalledLoaderError(
            f"step {at[0]}: no batch within {seconds:g} s; look at the storage, raise workers or stall_seconds, then "
            "run again to resume from the last checkpoint"
        ) from error
