"""Columns of numbers on disk, appended in order and read by range or by position: what a rule over all rows needs.

A global rule compares every row with every other; held in memory its columns would grow with the rows. Plain reads,
not a memory map: mapped pages count as memory in use.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


class Spill:
    """Named columns in files of ``folder``; rows of one column have one dtype and shape, fixed by the first append."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._columns: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}  # dtype, shape of a row, file descriptor

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        for _dtype, _shape, file in self._columns.values():
            os.close(file)

    def append(self, name: str, values: np.ndarray) -> None:
        """Adds rows to a column; the first append makes it."""
        if name not in self._columns:
            file = os.open(self.folder / f"{len(self._columns)}.bin", os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self._columns[name] = (values.dtype, values.shape[1:], file)
        dtype, shape, file = self._columns[name]
        if (values.dtype, values.shape[1:]) != (dtype, shape):
            raise ValueError(f"{name}: {values.dtype} {values.shape[1:]} where the column is {dtype} {shape}")
        data = memoryview(values.tobytes())
        while data:
            data = data[os.write(file, data) :]

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of a column, as far as there are."""
        dtype, shape, file = self._columns[name]
        size = self._row_bytes(name)
        data = os.pread(file, (stop - start) * size, start * size)
        return np.frombuffer(data, dtype).reshape(-1, *shape)

    def take(self, name: str, index_N: np.ndarray) -> np.ndarray:
        """The rows at ``index_N``, in that order; each is read once."""
        dtype, shape, file = self._columns[name]
        distinct_U, place_N = np.unique(index_N, return_inverse=True)
        size = self._row_bytes(name)
        if len(distinct_U) and distinct_U[-1] - distinct_U[0] < 2 * len(distinct_U):  # dense: one read is cheaper
            first = int(distinct_U[0])
            return self.read(name, first, int(distinct_U[-1]) + 1)[index_N - first]
        data = b"".join(os.pread(file, size, position * size) for position in distinct_U.tolist())
        return np.frombuffer(data, dtype).reshape(-1, *shape)[place_N]

    def blocks(self, name: str, left_M: np.ndarray, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (positions, rows of the column) where ``left_M`` is set, ``rows`` rows of the column at a time."""
        for start in range(0, len(left_M), rows):
            inside = np.flatnonzero(left_M[start : start + rows])
            if len(inside):
                yield inside + start, self.read(name, start, start + rows)[inside]

    def deal(
        self,
        name: str,
        left_M: np.ndarray,
        bucket_of: Callable[[np.ndarray], np.ndarray],
        count: int,
        rows: int,
    ) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
        """Yields the rows where ``left_M`` is set as ``count`` buckets, those with which ``bucket_of`` numbers them.

        Each bucket is an iterator like `blocks`. They go through files of their own, read and written ``rows`` rows at
        a time, which are gone when the last bucket was; one bucket alone needs none.
        """
        if count == 1:
            yield self.blocks(name, left_M, rows)
            return
        dtype, shape, _ = self._columns[name]
        record = np.dtype([("position", np.int64), ("value", dtype, shape)])
        with tempfile.TemporaryDirectory(prefix="imagen-ray-", dir=self.folder) as folder:
            for position_B, value_B in self.blocks(name, left_M, rows):
                record_B = np.empty(len(position_B), record)
                record_B["position"], record_B["value"] = position_B, value_B
                bucket_B = bucket_of(value_B).astype(np.int64)
                order_B = np.argsort(bucket_B, kind="stable")
                ends = np.searchsorted(bucket_B[order_B], np.arange(count + 1))
                for bucket in np.flatnonzero(np.diff(ends)).tolist():
                    with open(Path(folder) / str(bucket), "ab") as file:
                        file.write(record_B[order_B[ends[bucket] : ends[bucket + 1]]].tobytes())
            for bucket in range(count):
                yield _read_records(Path(folder) / str(bucket), record, rows)

    def _row_bytes(self, name: str) -> int:
        dtype, shape, _ = self._columns[name]
        return int(dtype.itemsize * np.prod(shape, dtype=np.int64))


def _read_records(path: Path, record: np.dtype, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if path.exists():
        with open(path, "rb") as file:
            while data := file.read(rows * record.itemsize):
                record_B = np.frombuffer(data, record)
                yield record_B["position"], np.ascontiguousarray(record_B["value"])
