"""Filters on the picture's size and shape."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataprep.filters.base import column


class Downloaded:
    """Keeps rows that have an image."""

    name = "downloaded"

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        return rows["ok"].to_numpy(), "no image could be fetched and decoded"


class MinSide:
    """Keeps originals whose shorter side has at least ``pixels``."""

    name = "min_side"

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        side_N = np.minimum(column(rows, "width"), column(rows, "height"))
        return side_N >= self.pixels, f"shorter side below {self.pixels} pixels"


class MaxAspect:
    """Keeps originals whose longer side is at most ``ratio`` times the shorter."""

    name = "max_aspect"

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        return column(rows, "aspect") <= self.ratio, f"aspect above {self.ratio:g}"
