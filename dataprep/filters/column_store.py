"""Numeric columns on disk, appended in order and read by range or by position, for set filters.

Set filters compare all rows; in memory their columns would grow with the rows. Plain reads, not a memory map: mapped
pages count as memory in use.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


class ColumnStore:
    """Named columns in files of ``folder``; the first append fixes the dtype and row shape of a column."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._columns: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}  # dtype, row shape, file descriptor

    def __enter__(self) -> ColumnStore:
        return self

    def __exit__(self, *_: object) -> None:
        for _dtype, _shape, file in self._columns.values():
            os.close(file)

    def append(self, name: str, values: np.ndarray) -> None:
        """Appends rows to a column; creates it if new. Raises ValueError for another dtype or row shape."""
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
        """Reads rows ``start`` to ``stop`` of a column, or up to its end."""
        dtype, shape, file = self._columns[name]
        size = self._row_bytes(name)
        data = os.pread(file, (stop - start) * size, start * size)
        return np.frombuffer(data, dtype).reshape(-1, *shape)

    def take(self, name: str, index_N: np.ndarray) -> np.ndarray:
        """Reads the rows at ``index_N``, in that order, each once."""
        dtype, shape, file = self._columns[name]
        distinct_U, place_N = np.unique(index_N, return_inverse=True)
        size = self._row_bytes(name)
        if len(distinct_U) and distinct_U[-1] - distinct_U[0] < 2 * len(distinct_U):  # dense: one read is cheaper
            first = int(distinct_U[0])
            return self.read(name, first, int(distinct_U[-1]) + 1)[index_N - first]
        data = b"".join(os.pread(file, size, position * size) for position in distinct_U.tolist())
        return np.frombuffer(data, dtype).reshape(-1, *shape)[place_N]

    def read_blocks(self, name: str, left_M: np.ndarray, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (positions, rows) where ``left_M`` is set, reading ``rows`` rows of the column at a time."""
        for start in range(0, len(left_M), rows):
            inside = np.flatnonzero(left_M[start : start + rows])
            if len(inside):
                yield inside + start, self.read(name, start, start + rows)[inside]

    def partition(
        self,
        name: str,
        left_M: np.ndarray,
        number_rows: Callable[[np.ndarray], np.ndarray],
        count: int,
        rows: int,
    ) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
        """Yields the rows where ``left_M`` is set as ``count`` partitions, numbered by ``number_rows``.

        Each partition is an iterator like `read_blocks`. Partitions go through temporary files, ``rows`` rows at a
        time; a single partition needs none.
        """
        if count == 1:
            yield self.read_blocks(name, left_M, rows)
            return
        dtype, shape, _ = self._columns[name]
        record = np.dtype([("position", np.int64), ("value", dtype, shape)])
        with tempfile.TemporaryDirectory(prefix="imagen-ray-", dir=self.folder) as folder:
            for position_B, value_B in self.read_blocks(name, left_M, rows):
                record_B = np.empty(len(position_B), record)
                record_B["position"], record_B["value"] = position_B, value_B
                number_B = number_rows(value_B).astype(np.int64)
                order_B = np.argsort(number_B, kind="stable")
                ends = np.searchsorted(number_B[order_B], np.arange(count + 1))
                for number in np.flatnonzero(np.diff(ends)).tolist():
                    with open(Path(folder) / str(number), "ab") as file:
                        file.write(record_B[order_B[ends[number] : ends[number + 1]]].tobytes())
            for number in range(count):
                yield _read_records(Path(folder) / str(number), record, rows)

    def _row_bytes(self, name: str) -> int:
        dtype, shape, _ = self._columns[name]
        return int(dtype.itemsize * np.prod(shape, dtype=np.int64))


def _read_records(path: Path, record: np.dtype, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if path.exists():
        with open(path, "rb") as file:
            while data := file.read(rows * record.itemsize):
                record_B = np.frombuffer(data, record)
                yield record_B["position"], np.ascontiguousarray(record_B["value"])
