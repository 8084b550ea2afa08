"""Columns on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataprep.filters.column_store import ColumnStore


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
