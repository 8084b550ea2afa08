"""What a filter is: one method over annotated rows that says which stay and why the others go.

A `Filter` judges a row by itself. A `SetFilter` judges it among all others: it says what it has to know of each row,
and decides once every row was seen, reading that from disk.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa

from dataprep.spill import Spill


class Filter(Protocol):
    """A rule over rows of kind "annotations", with the columns of "scores" and those that came with the list."""

    name: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        ...

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        """Returns bool (N,), True for the rows that stay, and the reason why the others are dropped."""
        ...


class SetFilter(Protocol):
    """A rule over all rows together, in their order."""

    name: str
    reason: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        ...

    def keys(self, rows: pa.Table) -> dict[str, np.ndarray]:
        """What the verdict needs of each row: arrays (N, ...), spilled under these names."""
        ...

    def drop(self, spill: Spill, left_M: np.ndarray) -> None:
        """Clears ``left_M`` (bool, a row each) where a row goes; rows that are not set went before and do not count."""
        ...


def column(rows: pa.Table, name: str) -> np.ndarray:
    """A numeric column as float64 (N,), nulls as NaN: every comparison with NaN is false, so a null never passes."""
    return rows[name].cast(pa.float64()).to_numpy()


def limit(rows: pa.Table, name: str, value: float) -> float:
    """``value`` as the column can hold it: a float32 that equals the limit as written must be equal to it here too."""
    return float(np.float32(value)) if rows.schema.field(name).type == pa.float32() else value
