"""Work ahead of a consumer, in threads, in order, and batches of it. Light: loads nothing heavy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
DEPTH = 64  # items ahead


def read_ahead(items: Iterable[Item], depth: int = DEPTH) -> Iterator[Item]:
    """Yields ``items``, which a thread produces up to ``depth`` ahead of the consumer."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Any]] = deque(pool.submit(next, iterator, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, iterator, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, depth: int = DEPTH
) -> Iterator[Result]:
    """Yields ``map(function, items)`` in order, ``threads`` calls at a time, up to ``depth`` ahead of the consumer."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def group_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields ``items`` in lists of ``size``, the last one of what is left."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
