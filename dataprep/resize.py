"""How pictures are brought to the size in which they are stored: img2dataset's policy, done with OpenCV directly.

Legend: H height, W width, C=3 channels. The pixels are those of ``img2dataset.resizer.Resizer`` given the same input
(a test holds this); what is different comes before: files are decoded by `dataprep.decode`, limits are checked on the
header, and a JPEG far larger than needed is decoded at a half, a quarter or an eighth.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import cv2
import numpy as np
from pydantic import Field, model_validator

from dataprep.decode import MAX_PIXELS, ImageError, Picture, check_pixels
from dataprep.schema import Config

KEEP = 2  # a picture is never decoded to less than this times its final side: the last resize averages, antialiased


class StoreConfig(Config):
    """In which size and format images are stored, and which are not."""

    image_size: int = Field(default=256, ge=8, description="side in pixels that resize_mode refers to")
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = Field(
        default="keep_ratio", description="img2dataset's modes; keep_ratio: the shorter side becomes image_size"
    )
    resize_only_if_bigger: bool = Field(default=True, description="do not enlarge images below image_size")
    encode_format: Literal["jpg", "png", "webp"] = Field(default="jpg", description="format of the stored images")
    encode_quality: int = Field(default=95, ge=0, le=100, description="jpg and webp: quality; png: compression 0 to 9")
    min_side: int = Field(default=0, ge=0, description="an original with a shorter side below this is not stored")
    max_aspect: float | None = Field(
        default=None, ge=1, description="an original longer than this times its shorter side is not stored; null: any"
    )
    max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, description="an original with more is not decoded; read from its header"
    )

    @model_validator(mode="after")
    def _values_fit(self) -> StoreConfig:
        if self.encode_format == "png" and self.encode_quality > 9:
            raise ValueError(f"encode_quality {self.encode_quality} is above png's 9; set it between 0 and 9")
        if self.image_size**2 > self.max_pixels:
            raise ValueError(f"max_pixels {self.max_pixels} is below image_size={self.image_size} squared; raise it")
        return self


class Stored(NamedTuple):
    """An image as it will be stored: encoded bytes, its size and the original's, in pixels."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int


def store_image(data: bytes, config: StoreConfig) -> Stored:
    """Decodes, resizes and encodes an image file. Raises ImageError with the reason."""
    picture = Picture(data, config.max_pixels)
    width, height = picture.width, picture.height
    short, long = min(width, height), max(width, height)
    if short < config.min_side:
        raise ImageError("min_side", "image too small")
    if config.max_aspect is not None and long / short > config.max_aspect:
        raise ImageError("max_aspect", "aspect ratio too large")
    scaled = scaled_size(width, height, config)
    if scaled is None:
        image_HWC = picture.rgb()
    else:
        check_pixels(*scaled, config.max_pixels)  # a thin strip can grow beyond all bounds
        whole_HWC = picture.rgb(min(width, KEEP * scaled[0]), min(height, KEEP * scaled[1]))
        image_HWC = scale(whole_HWC, scaled, shrinks=_side(width, height, config) > config.image_size)
        image_HWC = fit(image_HWC, config)
    return Stored(encode(image_HWC, config), image_HWC.shape[1], image_HWC.shape[0], width, height)


def _side(width: int, height: int, config: StoreConfig) -> int:
    """The side that image_size refers to."""
    return min(width, height) if config.resize_mode in ("keep_ratio", "center_crop") else max(width, height)


def scaled_size(width: int, height: int, config: StoreConfig) -> tuple[int, int] | None:
    """(width, height) that an image is scaled to, before a crop or a border; None where it stays as it is."""
    side = _side(width, height, config)
    if config.resize_mode == "no" or (config.resize_only_if_bigger and side <= config.image_size):
        return None
    factor = config.image_size / side
    return max(1, round(width * factor)), max(1, round(height * factor))


def scale(image_HWC: np.ndarray, size: tuple[int, int], *, shrinks: bool) -> np.ndarray:
    """Resizes to ``size`` (width, height): area averaging where it shrinks, Lanczos where it grows."""
    if (image_HWC.shape[1], image_HWC.shape[0]) == size:
        return image_HWC
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)


def fit(image_HWC: np.ndarray, config: StoreConfig) -> np.ndarray:
    """Crops the centre or adds a white border, as the mode says."""
    height, width = image_HWC.shape[:2]
    size = config.image_size
    if config.resize_mode == "center_crop":
        top, left = (height - size) // 2, (width - size) // 2
        return image_HWC[top : top + size, left : left + size]
    if config.resize_mode == "border":
        top, left = (size - height) // 2, (size - width) // 2
        sides = (top, size - height - top, left, size - width - left)
        return cv2.copyMakeBorder(image_HWC, *sides, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return image_HWC


def encode(image_HWC: np.ndarray, config: StoreConfig) -> bytes:
    """uint8 HWC RGB to a file without metadata. Raises ImageError where the format cannot hold it."""
    quality = {
        "jpg": cv2.IMWRITE_JPEG_QUALITY,
        "png": cv2.IMWRITE_PNG_COMPRESSION,
        "webp": cv2.IMWRITE_WEBP_QUALITY,
    }[config.encode_format]
    try:
        bgr_HWC = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR)
        done, encoded = cv2.imencode(f".{config.encode_format}", bgr_HWC, [quality, config.encode_quality])
    except cv2.error as error:
        raise ImageError("encode", f"cannot be stored as {config.encode_format}") from error
    if not done:  # a side of more than 65,500 pixels (JPEG) or 16,383 (WebP)
        height, width = image_HWC.shape[:2]
        raise ImageError("encode", f"{width}x{height} cannot be stored as {config.encode_format}")
    return encoded.tobytes()
