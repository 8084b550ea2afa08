"""Filters on the size, shape and file of the image."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from dataprep.filters.base import (
    RowFilter,
    check_range,
    describe_outside,
    is_within,
    pick_available,
    read_floats,
)
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa


class Downloaded(RowFilter):
    """Keeps rows that have an image; always on."""

    keys = Config
    off: ClassVar = {}
    catches = frozenset({"dead_link", "truncated", "mislabelled"})
    columns = ("ok",)

    @classmethod
    def from_config(cls, config: Config, available: Collection[str]) -> Self:
        return cls()

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        return rows["ok"].to_numpy(), "no image could be fetched and decoded"


class MaxAspectKeys(Config):
    """Keys of `MaxAspect`."""

    max_aspect: float | None = Field(default=3.0, ge=1, description="longer side / shorter side (DataComp: 3)")


class MaxAspect(RowFilter):
    """Keeps originals whose longer side is at most ``ratio`` times the shorter."""

    keys = MaxAspectKeys
    off: ClassVar = {"max_aspect": None}
    catches = frozenset({"extreme_aspect"})
    columns = ("aspect",)

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    @classmethod
    def from_config(cls, config: MaxAspectKeys, available: Collection[str]) -> Self | None:
        return None if config.max_aspect is None else cls(config.max_aspect)

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        return read_floats(rows, "aspect") <= self.ratio, f"aspect above {self.ratio:g}"


class MinSideKeys(Config):
    """Keys of `MinSide`."""

    min_side: int = Field(default=64, ge=0, description="minimum shorter side of the original, pixels (DataComp: 200)")


class MinSide(RowFilter):
    """Keeps originals whose shorter side has at least ``pixels``."""

    keys = MinSideKeys
    off: ClassVar = {"min_side": 0}
    catches = frozenset({"tiny", "extreme_aspect"})
    columns = ("width", "height")

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    @classmethod
    def from_config(cls, config: MinSideKeys, available: Collection[str]) -> Self | None:
        return cls(config.min_side) if config.min_side else None

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        side_N = np.minimum(read_floats(rows, "width"), read_floats(rows, "height"))
        return side_N >= self.pixels, f"shorter side below {self.pixels} pixels"


class AreaKeys(Config):
    """Keys of `Area`."""

    min_area: int = Field(default=0, ge=0, description="minimum width x height of the original, pixels")
    max_area: int | None = Field(default=None, ge=1, description="maximum width x height of the original, pixels")

    @model_validator(mode="after")
    def _check_area(self) -> Self:
        check_range(self, "area")
        return self


class Area(RowFilter):
    """Keeps originals of ``least`` to ``most`` pixels, width times height; None: no upper limit."""

    keys = AreaKeys
    off: ClassVar = {"min_area": 0, "max_area": None}
    catches = frozenset({"tiny", "extreme_aspect"})
    columns = ("width", "height")

    def __init__(self, least: int, most: int | None) -> None:
        self.least, self.most = least, most

    @classmethod
    def from_config(cls, config: AreaKeys, available: Collection[str]) -> Self | None:
        return cls(config.min_area, config.max_area) if config.min_area or config.max_area is not None else None

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        area_N = read_floats(rows, "width") * read_floats(rows, "height")
        return is_within(area_N, self.least, self.most), f"{describe_outside(self.least, self.most)} pixels"


class FileSizeKeys(Config):
    """Keys of `FileSize`."""

    min_bytes: int = Field(
        default=0, ge=0, description="minimum bytes of the file: as fetched if known, else as stored"
    )
    max_bytes: int | None = Field(default=None, ge=1, description="maximum bytes of the file")

    @model_validator(mode="after")
    def _check_bytes(self) -> Self:
        check_range(self, "bytes")
        return self


class FileSize(RowFilter):
    """Keeps files of ``least`` to ``most`` bytes. ``measured`` is the column: size as fetched, or as stored."""

    keys = FileSizeKeys
    off: ClassVar = {"min_bytes": 0, "max_bytes": None}

    def __init__(self, least: int, most: int | None, measured: str) -> None:
        self.least, self.most, self.columns = least, most, (measured,)

    @classmethod
    def from_config(cls, config: FileSizeKeys, available: Collection[str]) -> Self | None:
        if not config.min_bytes and config.max_bytes is None:
            return None
        return cls(config.min_bytes, config.max_bytes, pick_available(available, "original_bytes", "bytes"))

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        (measured,) = self.columns
        which = "stored file" if measured == "bytes" else "file"
        keep_N = is_within(read_floats(rows, measured), self.least, self.most)
        return keep_N, f"{which} {describe_outside(self.least, self.most)} bytes"
