"""Numeric columns on disk, appended in order and read by range or by position.

For the thumbnails of one task of the near-duplicate search: usually a few thousand, but a component may be of any size.
Plain reads, not a memory map: mapped pages count as memory in use.
"""

from __future__ import annotations

import os
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

    def _row_bytes(self, name: str) -> int:
        dtype, shape, _ = self._columns[name]
        return int(dtype.itemsize * np.prod(shape, dtype=np.int64))
