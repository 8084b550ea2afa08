"""Columns on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataprep.filters.column_store import ColumnStore


@pytest.mark.parametrize("count", [1, 5])
def test_partitions_keep_the_order_of_rows(tmp_path: Path, count: int) -> None:
    values = np.random.default_rng(0).integers(0, 100, (300, 2), dtype=np.uint16)
    left_M = np.random.default_rng(1).random(300) < 0.7
    with ColumnStore(tmp_path) as store:
        store.append("pairs", values)
        dealt = store.partition("pairs", left_M, lambda value_B: value_B[:, 0] % count, count, 64)
        buckets = [
            [(int(p), *v.tolist()) for some, value in bucket for p, v in zip(some, value, strict=True)]
            for bucket in dealt
        ]
    expected = [(row_, *values[row_].tolist()) for row_ in np.flatnonzero(left_M)]
    assert buckets == [[row_ for row_ in expected if row_[1] % count == bucket] for bucket in range(count)]


def test_a_stored_column_is_read_back(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.int32).reshape(30, 2)
    with ColumnStore(tmp_path) as store:
        for start in range(0, 30, 7):
            store.append("pairs", values[start : start + 7])
        np.testing.assert_array_equal(store.read("pairs", 3, 99), values[3:])
        for index in ([5], [29, 0, 29, 3], [4, 5, 6, 5]):
            np.testing.assert_array_equal(store.take("pairs", np.array(index)), values[index])
        with pytest.raises(ValueError, match="where the column is int32"):
            store.append("pairs", values.astype(np.int64))
