"""Cost of the index of a training's shards at 230,000 shards, the size of configs/imagen.yaml.

    python -m benchmarks.shard_index [SHARDS]

A list of 2.3e9 URLs makes 230,000 shards of 10,000 rows; the share of them that is kept decides how many row groups of
128 rows there are. The index is made up here, not read from footers: measured is what is written, and what a rank does
with it, each in a process of its own: read the file, and select the row groups of the training and of the validation
split. Requests are counted by tests (tests/train/loader/test_shard_index.py).
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.result import make_claim, write_result
from train.loader.config import LoaderConfig
from train.loader.pack_files import StoredPixels
from train.loader.reader import Reader
from train.loader.shard_index import SCHEMA, ShardIndex

SHARDS, GROUP_ROWS, SHARD_ROWS = 230_000, 128, 10_000
KEPT = {"a fifth kept": 0.2, "all kept": 1.0}  # share of a shard's rows that the filters keep
ROOT = "s3://bucket/runs/imagen/stages/{}/1f0c22ab9d3e4f5a6b7c8d9e0f1a2b3c/{:05d}.parquet"


def make_index(shards: int, share: float) -> ShardIndex:
    """Returns an index with a held-out row group per shard, and others with a random part of large originals."""
    per = round(SHARD_ROWS * share / GROUP_ROWS) + 1
    offsets = pa.array(np.arange(shards + 1, dtype=np.int32) * per)
    rng, count = np.random.default_rng(0), shards * per
    rows = np.full((shards, per), GROUP_ROWS, np.int32)
    rows[:, -2] = rng.integers(1, GROUP_ROWS, shards)  # the last of the training split is not full
    rows[:, -1] = rng.integers(1, 20, shards)
    large = rng.binomial(rows, 0.4).astype(np.int32)
    split = pa.DictionaryArray.from_arrays(
        pa.array(np.tile([0] * (per - 1) + [1], shards).astype(np.int8)), ["train", "validation"]
    ).cast(pa.string())
    flat = {
        "group": np.tile(np.arange(per, dtype=np.int32), shards),
        "rows": rows.ravel(),
        "bucket": pa.array([""]).take(pa.array(np.zeros(count, np.int8))),
        "bytes": rows.ravel() * rng.integers(190_000, 210_000, count),
        "split": split,
        "kept": rows.ravel(),
        "large": large.ravel(),
    }
    columns = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in flat.items()}
    paths = {name: [ROOT.format(name, shard) for shard in range(shards)] for name in ("pack", "embed")}
    table = pa.table({**paths, **columns}, schema=SCHEMA)
    pixels = {f"pixels_{size}": StoredPixels("jpeg", size, {"": (size, size)}) for size in (1024, 256)}
    return ShardIndex(table, pixels, 4096, 1024)


def measure(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Calls ``function`` in a process of its own; returns its figures."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def read_usage() -> tuple[float, float]:
    """Returns CPU-seconds of this process so far, and its largest memory in MiB."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def write_side(path: str, shards: int, share: float) -> dict[str, Any]:
    """Writes the index; returns its size and the cost."""
    index = make_index(shards, share)
    cpu, wall = read_usage()[0], time.monotonic()
    index.write(path)
    size = Path(path).stat().st_size
    groups = len(index.entries("group"))
    return {
        "row_groups": groups,
        "megabytes": round(size / 1e6, 2),
        "bytes_per_row_group": round(size / groups, 2),
        "write_cpu_s": round(read_usage()[0] - cpu, 2),
        "write_s": round(time.monotonic() - wall, 2),
    }


def read_side(path: str) -> dict[str, Any]:
    """Does what a rank does at its start; returns the cost."""
    cpu, memory = read_usage()
    began = time.monotonic()
    reader = Reader(ShardIndex.read(path), LoaderConfig(cache_mb=0))
    read = time.monotonic() - began
    splits = [reader.select("train", 1024), reader.select("validation")]
    window = splits[0].groups_per_window()
    assert window > 0
    after, largest = read_usage()
    return {
        "read_s": round(read, 2),
        "start_s": round(time.monotonic() - began, 2),
        "start_cpu_s": round(after - cpu, 2),
        "memory_mib": round(largest - memory),
    }


def main() -> None:
    """Measures and writes the result."""
    shards = int(sys.argv[1]) if len(sys.argv) > 1 else SHARDS
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, share in KEPT.items():
            path = f"{folder}/index"
            row: dict[str, Any] = {"case": name, "shards": shards} | measure(write_side, path, shards, share)
            rows.append(row | measure(read_side, path))
            print(rows[-1])
    if shards == SHARDS:
        least = rows[0]
        claims = [
            make_claim("size of the index, a fifth of the rows kept", least["megabytes"], "MB", 100, True),
            make_claim("a rank's start from it, CPU", least["start_cpu_s"], "s", 10, True),
        ]
        write_result("shard_index", rows, claims, ("pyarrow", "numpy"))


if __name__ == "__main__":
    main()
