"""Work ahead in threads: order, bounds, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from dataprep.io.ahead import group_batches, map_ahead, read_ahead


def test_read_ahead_keeps_order_bounds_and_errors() -> None:
    given: list[str] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            given.append(threading.current_thread().name)
            yield number

    found = read_ahead(numbers(), depth=4)
    assert next(found) == 0
    assert len(given) <= 6
    assert list(found) == list(range(1, 100))
    assert threading.current_thread().name not in given
    taken = read_ahead(1 / number for number in (1, 0))
    assert next(taken) == 1
    with pytest.raises(ZeroDivisionError):
        next(taken)
    assert list(read_ahead([])) == []


def test_map_ahead_keeps_order_and_bounds_in_several_threads() -> None:
    given: list[int] = []
    names: set[str] = set()
    both = threading.Barrier(2)

    def numbers() -> Iterator[int]:
        for number in range(40):
            given.append(number)
            yield number

    def square(number: int) -> int:
        names.add(threading.current_thread().name)
        if number < 2:
            both.wait(30)  # only two threads at a time get past it
            time.sleep(0.01 * (1 - number))
        return number * number

    found = map_ahead(square, numbers(), threads=2, depth=4)
    assert next(found) == 0 and len(given) <= 6
    assert list(found) == [number * number for number in range(1, 40)]
    assert len(names) == 2 and threading.current_thread().name not in names
    taken = map_ahead(lambda number: 1 / number, [1, 0], threads=2)
    assert next(taken) == 1
    with pytest.raises(ZeroDivisionError):
        next(taken)
    assert list(map_ahead(square, [], threads=2)) == []


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_batches_have_everything_in_order(count: int, sizes: list[int]) -> None:
    batches = list(group_batches(range(count), 4))
    assert [len(batch) for batch in batches] == sizes
    assert [item for batch in batches for item in batch] == list(range(count))
