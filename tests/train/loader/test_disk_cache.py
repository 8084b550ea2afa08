"""The disk cache of row groups: bounded, self-repairing, one download per row group."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow as pa

from train.loader.disk_cache import RowGroupCache


def test_the_cache_is_bounded_and_survives_damage(tmp_path: Path) -> None:
    table = pa.table({"x": np.zeros(1000)})
    cache, made = RowGroupCache(30_000, tmp_path), []

    def make() -> pa.Table:
        made.append(1)
        return table

    for number in range(10):
        assert cache.get(str(number), make).equals(table)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 30_000
    assert len(made) == 10
    cache.get("9", make)
    assert len(made) == 10
    cache.get("0", make)
    assert len(made) == 11
    for path in tmp_path.glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:100])
    assert cache.get("9", make).equals(table)
    assert len(made) == 12


def test_only_one_process_downloads_a_row_group(tmp_path: Path) -> None:
    table, made, ready = pa.table({"x": np.zeros(10)}), [], Barrier(6)

    def make() -> pa.Table:
        made.append(1)
        time.sleep(0.2)
        return table

    def ask(_: int) -> pa.Table:
        ready.wait()
        return RowGroupCache(30_000, tmp_path).get(
            "one", make
        )  # each with a cache object of its own, as processes have

    with ThreadPoolExecutor(6) as pool:
        assert all(found.equals(table) for found in pool.map(ask, range(6)))
    assert len(made) == 1
