"""Filters on the faces that `annotate.faces` found."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field

from dataprep.filters.base import RowFilter, read_floats, round_limit
from dataprep.io.config import Config
from dataprep.io.wording import count_of

if TYPE_CHECKING:
    import pyarrow as pa

LOOK = "set annotate.faces, such as {detector: cascade}"


class MaxFacesKeys(Config):
    """Keys of `MaxFaces`."""

    max_faces: int | None = Field(default=None, ge=0, description="drop images with more faces; 0: none with a face")


class MaxFaces(RowFilter):
    """Keeps images with at most ``most`` faces."""

    keys = MaxFacesKeys
    off: ClassVar = {"max_faces": None}
    remedies: ClassVar = {"faces": ("select.max_faces", LOOK)}
    columns = ("faces",)

    def __init__(self, most: int) -> None:
        self.most = most

    @classmethod
    def from_config(cls, config: MaxFacesKeys, available: Collection[str]) -> Self | None:
        return None if config.max_faces is None else cls(config.max_faces)

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        return read_floats(rows, "faces") <= self.most, f"more than {count_of(self.most, 'face')}"


class MaxFaceKeys(Config):
    """Keys of `MaxFace`."""

    max_face: float | None = Field(
        default=None, gt=0, le=1, description="drop images whose largest face takes more than this share of the image"
    )


class MaxFace(RowFilter):
    """Keeps images in which no face takes more than ``share`` of the image: scenes, not portraits."""

    keys = MaxFaceKeys
    off: ClassVar = {"max_face": None}
    remedies: ClassVar = {"largest_face": ("select.max_face", LOOK)}
    columns = ("largest_face",)

    def __init__(self, share: float) -> None:
        self.share = share

    @classmethod
    def from_config(cls, config: MaxFaceKeys, available: Collection[str]) -> Self | None:
        return None if config.max_face is None else cls(config.max_face)

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        limit = round_limit(rows, "largest_face", self.share)
        return read_floats(rows, "largest_face") <= limit, f"a face takes more than {self.share:g} of the image"
