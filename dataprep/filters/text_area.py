"""Filter on the text that `annotate.text` found in images."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field

from dataprep.filters.base import RowFilter, read_floats, round_limit
from dataprep.io.config import Config

if TYPE_CHECKING:
    import pyarrow as pa


class MaxTextAreaKeys(Config):
    """Keys of `MaxTextArea`."""

    max_text_area: float | None = Field(
        default=None, ge=0, lt=1, description="drop images of which text covers more than this share; 0: any text"
    )


class MaxTextArea(RowFilter):
    """Keeps images of which text covers at most ``share``: no posters, memes and screenshots."""

    keys = MaxTextAreaKeys
    off: ClassVar = {"max_text_area": None}
    remedies: ClassVar = {"text_area": ("select.max_text_area", "set annotate.text, such as {model: FILE.onnx}")}
    columns = ("text_area",)

    def __init__(self, share: float) -> None:
        self.share = share

    @classmethod
    def from_config(cls, config: MaxTextAreaKeys, available: Collection[str]) -> Self | None:
        return None if config.max_text_area is None else cls(config.max_text_area)

    def judge(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        limit = round_limit(rows, "text_area", self.share)
        return read_floats(rows, "text_area") <= limit, f"text covers more than {self.share:g} of the image"
