"""Filters on the picture's size, shape and file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dataprep.filters.base import column


class Downloaded:
    """Keeps rows that have an image."""

    name = "downloaded"
    columns = ("ok",)

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        return rows["ok"].to_numpy(), "no image could be fetched and decoded"


class MaxAspect:
    """Keeps originals whose longer side is at most ``ratio`` times the shorter."""

    name = "max_aspect"
    columns = ("aspect",)

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        return column(rows, "aspect") <= self.ratio, f"aspect above {self.ratio:g}"


class MinSide:
    """Keeps originals whose shorter side has at least ``pixels``."""

    name = "min_side"
    columns = ("width", "height")

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        side_N = np.minimum(column(rows, "width"), column(rows, "height"))
        return side_N >= self.pixels, f"shorter side below {self.pixels} pixels"


class Area:
    """Keeps originals of ``least`` to ``most`` pixels, width times height; None: no upper limit."""

    name = "area"
    columns = ("width", "height")

    def __init__(self, least: int, most: int | None) -> None:
        self.least, self.most = least, most

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        area_N = column(rows, "width") * column(rows, "height")
        return within(area_N, self.least, self.most), f"{outside(self.least, self.most)} pixels"


class FileSize:
    """Keeps files of ``least`` to ``most`` bytes. ``measured`` is the column: as fetched, or as stored here."""

    name = "file_size"

    def __init__(self, least: int, most: int | None, measured: str) -> None:
        self.least, self.most, self.columns = least, most, (measured,)

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        (measured,) = self.columns
        which = "stored file" if measured == "bytes" else "file"
        return (
            within(column(rows, measured), self.least, self.most),
            f"{which} {outside(self.least, self.most)} bytes",
        )


def within(value_N: np.ndarray, least: float, most: float | None) -> np.ndarray:
    """Whether each value lies between the limits, both included."""
    return (value_N >= least) & (value_N <= (np.inf if most is None else most))


def outside(least: int, most: int | None) -> str:
    """What is wrong with a value that is not `within`."""
    return f"below {least}" if most is None else f"not {least} to {most}"
