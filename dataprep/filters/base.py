"""What a filter is: one method over the annotated rows that are still in, saying which stay and why the others go."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa


class Filter(Protocol):
    """A rule over rows of kind "annotations", with column clip_similarity where scores were given."""

    name: str

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        """Returns bool (N,), True for the rows that stay, and the reason why the others are dropped."""
        ...


def column(rows: pa.Table, name: str) -> np.ndarray:
    """A numeric column as float64 (N,), nulls as NaN: every comparison with NaN is false, so a null never passes."""
    return rows[name].cast(pa.float64()).to_numpy()
