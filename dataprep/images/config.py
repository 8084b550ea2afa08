"""Config of stored images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dataprep.images.formats import MAX_PIXELS
from dataprep.io.config import Config


class StoreConfig(Config):
    """Size and format of stored images, and limits on originals."""

    image_size: int = Field(default=256, ge=8, description="side in pixels that resize_mode refers to")
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = Field(
        default="keep_ratio", description="img2dataset's modes; keep_ratio: the shorter side becomes image_size"
    )
    resize_only_if_bigger: bool = Field(default=True, description="do not enlarge images smaller than image_size")
    encode_format: Literal["jpg", "png", "webp"] = Field(default="jpg", description="format of the stored images")
    encode_quality: int = Field(default=95, ge=0, le=100, description="jpg and webp: quality; png: compression 0 to 9")
    min_side: int = Field(default=0, ge=0, description="minimum shorter side of an original, pixels")
    max_aspect: float | None = Field(
        default=None, ge=1, description="maximum longer side / shorter side of an original; null: any"
    )
    max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, description="maximum pixels of an original, checked on the header before decoding"
    )

    @model_validator(mode="after")
    def _values_fit(self) -> StoreConfig:
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(f"encode_quality {self.encode_quality} is above png's 9; set it between 0 and 9")
        if self.image_size**2 > self.max_pixels:
            raise ValueError(f"max_pixels {self.max_pixels} is below image_size={self.image_size} squared; raise it")
        return self
